"""What commands take: what `xrvlm --help` says, and the types of values at the top level."""

from typing import Any, Literal

SCALARS: dict[str, Any] = {              # the types of values at the top level
    **dict.fromkeys(("seed", "workers", "topk", "folds", "count", "nearest", "port", "uploads", "waiting"), int),
    "sentences": int, "second_look": int,
    "runs": str, "host": str, "kind": str, "licence": str | None, "megabytes": float | int, "certainty": float | None,
    **dict.fromkeys(("val", "force", "small", "pictures", "all_shots", "photos", "all", "dry_run", "private"), bool),
    "device": Literal["auto", "cpu", "cuda", "mps"], "precision": Literal["auto", "fp32", "bf16", "fp16"],
    "follow": Literal["none", "tensorboard", "trackio", "wandb"],
    "calibrate": Literal["none", "folds", "val"], "scaling": Literal["temperature", "vector"],
    "selection": Literal["last", "val"], "protocol": Literal["few_shot", "base_to_new", "open_set"],
    "among": Literal["run", "data"], "format": Literal["onnx"], "known": float | None, "coverage": float | None,
    "int8": bool, "max_drop": float,
}

HELP = """\
xrvlm adapts a frozen CLIP to fine-grained recognition.

  xrvlm adapt DIR [shots=16|all] [method=xr_vlm] [backbone=vit_b16_openai] [seed=1]
  xrvlm adapt DIR calibrate=folds                   ... that knows how sure it is, and says "unknown"
  xrvlm adapt DIR protocol=base_to_new|open_set     train on half of the classes, measure the others too
  xrvlm zeroshot DIR                                score a data set without a label
  xrvlm eval RUN [data.root=OTHER]                  score a finished run again, on other images or new classes
                 [among=data]                       ... and mask the classes that these images do not have
  xrvlm predict RUN PHOTO_OR_DIR ... [classes=names.txt] [topk=5] [coverage=0.9] [out=preds.csv]
  xrvlm predict backbone=vit_b16_openai classes=names.txt images=DIR        without a run: zero-shot
  xrvlm explain RUN [PHOTO_OR_DIR ...] [against=CLASS] [out=DIR]            what the parts look at, and what decides
  xrvlm export RUN [format=onnx] [out=FILE]         a model that runs without xrvlm and torch
                   [int8=true] [parts=image,text]   ... in 8 bits; or the sides of the tower, for a search
  xrvlm compare DIR [budget=10m] [shots=all] [folds=5]                      which method should I take?
  xrvlm serve RUN ... [port=7860]                   a page that answers about photos that are dropped on it
  xrvlm push RUN OWNER/NAME [out=DIR]               the model and a card to the Hugging Face hub
  xrvlm report [RUNS] [baseline=METHOD]             one page, tables and plots of all runs in a folder
  xrvlm suspects DIR [count=50] [out=DIR]           which labels look wrong, which images are there twice
  xrvlm next RUN PHOTO_OR_DIR ... [count=20] [out=next.csv]                 which photos should I label next?
  xrvlm describe DIR [kind="bird species"] [answer=FILE]                    ask any language model how the classes look
  xrvlm prompts DIR [text.descriptions=FILE]        which templates and sentences help, by the labelled images
  xrvlm data check DIR [data=cub]                   what of a data set is there and what is missing
  xrvlm cache list                                  stored features, also those of older versions
  xrvlm cache prune [older_than=30d] [all=true]     delete what is stale, old or everything
  xrvlm demo [photos=DIR] [small=true]              a table on drawn birds or on your own photos, offline

A DIR holds a folder of photos for each class (other data sets: data=..., data.root=DIR). A RUN is the folder of a
finished run, `latest`: the newest in runs/ (`OTHER/latest`: in OTHER), or hf:OWNER/NAME: a model on the hub.
"""
MORE = """
Behind each command: overrides (`key=value`), `--cfg job` shows the configuration, `-m` sweeps over comma-separated
values, `--help` lists the choices, `--config-dir DIR` adds configurations of your own.
`torchrun --nproc_per_node=2 -m xrvlm adapt ...` does one run by several processes.
Shell completion: `eval "$(xrvlm completion bash)"` (or zsh, fish).
"""
