"""The command line: `xrvlm COMMAND key=value ...`. The only importer of Hydra and OmegaConf."""

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from xrvlm.errors import UserError
from xrvlm.files import user_path

HELP = """\
xrvlm adapts a frozen CLIP to fine-grained recognition.

  xrvlm adapt data.root=DIR [shots=16|all] [method=xr_vlm] [backbone=vit_b16_openai] [seed=1]
  xrvlm zeroshot data.root=DIR                      score a data set without a label
  xrvlm eval run=RUNDIR [data.root=OTHER]           score a finished run again, or on other images
  xrvlm predict run=RUNDIR images=FILE_OR_DIR [topk=5] [out=preds.csv]
  xrvlm predict backbone=vit_b16_openai classes=names.txt images=DIR        without a run: zero-shot
  xrvlm report runs=DIR                             tables and plots of all runs in a folder
  xrvlm demo [small=true]                           the main job on the embedded default, offline

Behind each command: Hydra overrides (`key=value`), `--cfg job` shows the configuration, `-m` sweeps over
comma-separated values, `--help` lists the choices, `--config-dir DIR` adds configurations of your own.
"""

# Values that are paths or names: taken as they stand, whatever Hydra's grammar would make of their characters.
LITERAL = ("data.root", "data.file", "data.path", "data.name", "images", "out", "run", "runs", "classes",
           "data.class_names", "text.templates", "text.descriptions", "text.parts", "backbone.pretrained",
           "features.cache")
