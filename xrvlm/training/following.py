"""Where a run is followed while it trains: in TensorBoard, trackio or wandb, or by an object of your own.

A run that is not followed calls nothing here and imports no tracker.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from xrvlm.errors import UserError, option
from xrvlm.evaluation.metrics import METRICS

log = logging.getLogger(__name__)
PROJECT = "xrvlm"                        # of the runs in trackio and wandb
# of the figures at the end, those that are not of the test images
NOT_OF_TEST = {"val_top1": "best_val_top1", "train_seconds": "train_seconds"}


class Follower:
    """Is told of a run while it trains; subclass it and override what you want to hear of.

    An exception in it is warned of once, and the run goes on without it. What it prints goes to the error stream.
    """

    def begin(self, folder: Path, options: Mapping[str, Any], resumed: bool) -> None:
        """Before the training: the run's folder, its options by their keys ("recipe.epochs"), whether it goes on."""

    def epoch(self, entry: Mapping[str, float]) -> None:
        """After an epoch: its line of losses.csv. `epoch` counts on where a run goes on; the last may come twice."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """At the end: the run's metrics and its `train_seconds`; nothing, where it was stopped or failed."""


Follow = Literal["none", "tensorboard", "trackio", "wandb"] | Follower


def follower_of(follow: Follow) -> Follower:
    """The follower that `follow`, which is not "none", names. UserError where its package cannot be imported."""
    if isinstance(follow, Follower):
        return follow
    return TensorBoard() if follow == "tensorboard" else Tracker(follow)


@contextmanager
def following(follow: Follow, folder: Path, options: Mapping[str, Any], resumed: bool) -> Iterator[Follower]:
    """Inside, the run in `folder` is followed; a follower that fails is warned of and left."""
    follower = _Guard(follower_of(follow), follow if isinstance(follow, str) else type(follow).__name__)
    follower.begin(folder, dict(_flat(options)), resumed)
    try:
        yield follower
    finally:
        follower.finish({})              # of a run that did not come to its end; else it is told already


class TensorBoard(Follower):
    """Curves and hyper-parameters in `tensorboard/NAME` beside the run's folder."""

    def __init__(self):
        _imported("torch.utils.tensorboard", "SummaryWriter", "tensorboard")

    def begin(self, folder: Path, options: Mapping[str, Any], resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # a run that starts again takes the place of its earlier curves
        self.writer = SummaryWriter(str(folder.parent / "tensorboard" / folder.name), purge_step=None if resumed else 0)
        self.step = 0
        first, begun, self.ended = hparams(dict(options), {f"test/{name}": 0.0 for name in METRICS})
        for summary in (first, begun):
            self._file.add_summary(summary)

    @property
    def _file(self) -> Any:
        return self.writer._get_file_writer()

    def epoch(self, entry: Mapping[str, float]) -> None:
        self.step = int(entry["epoch"])
        self._write({name: value for name, value in entry.items() if name != "epoch"})

    def finish(self, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._write(_at_the_end(metrics))
            self._file.add_summary(self.ended)
        self.writer.close()

    def _write(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.step)
        self.writer.flush()              # to be read now, and there if the run is killed


class Tracker(Follower):
    """A run in trackio, or in wandb, whose calls trackio has.

    Args:
        module: the package that has `init`, `log` and `finish`.
        project: where its runs stand; None: what WANDB_PROJECT or TRACKIO_PROJECT names, else xrvlm.

    Raises:
        UserError: the package cannot be imported.
    """

    def __init__(self, module: str, *, project: str | None = None):
        self.module, self.library = module, _imported(module, "init", module)
        self.project = project or os.environ.get(f"{module.upper()}_PROJECT") or PROJECT

    def begin(self, folder: Path, options: Mapping[str, Any], resumed: bool) -> None:
        given = {"project": self.project, "name": folder.name, "config": dict(options)}
        if self.module == "wandb":       # which knows a run by its id alone, and replaces one that is not resumed
            given |= {"id": folder.name.rpartition("-")[2], "resume": "allow" if resumed else None}
        else:
            given |= {"resume": "allow" if resumed else "never", "embed": False}
        self.library.init(**given)

    def epoch(self, entry: Mapping[str, float]) -> None:
        self.library.log(dict(entry), step=int(entry["epoch"]))

    def finish(self, metrics: Mapping[str, float]) -> None:
        if metrics:
            self.library.log(_at_the_end(metrics))
        self.library.finish()


class _Guard(Follower):
    """Tells `follower` until it fails or the run has ended."""

    def __init__(self, follower: Follower, name: str):
        self.follower, self.name, self.over = follower, name, False

    def begin(self, folder: Path, options: Mapping[str, Any], resumed: bool) -> None:
        self._tell("begin", folder, options, resumed)

    def epoch(self, entry: Mapping[str, float]) -> None:
        self._tell("epoch", entry)

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._tell("finish", metrics)
        self.over = True

    def _tell(self, event: str, *news: Any) -> None:
        if self.over:
            return
        try:
            with _quiet():
                getattr(self.follower, event)(*news)
        except Exception as error:
            log.warning("%s follows this run no longer, which goes on (%s: %s)", self.name, type(error).__name__, error)
            self.over = True
            if event != "finish":
                with suppress(Exception), _quiet():
                    self.follower.finish({})


def _imported(module: str, needed: str, package: str) -> Any:
    try:
        with _quiet():
            found = import_module(module)
        # a folder that has the name of a package, such as ./wandb, which wandb makes, is imported too
        getattr(found, needed)
    except Exception as error:           # a package that is there may fail in many ways
        extra = "xrvlm[follow]" if package in ("tensorboard", "trackio") else package
        raise UserError(f"{option('follow', package)} cannot import {package} ({type(error).__name__}: {error}): "
                        f"pip install '{extra}'") from error
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no warning is shown, and what is printed goes to the error stream: results alone go to the output."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _at_the_end(metrics: Mapping[str, float]) -> dict[str, float]:
    return {NOT_OF_TEST.get(name, f"test/{name}"): value for name, value in metrics.items()
            if isinstance(value, int | float)}


def _flat(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Options in groups as one list: {"recipe": {"epochs": 5}} as ("recipe.epochs", 5); lists are texts."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value if isinstance(value, bool | int | float | str) else str(value)
