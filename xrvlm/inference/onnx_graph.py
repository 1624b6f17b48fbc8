"""A module of torch as an ONNX graph, and what onnxruntime says of it: the common part of all exports."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from xrvlm.errors import UserError, option
from xrvlm.files import check_replaceable, is_writable, user_path

TOLERANCE = 1e-4                         # of the largest logit, or of the largest number of an embedding
MOST_BYTES = 2e9                         # of weights; a protobuf, which an ONNX file is, ends at 2 GiB


def require_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"an export to ONNX needs {', '.join(missing)}: run `pip install 'xrvlm[onnx]'`")


def checked_path(path: Path | str) -> Path:
    """`path`, expanded; UserError before the work, which takes minutes, where no ONNX file can be written to it."""
    path = user_path(path)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{path} must end in .onnx: an ONNX file is what is written (`Classifier.save` writes others)")
    check_replaceable(path)
    if path.is_dir() or not is_writable(path):
        why = "it is a folder" if path.is_dir() else f"{path.parent} is no folder that you may write to"
        raise UserError(f"cannot write {path}: {why}; name another file with {option('out', 'FILE.onnx')}")
    return path


def graph_of(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], what: str, tower: str) -> Any:
    """torch's ONNXProgram of `module`, weights included; the first axis of every input is free.

    Args:
        inputs: an example of each input, by its name, in the order of the module's arguments.
        what: for errors, what is exported; `tower`: whose weights it holds.

    Raises:
        UserError: torch cannot export the module, or it has more weights than an ONNX file can hold.
    """
    try:
        with torch.no_grad(), _quietly():    # no_grad once around all: each block of it would be a graph of its own
            program: Any = torch.onnx.export(
                module, tuple(inputs.values()), dynamo=True, verbose=False, input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes={name: {0: torch.export.Dim("batch", min=1)} for name in inputs})
    except Exception as error:    # whatever an operator, a tracer or a converter stumbles on
        raise UserError(f"torch cannot export {what}: {reason(error)}; choose another backbone or method, or another "
                        "version of torch") from error
    graph = program.model.graph
    for value in [*(value for node in graph for value in node.outputs), *graph.initializers.values()]:
        if value.name in outputs and not value.is_graph_output():    # torch names values by its operators: "embedding"
            value.name = f"{value.name}_within"
    size = sum(value.const_value.nbytes for value in graph.initializers.values())
    if size > MOST_BYTES:
        raise UserError(f"{tower} has {size / 1e9:.1f} GB of weights, an ONNX file holds 2 GB: choose a smaller "
                        "backbone")
    return program


def answers(path: Path, feeds: Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
    """The outputs of the file at `path` for each of `feeds`; UserError where onnxruntime does not accept the file."""
    try:
        session = session_of(path)
        return [[torch.from_numpy(value) for value in
                 session.run(None, {name: value.numpy() for name, value in feed.items()})] for feed in feeds]
    except Exception as error:    # onnxruntime's own exceptions share no base
        raise UserError(f"onnxruntime does not run the exported graph ({reason(error)}), nothing was written; another "
                        "version of torch or onnxruntime may, or choose another backbone") from error


def session_of(path: Path, *, spinning: bool = True) -> Any:
    """onnxruntime on the CPU. Its threads spin while they wait, which slows down every other session."""
    import onnxruntime

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_agreement(worst: float, what: str) -> float:
    """`worst`, how far a graph is from torch as a share of the largest `what`; UserError where that is too far."""
    if not worst <= TOLERANCE:    # not a number is no agreement either
        raise UserError(f"the exported graph differs from torch by {worst:.1e} of the largest {what}, {TOLERANCE:.0e} "
                        "is allowed; nothing was written: try another version of torch, or choose another backbone")
    return worst


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of its own internals, and of optimisations that it leaves to others."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason(error: BaseException) -> str:
    """The first cause in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
