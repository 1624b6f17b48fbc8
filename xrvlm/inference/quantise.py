"""A float32 ONNX file of `export_onnx` with its weights in 8 bits, behind a gate: what it says of labelled images.

Matrix products are quantised dynamically: their weights channel by channel, their inputs as they come. Where the image
tower has two convolutions or more, these and what stands between them are quantised statically: the ranges of all
values there are those of calibration images. (A ViT has one convolution, of its patches, which stays in float32:
dynamic convolutions of onnxruntime are slow, and static matrix products lose accuracy. docs/guides/export.md has
the figures.) Everything else, such as norms, softmax and the scaling of probabilities, stays in float32.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from xrvlm.errors import UserError, option
from xrvlm.files import write_atomically
from xrvlm.inference.onnx_graph import reason, session_of

log = logging.getLogger(__name__)
TIMED, ROUNDS = 8, 9                     # images in a batch that is timed, and how often it is
CALIBRATION_BATCH = 16
BETWEEN = ("Clip", "Relu", "Add")        # quantised with the convolutions: onnxruntime makes one integer step of them


@dataclass(frozen=True)
class Int8Report:
    """What an int8 file lost and gained, the metadata `int8` of it.

    Args:
        images: number of the labelled images that both files were asked about.
        float_top1, int8_top1: share of them that each file labels right.
        drop: `float_top1` - `int8_top1`, in percentage points.
        agreement: share of them of which both say the same class.
        known_agreement: of a calibrated model, share of them that both say known or both unknown; None: not calibrated.
        float_bytes, int8_bytes: sizes of the files; of the int8 file without this entry.
        speedup: how many times as fast as the float file on this CPU, in batches of at most 8 images.
        calibration_images: number of images by which the ranges of convolutions were found; 0: all is dynamic.
        max_drop: in percentage points, what was allowed.
    """

    images: int
    float_top1: float
    int8_top1: float
    drop: float
    agreement: float
    known_agreement: float | None
    float_bytes: int
    int8_bytes: int
    speedup: float
    calibration_images: int
    max_drop: float

    def __str__(self) -> str:
        known = "" if self.known_agreement is None else f" and on known or unknown on {self.known_agreement:.1%}"
        return (f"top-1 {self.int8_top1:.1%} on {self.images:,} test images, {self.float_top1:.1%} in float32 "
                f"({-self.drop:+.1f} points); same class on {self.agreement:.1%}{known}; "
                f"{self.int8_bytes / 1e6:.1f} MB instead of {self.float_bytes / 1e6:.1f} MB; "
                f"{self.speedup:.1f} times as fast on this CPU")


def check_max_drop(max_drop: float) -> None:
    if not 0 <= max_drop <= 100:
        raise UserError(f"{option('max_drop')} must be a number of percentage points from 0 to 100, found {max_drop}")


def needs_calibration(file: Path) -> bool:
    """Whether the float32 graph in `file` has convolutions to be quantised, for which images are needed."""
    import onnx

    return len(_convolutions(onnx.load(file, load_external_data=False))) > 1


def quantise_onnx(file: Path, path: Path, calibration: Sequence[Tensor], tested: Iterable[tuple[Tensor, Tensor]], *,
                  max_drop: float = 1.0) -> Int8Report:
    """Write the graph in `file`, which `export_onnx` made, to `path` with weights in 8 bits; returns what that cost.

    All metadata of `file` stay, `int8` is added: the report.

    Args:
        calibration: (3, s, s) each, images as the evaluation transform makes them; read where `needs_calibration`.
        tested: batches of such images (b, 3, s, s) with their labels (b,), which the model has not been trained on.
        max_drop: percentage points of top-1 that the int8 file may lose on `tested`.

    Raises:
        UserError: onnxruntime cannot quantise the graph, or top-1 drops by more than `max_drop`; nothing is left behind
            and a file at `path` stays as it was.
    """
    check_max_drop(max_drop)
    reports: list[Int8Report] = []

    def write(temporary: Path) -> None:
        used = _quantise(file, temporary, calibration)
        report = _report(file, temporary, tested, used, max_drop)
        if report.drop > max_drop:
            raise UserError(f"in int8 top-1 drops by {report.drop:.1f} points, from {report.float_top1:.1%} to "
                            f"{report.int8_top1:.1%} of {report.images:,} test images, and "
                            f"{option('max_drop', max_drop)} allows less; nothing was written: allow more with a "
                            f"larger {option('max_drop')}, or stay in float32 with {option('int8', False)}")
        _write_metadata(file, temporary, {"int8": json.dumps(asdict(report))})
        reports.append(report)

    write_atomically(path, write)
    log.info("%s in int8: %s", path, reports[0])
    return reports[0]


def _quantise(file: Path, to: Path, calibration: Sequence[Tensor]) -> int:
    """Write the int8 graph with the metadata of `file`; returns how many images were used for calibration."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with _quietly():
            quant_pre_process(str(file), str(to), skip_symbolic_shape=True)
            graph, used = onnx.load(to), 0
            if len(_convolutions(graph)) > 1:
                kept, used = _of_the_trunk(graph), len(calibration)
                quantize_static(graph, str(to), _Reader(calibration), per_channel=True,  # pyright: ignore
                                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                                op_types_to_quantize=["Conv", *BETWEEN],
                                nodes_to_exclude=[node.name for node in graph.graph.node if node.name not in kept])
                graph = onnx.load(to)
            quantize_dynamic(graph, str(to), per_channel=True, weight_type=QuantType.QInt8,
                             op_types_to_quantize=["MatMul", "Gemm"])
    except Exception as error:    # of onnx, protobuf, onnxruntime and numpy
        raise UserError(f"onnxruntime cannot quantise the graph ({reason(error)}); stay in float32 with "
                        f"{option('int8', False)}") from error
    _write_metadata(file, to, {})
    return used


