"""A model as one ONNX file: normalised images in, probabilities out, to be run without torch or xrvlm.

The file has one input, `images` (b, 3, s, s) float32, and two outputs, `probabilities` and `logits` (b, c); b is free.
What else a caller must know stands in the file's metadata, each as JSON:

- `photo`: how a file becomes RGB, in words: upright by its EXIF tag, 16 bits as 8, transparency on white.
- `transform`: how RGB becomes the input. `resize` = `shortest` brings the shorter side to `resize_to` pixels and
  cuts the central `image_size` square, `squash` brings both sides to `image_size` at once; by `interpolation`, with
  antialiasing. RGB values in 0..1 then lose `mean` and are divided by `std`, channel by channel.
- `classes`: their names, in the order of the outputs.
- `xrvlm`: the tower and the method, for people.

Of a calibrated model, whose `probabilities` are scaled and whose `logits` are not, also:

- `known`: an image is unknown where its score is below the threshold of that score. The scores: `probability`, the
  largest softmax of the logits; `logit`, the largest logit; `energy`, the logarithm of the sum of their exponentials.
  `by` names the run's own; `energy` where that is GL-MCM, which reads what the file's outputs do not have.
- `sets`: for each way to make sets and each coverage, the limit: a class is in the set where its misfit is at most
  that, see `evaluation/conformal.py`; of `lac` it is 1 - softmax of the logits. null, for infinity: all classes.
- `scaling`: `probabilities` = softmax(logits / temperature * weight + bias).
- `hierarchy`: {node: the node above it, "" at the top}; the probability of a node is the sum of its classes'.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Item
from xrvlm.distributed import generator
from xrvlm.errors import UserError, typed
from xrvlm.evaluation.conformal import SET_SCORES
from xrvlm.features.source import evaluation_batches
from xrvlm.files import write_atomically
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.onnx_graph import answers, check_agreement, checked_path, graph_of, require_packages
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)
KNOWN, COVERAGES = 0.95, (0.8, 0.9, 0.95, 0.99)      # what an exported file has thresholds and limits for
OF_LOGITS = ("probability", "logit", "energy")       # the scores that can be computed from logits alone
CHECKED_SIZES = (1, 3)                   # images in a batch; the graph is traced with two


@typed
def export_onnx(classifier: Classifier, path: Path | str, *, images: Tensor | None = None) -> Path:
    """Write `classifier` to `path`: image tower, method and class features in one graph, in float32 on any device.

    A model loaded with `precision="fp32"` keeps all digits of its tower's weights; one in half precision is written
    with those that it has. Before the file takes its place, onnxruntime must say of random images, and of `images`
    (n, 3, s, s) as the evaluation transform makes them, what torch says, in batches of one and of three.

    Raises:
        UserError: a package is missing, the method needs the text tower for every image, torch cannot export the tower
            or the method, the file would be over 2 GB, or what it says is not what torch says; nothing is left behind.
    """
    require_packages()
    if not isinstance(classifier.class_features, Tensor):
        raise UserError(f"{classifier.method.label} runs the text tower anew for every image, and an exported file "
                        "holds the image side alone: export a run of another method, such as coop")
    path = checked_path(path)
    deployed = Deployed(in_float32(classifier)).eval()
    program = _graph(deployed, classifier)
    program.model.metadata_props.update(_metadata(classifier))
    size = classifier.clip.transform.image_size
    batches = [torch.randn(count, 3, size, size, generator=generator(0, "export", count)) for count in CHECKED_SIZES]
    if images is not None:
        batches += [images[:count] for count in CHECKED_SIZES]

    def write(temporary: Path) -> None:
        program.save(str(temporary), external_data=False)
        log.info("%s says what torch says of %d images: logits differ by %.1e of the largest at most", path.name,
                 sum(map(len, batches)), largest_difference(temporary, deployed, batches))

    write_atomically(path, write)
    return path


def sample_images(classifier: Classifier, source: ImageSource, items: Sequence[Item]) -> Tensor:
    """(n, 3, s, s) the first of `items`, as many as the check of an export reads."""
    return torch.cat([images for _, images in evaluation_batches(classifier.clip, source, items[:max(CHECKED_SIZES)])])


class Deployed(nn.Module):
    """A classifier as a function of images alone."""

    class_features: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.clip, self.method = classifier.clip, classifier.method
        self.register_buffer("class_features", classifier.class_features.detach())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c) probabilities and logits of (b, 3, s, s); the probabilities of a calibrated model are scaled."""
        logits = self.method.logits(self.clip.encode_image(images, self.method.needs), self.class_features)
        return self.probabilities(logits), logits

    def probabilities(self, logits: Tensor) -> Tensor:
        scaling = self.method.scaling
        return (logits if scaling is None else scaling(logits)).softmax(dim=1)


