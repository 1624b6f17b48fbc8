"""A finished run as files that run without xrvlm and torch: one graph, float32 or int8, or the tower's two sides."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, overload

import torch
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, Item
from xrvlm.distributed import generator
from xrvlm.errors import UserError, option, typed
from xrvlm.experiments.evaluate import not_learned
from xrvlm.experiments.saved import SavedRun
from xrvlm.features.source import evaluation_batches
from xrvlm.files import user_path
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.export import export_onnx, sample_images
from xrvlm.inference.export_parts import check_parts, export_parts
from xrvlm.inference.onnx_graph import checked_path
from xrvlm.inference.quantise import check_max_drop, needs_calibration, quantise_onnx

log = logging.getLogger(__name__)
GATE_IMAGES = 2000                       # test images at most: 0.05 points each
CALIBRATION_IMAGES = 128
MAX_DROP = 1.0


@overload
def export(run: str | Path, out: str | Path | None = None, *, format: Literal["onnx"] = "onnx",
           int8: bool = False, max_drop: float = MAX_DROP, parts: None = None,
           clip: FrozenCLIP | None = None) -> Path: ...


@overload
def export(run: str | Path, out: str | Path | None = None, *, format: Literal["onnx"] = "onnx",
           int8: bool = False, max_drop: float = MAX_DROP, parts: Sequence[str],
           clip: FrozenCLIP | None = None) -> tuple[Path, ...]: ...


@typed
def export(run: str | Path, out: str | Path | None = None, *, format: Literal["onnx"] = "onnx",    # noqa: A002
           int8: bool = False, max_drop: float = MAX_DROP, parts: Sequence[str] | None = None,
           clip: FrozenCLIP | None = None) -> Path | tuple[Path, ...]:
    """Write the run in the folder `run` as ONNX to `out`; returns the file, or with `parts` the files.

    The files are made and checked on the CPU: on random images, and on some of the run's test images where these can be
    read. See `inference/export.py` for what they hold.

    Args:
        run: its folder, or "latest".
        out: None: model.onnx in that folder, with `int8` model.int8.onnx.
        int8: quantise the file, see `inference/quantise.py`. The run's test images, 2,000 at most, are what float32 and
            int8 are compared on; its training images, 128 at most, are what convolutions are calibrated on.
        max_drop: percentage points of top-1 that int8 may lose.
        parts: "image", "text" or both: the sides of the tower, without the method, see `inference/export_parts.py`;
            `out` = a.onnx becomes a.image.onnx and a.text.onnx.

    Raises:
        UserError: the format is unknown, a package is missing, an exported file does not agree with torch, int8 loses
            more than `max_drop`, or it is asked for and the run's images cannot be read.
    """
    _check(int8, max_drop, parts)
    saved = SavedRun(run)
    default = saved.home / ("model.int8.onnx" if int8 else "model.onnx")
    path = checked_path(default if out is None else user_path(out))
    classifier = saved.classifier(clip, device="cpu", precision="fp32")
    if int8:
        return _export_int8(saved, classifier, path, max_drop)
    images = None
    try:
        dataset = saved.dataset()
        images = sample_images(classifier, dataset.source, dataset.split.test)
    except UserError as error:
        log.info("checked on random images alone: %s", error)
    if parts is not None:
        return export_parts(classifier, path, parts, images=images)
    return export_onnx(classifier, path, images=images)


def _check(int8: bool, max_drop: float, parts: Sequence[str] | None) -> None:
    check_max_drop(max_drop)
    if max_drop != MAX_DROP and not int8:
        raise UserError(f"{option('max_drop')} is of int8 alone: add {option('int8', True)}, or leave it out")
    if parts is not None:
        check_parts(parts)
    if parts is not None and int8:
        raise UserError(f"{option('int8', True)} is measured by the classes that a file answers with, and "
                        f"{option('parts')} are files without classes: leave one of the two out")


def _export_int8(saved: SavedRun, classifier: Classifier, path: Path, max_drop: float) -> Path:
    dataset = _readable(saved, classifier)
    test = _drawn(_unseen(saved, dataset), GATE_IMAGES, "int8 test")
    with TemporaryDirectory(prefix="xrvlm-export-") as folder:
        file = export_onnx(classifier, Path(folder) / "float32.onnx",
                           images=sample_images(classifier, dataset.source, test))
        seen: Sequence[Tensor] = ()
        if needs_calibration(file):
            training = dataset.split.train or dataset.split.val
            if not training:
                raise UserError(f"the run in {saved.folder} has neither training nor validation images to calibrate "
                                f"its convolutions on: stay in float32 with {option('int8', False)}")
            calibration = _drawn(training, CALIBRATION_IMAGES, "int8 calibration")
            seen = torch.cat([images for images, _ in _labelled(classifier, dataset, calibration)]).unbind()
        quantise_onnx(file, path, seen, _labelled(classifier, dataset, test), max_drop=max_drop)
    return path


def _readable(saved: SavedRun, classifier: Classifier) -> Dataset:
    """The run's images; UserError where int8 cannot be measured on them."""
    stay = f"stay in float32 with {option('int8', False)}"
    try:
        dataset = saved.dataset()
        if dataset.split.test:
            sample_images(classifier, dataset.source, dataset.split.test)
    except UserError as error:
        raise UserError(f"int8 is measured on the run's images before it is written, and they cannot be read: {error}; "
                        f"put them back, or {stay}") from error
    if not dataset.split.test:
        raise UserError(f"int8 is measured on the run's test images before it is written, and the run in "
                        f"{saved.folder} has none: {stay}")
    if dataset.split.classes != classifier.names:
        raise UserError(f"the model and the split.json in {saved.folder} name other classes: one of them was changed; "
                        f"adapt again with {option('force', True)}, or {stay}")
    return dataset


def _unseen(saved: SavedRun, dataset: Dataset) -> tuple[Item, ...]:
    """The test images that the run did not learn from; warns of those that have changed since."""
    hashes = {item.id: dataset.source.sha256(item.id) for item in dataset.split.test}
    unseen = dataset.split.test
    for own in (True, False):            # the second leaves out the copies of training images that `adapt` told of, too
        unseen = not_learned(saved.folder / "split.json", unseen, hashes, own)
    if not unseen:
        raise UserError(f"int8 is measured on test images that the run in {saved.folder} did not learn from, and there "
                        f"are none: put them back, or stay in float32 with {option('int8', False)}")
    return unseen


def _drawn(items: Sequence[Item], most: int, key: str) -> Sequence[Item]:
    """At most `most` of `items`, the same ones each time."""
    order = torch.randperm(len(items), generator=generator(0, key))
    return [items[row] for row in order[:most].tolist()]


def _labelled(classifier: Classifier, dataset: Dataset, items: Sequence[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images (b, 3, s, s) as the evaluation transform makes them, with their labels (b,)."""
    labels = torch.tensor([item.label for item in items])
    for rows, images in evaluation_batches(classifier.clip, dataset.source, items):
        yield images, labels[rows]