def _convolutions(graph: Any) -> list[Any]:
    return [node for node in graph.graph.node if node.op_type == "Conv"]


def _of_the_trunk(graph: Any) -> set[str]:
    """The names of the nodes from the image to the last convolutions, and of the activations that follow these.

    The method's own sums and clamps come after them, and must not be rounded.
    """
    made_by = {output: node for node in graph.graph.node for output in node.output}
    waiting, found = _convolutions(graph), set[str]()
    results = {output for node in waiting for output in node.output}
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found | {node.name for node in graph.graph.node
                    if node.op_type in ("Clip", "Relu") and node.input[0] in results}


class _Reader:
    """Images as onnxruntime's calibration asks for them."""

    def __init__(self, images: Sequence[Tensor]):
        self.batches = iter([torch.stack(list(images[first:first + CALIBRATION_BATCH]))
                             for first in range(0, len(images), CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}                    # (b, 3, s, s)


def _report(file: Path, quantised: Path, tested: Iterable[tuple[Tensor, Tensor]], used: int,
            max_drop: float) -> Int8Report:
    sessions = [session_of(each, spinning=False) for each in (file, quantised)]
    is_known, found, known, labels, speedup = _knowledge(sessions[0]), [], [], [], 1.0
    for images, truth in tested:                                                       # (b, 3, s, s), (b,)
        if not labels:
            speedup = _speedup(sessions, images[:TIMED])
        logits = torch.stack([_logits(session, images) for session in sessions])       # (2, b, c)
        found.append(logits.argmax(dim=2))                                             # (2, b)
        known.append(is_known(logits))
        labels.append(truth)
    said, right = torch.cat(found, dim=1), torch.cat(labels)                           # (2, n), (n,)
    before, after = ((row == right).double().mean().item() for row in said)
    return Int8Report(
        images=len(right), float_top1=before, int8_top1=after, drop=100 * (before - after),
        agreement=_same(said), known_agreement=None if known[0] is None else _same(torch.cat(known, dim=1)),
        float_bytes=file.stat().st_size, int8_bytes=quantised.stat().st_size, speedup=speedup,
        calibration_images=used, max_drop=max_drop)


def _knowledge(session: Any) -> Any:
    """Logits (2, b, c) -> (2, b) whether the score of the model's own is at its threshold or above, or None."""
    stored = session.get_modelmeta().custom_metadata_map.get("known")
    if stored is None:
        return lambda logits: None
    known = json.loads(stored)
    threshold = known["thresholds"][known["by"]]
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "probability": lambda logits: logits.softmax(dim=2).amax(dim=2), "logit": lambda logits: logits.amax(dim=2),
        "energy": lambda logits: logits.logsumexp(dim=2)}
    return lambda logits: scores[known["by"]](logits) >= (float("-inf") if threshold is None else threshold)


def _same(said: Tensor) -> float:
    """The share of the columns of (2, n) whose two values are equal."""
    return (said[0] == said[1]).double().mean().item()


def _logits(session: Any, images: Tensor) -> Tensor:
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])    # (b, c)


def _speedup(sessions: Sequence[Any], images: Tensor) -> float:
    """The median time of the first session by that of the second, taken in turns; the first round is not counted."""
    times: list[list[float]] = [[], []]
    for _ in range(1 + ROUNDS):
        for session, taken in zip(sessions, times, strict=True):
            begin = perf_counter()
            _logits(session, images)
            taken.append(perf_counter() - begin)
    before, after = (median(taken[1:]) for taken in times)
    return before / after


def _write_metadata(file: Path, quantised: Path, more: dict[str, str]) -> None:
    """Give the graph in `quantised` the metadata of `file`, without those of the quantiser, and `more`."""
    import onnx

    graph, before = onnx.load(quantised), onnx.load(file)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {entry.key: entry.value for entry in before.metadata_props} | more)
    onnx.save(graph, quantised)


@contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser talks to the root logger of every node that it leaves as it is."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