LISTS = ("data.class_names", "text.templates")    # may also be a list in Hydra's grammar
SCALARS: dict[str, tuple[type, str]] = {
    "seed": (int, "a whole number"), "workers": (int, "a whole number, at least 0"), "topk": (int, "a whole number"),
    "val": (bool, "true or false"), "force": (bool, "true or false"), "small": (bool, "true or false"),
    "runs": (str, "a folder"), "device": (str, "auto, cpu, cuda or mps"), "images": (str, "a file or a folder"),
    "precision": (str, "auto, fp32, bf16 or fp16"), "selection": (str, "last or val"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake of the user's, 130 for an interruption."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"xrvlm {version('xrvlm')}")
        return 0
    command, *overrides = arguments
    try:
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}; available: {', '.join(COMMANDS)}; see `xrvlm --help`")
        mistakes = _run_hydra(command, [quote(override) for override in overrides])
    except (UserError, HydraException, OmegaConfBaseException) as error:
        _tell(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 2 if mistakes else 0


def quote(override: str) -> str:
    """`data.root=~/my (birds), all` with its value quoted for Hydra's grammar, where the key takes a path or a name."""
    key, equals, value = override.partition("=")
    quoted = value[:1] == value[-1:] and value[:1] in ("'", '"') and len(value) > 1
    a_list = key in LISTS and value.startswith("[") and value.endswith("]")
    if not equals or key.lstrip("+") not in LITERAL or quoted or a_list or value in ("null", ""):
        return override
    if key == "runs" and value.startswith("~"):
        value = os.path.expanduser(value)    # noqa: PTH111 (Hydra too writes there; a trailing slash stays)
    # backslashes count as such but before a quote, where the grammar wants them twice
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{value.replace('${', chr(92) + '${')}'"


def _run_hydra(command: str, overrides: list[str]) -> list[str]:
    """Compose and run; returns the mistakes that jobs made and told."""
    mistakes: list[str] = []
    task = partial(_task, command, os.getpid(), mistakes)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")    # exceptions reach `main`, which tells them in one line
    before = sys.argv
    sys.argv = [f"xrvlm {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://xrvlm.conf", config_name=command)(task)()
    finally:
        sys.argv = before
    return mistakes


def _task(command: str, main_process: int, mistakes: list[str], config: DictConfig) -> None:
    """One job. A mistake is told at once; in a sweep the other jobs go on."""
    logging.captureWarnings(True)
    try:
        _check_scalars(config)
        COMMANDS[command](config)
    except (UserError, OmegaConfBaseException) as error:
        _tell(error)
        mistakes.append(str(error))
        if os.getpid() != main_process:      # a launcher's process: its engine must see that the job failed
            raise


def _check_scalars(config: DictConfig) -> None:
    """UserError for a value at the top level that is of another kind than the program reads."""
    for name, (kind, words) in SCALARS.items():
        if name not in config or OmegaConf.is_missing(config, name):
            continue
        value = config[name]
        if type(value) is not kind or (name == "workers" and value < 0):
            raise UserError(f"{name} must be {words}, found {'null' if value is None else repr(value)}")


def _tell(error: Exception) -> None:
    message = str(error) or type(error).__name__
    if isinstance(error, MissingMandatoryValue):
        message = f"{error.full_key} is not given; add {error.full_key}=VALUE"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def adapt(config: DictConfig) -> None:
    from xrvlm.run import adapt as adapt_tower

    dataset = _dataset(config.data)
    run = adapt_tower(_tower(config), dataset, _partial(config.method, "method"), shots=_shots(config.shots),
                      seed=config.seed, val=config.val, recipe=_recipe(config), text=_text(config, dataset),
                      options=_options(config))
    _show(run)


def zeroshot(config: DictConfig) -> None:
    from xrvlm.run import zero_shot

    dataset = _dataset(config.data)
    _show(zero_shot(_tower(config), dataset, text=_text(config, dataset), options=_options(config)))


def evaluate(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.data import read_split, without_images_of
    from xrvlm.files import digest
    from xrvlm.run import evaluate as evaluate_on

    folder = user_path(config.run)
    classifier = Classifier.load(folder, device=config.device, precision=config.precision)
    split = read_split(folder / "split.json")
    if OmegaConf.is_missing(config.data, "root"):
        own = _saved(folder).data
        if "class_names" in own:
            own.class_names = None               # the names that the run knew stand in its split
        dataset = replace(_dataset(own), split=split)
        items = split.test
    else:
        dataset = _dataset(config.data)
        items = dataset.split.test or (*dataset.split.train, *dataset.split.val)
        items = without_images_of(folder / "split.json", dataset.source, items)
    place = folder / "eval" / f"{dataset.name}-{digest([item.id for item in items])[:10]}"
    summary = evaluate_on(classifier, dataset, items, place, features=_options(config).features,
                          workers=config.workers)
    print(f"{dataset.name}: {_figures(summary)}\n{place}")


def predict(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.predict import predict_images, zero_shot_classifier
    from xrvlm.text import class_names

    images, out = user_path(config.images), None if config.out is None else user_path(config.out)
    if config.run is not None:
        classifier = Classifier.load(config.run, device=config.device, precision=config.precision)
    elif config.classes is not None:
        classifier = zero_shot_classifier(_tower(config), _text(config, None)(class_names(config.classes)))
    else:
        raise UserError("predict needs run=RUNDIR (an adapted model), or classes=names.txt for zero-shot")
    for line in predict_images(classifier, images, topk=config.topk, workers=config.workers, out=out):
        print(line)


def report(config: DictConfig) -> None:
    from xrvlm.records import read_records
    from xrvlm.report import write_report
    from xrvlm.tables import terminal_table

    runs = user_path(config.runs)
    print(terminal_table(read_records(runs)))
    print(write_report(runs, None if config.out is None else user_path(config.out)))


def demo(config: DictConfig) -> None:
    from xrvlm.demo.demo import run_demo

    run_demo(user_path(config.runs), small=config.small, device=config.device, precision=config.precision,
             workers=config.workers)


COMMANDS: dict[str, Callable[[DictConfig], None]] = {
    "adapt": adapt, "zeroshot": zeroshot, "eval": evaluate, "predict": predict, "report": report, "demo": demo,
}


def _partial(config: DictConfig, group: str) -> partial:
    """What a config group's `_target_` names, with the group's values as plain Python, not yet called."""
    from xrvlm.options import check_options

    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    made = instantiate(config, _partial_=True, _convert_="all")
    check_options(made.func, made.keywords, group)
    return made


def _tower(config: DictConfig) -> Any:
    return _partial(config.backbone, "backbone")(device=config.device, precision=config.precision)


def _dataset(config: DictConfig) -> Any:
    return _partial(config, "data")()


def _recipe(config: DictConfig) -> Any:
    """The composed recipe; a method of one's own may have none beside its class."""
    return None if config.get("recipe") is None else _partial(config.recipe, "recipe")()


def _text(config: DictConfig, dataset: Any) -> Any:
    """Files of sentences are looked for as they are named, then beside the images."""
    from xrvlm.text import class_text

    options = OmegaConf.to_container(config.text, resolve=True)
    assert isinstance(options, dict)
    root = getattr(dataset.source, "root", None) if dataset is not None else None
    for name in ("descriptions", "parts"):
        if options.get(name) is not None and root is not None and (root / options[name]).is_file() \
                and not user_path(options[name]).is_file():
            options[name] = str(root / options[name])
    return partial(class_text, **{str(name): value for name, value in options.items()})


def _options(config: DictConfig) -> Any:
    from xrvlm.run import RunOptions

    return RunOptions(runs=config.get("runs", "runs"), features=_partial(config.features, "features")(),
                      selection=config.get("selection", "last"), workers=config.workers,
                      force=config.get("force", False), config=_composed(config))


def _composed(config: DictConfig) -> str:
    """The configuration as it is kept beside the result: resolved, the data where they are from anywhere."""
    kept = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    if OmegaConf.select(kept, "data.root") is not None:
        kept.data.root = str(user_path(kept.data.root).resolve())
    return OmegaConf.to_yaml(kept)


def _saved(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} does not say where its images were; name them with data.root=DIR")
    try:
        saved = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, DictConfig) or "data" not in saved:
        raise UserError(f"{path} is damaged; name the images with data.root=DIR")
    return saved


def _shots(value: Any) -> int | None:
    if value == "all":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UserError(f"shots must be a number of images a class, or all; found {value!r}")


def _show(run: Any) -> None:
    from xrvlm.tables import terminal_table

    print(terminal_table([run.record]))
    print(f"{run.record.label}: {_figures(run.record.metrics)}\n{run.folder}")


def _figures(metrics: dict[str, float]) -> str:
    return (f"top-1 {metrics['top1']:.1%}, top-5 {metrics['top5']:.1%}, mean per class "
            f"{metrics['mean_per_class']:.1%}, macro-F1 {metrics['macro_f1']:.1%}, calibration error "
            f"{metrics['ece']:.1%}")
