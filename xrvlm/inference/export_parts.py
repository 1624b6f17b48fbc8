"""The two sides of a frozen tower as one ONNX file each, for search engines and for classes that come later.

Both give `embedding` of unit norm in the same space, float32; the first axis of every input is free.

- NAME.image.onnx: `images` (b, 3, s, s) -> `embedding` (b, d).
- NAME.text.onnx: `tokens` (t, l) int64 -> `embedding` (t, d).

`logit_scale` * (image embedding @ text embeddings) + `logit_bias` are the tower's zero-shot logits. **The files hold
the tower, not the adapted method**: what a run has learned is in the file of `export_onnx` alone.

The metadata, each as JSON: `part`; `xrvlm`, the tower; `logit_scale` and `logit_bias`; of the image side `photo` and
`transform` as in `export_onnx`. Of the text side `tokens`: the `length` l of the window, the `tokenizer`, how the tower
was loaded (`loader`), the ids `start`, `end` and `pad`, on which side the padding is, and `examples`, texts with their
padded ids, with which a tokenizer elsewhere can be checked.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.composed.on_tower import OnTower
from xrvlm.backbones.tower import Tower
from xrvlm.distributed import generator
from xrvlm.errors import UserError, option, typed, unknown
from xrvlm.files import write_atomically
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.export import CHECKED_SIZES, as_metadata, how_photos_are_read, in_float32
from xrvlm.inference.onnx_graph import answers, check_agreement, checked_path, graph_of, require_packages

log = logging.getLogger(__name__)
PARTS = ("image", "text")
EXAMPLES = ("a photo of a bird.", "two red dogs", "a house")


@typed
def export_parts(classifier: Classifier, path: Path | str, parts: Sequence[str] = PARTS, *,
                 images: Tensor | None = None) -> tuple[Path, ...]:
    """Write the image side and the text side of the tower of `classifier`; `a.onnx` becomes a.image.onnx, a.text.onnx.

    Each is checked as a whole graph is: onnxruntime must say of random images, of `images` (n, 3, s, s) and of
    class names what torch says, in batches of one and of three. All that is asked for is checked before a file is
    written.

    Raises:
        UserError: a part is unknown, a package is missing, torch cannot export the tower, a side would be over 2 GB, or
            what a file says is not what torch says.
    """
    check_parts(parts)
    require_packages()
    whole = checked_path(path)
    paths = [checked_path(whole.with_name(f"{whole.stem}.{part}.onnx")) for part in parts]
    clip = in_float32(classifier).clip
    if not isinstance(clip, Tower | OnTower):
        raise UserError(f"{clip.name} is a tower of a class of its own, whose two sides are not known: leave "
                        f"{option('parts')} out")
    sides = {"image": lambda: _image_side(clip, images), "text": lambda: _text_side(clip, classifier.names)}
    _write_all([(path, *sides[part]()) for path, part in zip(paths, parts, strict=True)])
    return tuple(paths)


def check_parts(parts: Sequence[str]) -> None:
    for part in parts:
        if part not in PARTS:
            raise unknown(option("parts"), part, PARTS)
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"{option('parts')} must name image, text or both, once each; found {list(parts)}")


Feed = tuple[Mapping[str, Tensor], Tensor]       # the inputs of a graph, and what torch says of them


class ImageSide(nn.Module):
    def __init__(self, clip: Tower | OnTower):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images).pooled                                   # (b, d)


class TextSide(nn.Module):
    def __init__(self, clip: Tower | OnTower):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.clip.text.encode_window(tokens), dim=-1)               # (t, d)


def _image_side(clip: Tower | OnTower, images: Tensor | None) -> tuple[Any, list[Feed]]:
    """torch's ONNXProgram with its metadata, and what it is checked on."""
    size = clip.transform.image_size
    program = graph_of(ImageSide(clip).eval(), {"images": torch.zeros(2, 3, size, size)}, ["embedding"],
                       f"the image side of {clip.name}", clip.name)
    program.model.metadata_props.update(as_metadata(_about(clip, "image") | how_photos_are_read(clip)))
    batches = [torch.randn(count, 3, size, size, generator=generator(0, "export", count)) for count in CHECKED_SIZES]
    batches += [] if images is None else [images[:count] for count in CHECKED_SIZES]
    return program, [({"images": batch}, clip.encode_image(batch).pooled) for batch in batches]


def _text_side(clip: Tower | OnTower, names: Sequence[str]) -> tuple[Any, list[Feed]]:
    tokens = clip.tokens
    examples = clip.tokens.sentences(EXAMPLES)[0]                                      # (3, l)
    program = graph_of(TextSide(clip).eval(), {"tokens": examples[:2]}, ["embedding"],
                       f"the text side of {clip.name}", clip.name)
    about = {"length": tokens.window, "tokenizer": tokens.tokenizer, "loader": clip.loader, "start": tokens.start,
             "end": tokens.end, "pad": tokens.pad, "padding": "left" if tokens.pads_left else "right",
             "examples": dict(zip(EXAMPLES, examples.tolist(), strict=True))}
    program.model.metadata_props.update(as_metadata(_about(clip, "text") | {"tokens": about}))
    texts = [EXAMPLES[:count] for count in CHECKED_SIZES] + [names[:max(CHECKED_SIZES)]]
    return program, [({"tokens": tokens.sentences(each)[0]}, clip.encode_text(each)) for each in texts]


def _about(clip: Tower | OnTower, part: str) -> dict[str, Any]:
    about = {"backbone": clip.name, "fingerprint": clip.fingerprint, "dimension": clip.embed_dim}
    return {"part": part, "xrvlm": about, "logit_scale": clip.logit_scale.item(),
            "logit_bias": clip.logit_bias.item()}


def _write_all(made: Sequence[tuple[Path, Any, Sequence[Feed]]]) -> None:
    """Write each graph; every one is checked before the first takes its place."""
    with TemporaryDirectory(prefix="xrvlm-export-") as folder:
        checked = [Path(folder) / path.name for path, _, _ in made]
        for file, (path, program, feeds) in zip(checked, made, strict=True):
            program.save(str(file), external_data=False)
            log.info("%s says what torch says: embeddings differ by %.1e of the largest number at most", path.name,
                     _largest_difference(file, feeds))
        for file, (path, _, _) in zip(checked, made, strict=True):
            write_atomically(path, partial(shutil.copyfile, file))


def _largest_difference(path: Path, feeds: Sequence[Feed]) -> float:
    found = answers(path, [inputs for inputs, _ in feeds])
    worst = max(((embedding - expected).abs().max() / expected.abs().max()).item()
                for (embedding,), (_, expected) in zip(found, feeds, strict=True))
    return check_agreement(worst, "number of an embedding")