def largest_difference(path: Path, deployed: Deployed, batches: Sequence[Tensor]) -> float:
    """How far the logits of the file at `path` are from those of torch, as a share of the largest of them.

    Raises UserError where that is over `TOLERANCE`, where probabilities are not those of the logits, and where
    onnxruntime does not accept the file.
    """
    found = answers(path, [{"images": batch} for batch in batches])                        # (b, c), (b, c) each
    worst = 0.0
    for (probabilities, logits), batch in zip(found, batches, strict=True):
        with torch.no_grad():
            expected = deployed(batch)[1]
        worst = max(worst, ((logits - expected).abs().max() / expected.abs().max()).item())
        worst = max(worst, (probabilities - deployed.probabilities(logits)).abs().max().item())
    return check_agreement(worst, "logit")


def in_float32(classifier: Classifier) -> Classifier:
    """`classifier` in float32 on the CPU: itself where it is, else a copy."""
    clip = classifier.clip
    if clip.precision == "fp32" and clip.device.type == "cpu":
        return classifier
    copies: dict[int, Any] = {}          # what tower and method share stays shared
    clip, method = deepcopy(clip, copies).float().cpu(), deepcopy(classifier.method, copies).float().cpu()
    clip.precision = "fp32"
    return Classifier(clip, method, classifier.header)


def _graph(deployed: Deployed, classifier: Classifier) -> Any:
    size = classifier.clip.transform.image_size
    return graph_of(deployed, {"images": torch.zeros(2, 3, size, size)}, ["probabilities", "logits"],
                    f"{classifier.clip.name} with the method {classifier.method.label}", classifier.clip.name)


def how_photos_are_read(clip: FrozenCLIP) -> dict[str, Any]:
    """The metadata `photo` and `transform`."""
    transform = asdict(clip.transform)
    transform["resize_to"] = transform["resize_to"] or clip.transform.image_size
    photo = "turned upright by its EXIF orientation; 16 bits divided by 257, of a TIFF whose 0 is white from white " \
            "down; other integers and floats divided by " \
            "the first of 1 (floats alone), 255, 65535 that none exceeds, or else by the largest, and times 255; " \
            "transparency on white; then RGB"
    return {"photo": photo, "transform": transform}


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _metadata(classifier: Classifier) -> Mapping[str, str]:
    clip, spec = classifier.clip, asdict(classifier.header.method)
    about = {"backbone": clip.name, "fingerprint": clip.fingerprint, "method": spec}
    values = {**how_photos_are_read(clip), "classes": classifier.names, "xrvlm": about}
    if (calibration := classifier.calibration) is not None:
        by = calibration.header.known_by if calibration.header.known_by in OF_LOGITS else "energy"
        if by != calibration.header.known_by:
            log.warning("the file says unknown by %s: %s reads positions, which its outputs do not have", by,
                        calibration.header.known_by)
        values["known"] = {"share": KNOWN, "by": by, "thresholds": {
            name: _finite(calibration.threshold(name, KNOWN)) for name in OF_LOGITS}}
        values["sets"] = {name: {str(asked): _finite(calibration.limit(name, asked)) for asked in COVERAGES}
                          for name in SET_SCORES}
        values["scaling"] = asdict(calibration.header.scaling)
    if classifier.header.hierarchy is not None:
        values["hierarchy"] = dict(classifier.header.hierarchy)
    return as_metadata(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
