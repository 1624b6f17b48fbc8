"""Calibrate a run: what its method says of labelled images that it has not learned, from folds or from `val`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import Dataset, Item, Split
from xrvlm.distributed import processes
from xrvlm.errors import UserError, option
from xrvlm.evaluation.conformal import SET_SCORES, coverage_table, misfit, sets
from xrvlm.evaluation.metrics import brier, calibration_bins, expected_calibration_error, nll, predicted
from xrvlm.experiments.record import RunFolder, RunOptions
from xrvlm.features.source import FeatureSource
from xrvlm.files import write_atomically, write_json
from xrvlm.inference.calibration import Calibration, HeldOut, check_positions, held_out_of, local_of
from xrvlm.methods.base import Method, Recipe
from xrvlm.text.class_text import few
from xrvlm.training.fit import learn
from xrvlm.training.folds import folds_of, out_of_fold, rows_of
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)
FOLDS = 5
COVERAGES, SHARE = (0.8, 0.9, 0.95), 0.95      # that calibration.json measures


def check_unread(options: RunOptions, protocol: str) -> None:
    """UserError for options that a run without a calibration does not read."""
    if options.scaling != "temperature":
        raise UserError(f"{option('scaling', options.scaling)} is not read without a calibration: add "
                        f"{option('calibrate', 'folds')}")
    if protocol != "open_set":
        raise UserError(f"{option('known_by', options.known_by)} is not read without a calibration or "
                        f"{option('protocol', 'open_set')}: add {option('calibrate', 'folds')}")


def check_calibration(options: RunOptions, method: Method, clip: FrozenCLIP, split: Split,
                      source: ImageSource) -> None:
    """UserError where the images that are to calibrate `method` are chosen by, or are not there."""
    by = option("calibrate", options.calibrate)
    if type(method).class_probabilities is not Method.class_probabilities:
        raise UserError(f"{method.label} makes its probabilities without logits, which is what a calibration scales: "
                        f"leave {by} out")
    if options.calibrate == "folds" and method.transductive and method.learns:
        raise UserError(f"{method.label} reads the images that it is asked about, and those of a fold are others than "
                        f"the test images: use {option('calibrate', 'val')}")
    check_positions(clip, options.known_by)
    if options.calibrate == options.selection:
        raise UserError(f"{by} needs images that chose nothing else, and {option('selection', 'val')} chooses the"
                        f" epoch by them: use {option('calibrate', 'folds')}, or {option('selection', 'last')}")
    found = split.val if options.calibrate == "val" else split.train
    if not found:
        raise UserError(f"{by} needs validation images, and the shots take all: use fewer {option('shots')}, or "
                        f"{option('calibrate', 'folds')}")
    if options.calibrate == "folds" and method.learns:
        folds_of(split.train, source, FOLDS, 0)      # raises UserError where nothing can be held out
    missing = sorted(set(range(len(split.classes))) - {item.label for item in found})
    if missing:
        log.warning("%d of %d classes have no image to calibrate on, what it promises is of the others: %s",
                    len(missing), len(split.classes), few(split.classes[label] for label in missing))


class Setup(Protocol):
    """What is read here of a run."""

    @property
    def clip(self) -> FrozenCLIP: ...
    @property
    def method(self) -> Method: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def dataset(self) -> Dataset: ...
    @property
    def split(self) -> Split: ...
    @property
    def seed(self) -> int: ...
    @property
    def options(self) -> RunOptions: ...
    @property
    def folder(self) -> RunFolder: ...

    def source(self, items: tuple[Item, ...], views: int, needs: frozenset[Need] | None = None) -> FeatureSource: ...


def calibrate(run: Setup, fresh: Method, train: FeatureSource | None, val: FeatureSource | None) -> Calibration:
    """What the method of `run`, which was trained, knows of itself; its logits are scaled from here on.

    `fresh` is the same method before its training, for the folds.
    """
    if run.options.calibrate == "val":
        assert val is not None, "see check_calibration"
        found, items = held_out_of(run.method, run.clip, val), run.split.val
    elif not run.method.learns:
        assert train is not None, "see check_calibration"
        found, items = held_out_of(run.method, run.clip, train), run.split.train
    else:
        assert train is not None, "see check_calibration"
        fold = folds_of(run.split.train, run.dataset.source, FOLDS, run.seed)
        found = _from_folds(run, fresh, train, val, fold)
        items = tuple(run.split.train[row] for row in rows_of(fold).tolist())
    calibration = Calibration.of(_with_local(run, found, items), run.options.calibrate, run.options.scaling,
                                 run.options.known_by)
    run.method.scaling = calibration.header.scaling
    return calibration


def _from_folds(run: Setup, fresh: Method, train: FeatureSource, val: FeatureSource | None, fold: Tensor) -> HeldOut:
    group, partial = processes(), run.folder.unfinished[1]
    done: dict[str, Tensor] = group.from_first(lambda: _read(partial))

    def learned(method: Method, support: FeatureSource, held: FeatureSource) -> None:
        learn(method, run.clip, run.recipe, seed=run.seed, train=support, val=val, test=held,
              selection=run.options.selection)

    def keep(finished: dict[str, Tensor]) -> None:
        log.info("calibration: fold %d of %d", len(finished), FOLDS)
        if group.first:
            write_atomically(partial, lambda path: save_file(finished, path))

    logits = out_of_fold(fresh, run.method, run.clip, train, fold, learned, done=done, keep=keep)
    return HeldOut(logits, train.labels[rows_of(fold)])


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s is damaged (%s): its folds are trained again", path, error)
        return {}


def figures(calibration: Calibration, test: HeldOut) -> dict[str, Any]:
    """What the calibration is worth on test images: the content of calibration.json."""
    header, labels = calibration.header, test.labels
    logits = test.logits.double()
    before, after = logits.softmax(1), header.scaling(logits).softmax(1)
    return {"by": header.by, "images": header.images, "temperature": header.scaling.temperature,
            "vector": bool(header.scaling.weight),
            "before": _quality(before, labels), "after": _quality(after, labels),
            "sets": [{"score": name, "asked": asked, **coverage_table(
                sets(misfit(name, before), calibration.limit(name, asked)), labels)}
                for name in SET_SCORES for asked in COVERAGES],
            "known": {name: {"asked": SHARE, "kept": (scores >= calibration.threshold(name, SHARE)).double().mean()
                             .item()} for name, scores in test.scores().items()}}


def _quality(chances: Tensor, labels: Tensor) -> dict[str, Any]:
    bins = calibration_bins(chances.amax(1), predicted(chances) == labels)
    return {"ece": expected_calibration_error(chances, labels), "nll": nll(chances, labels),
            "brier": brier(chances, labels), "reliability": bins.tolist()}


def write_figures(run: Setup, calibration: Calibration, source: FeatureSource) -> dict[str, float]:
    """calibration.json in the run's folder, of its test images; returns the figures before, for the run's record."""
    test = _with_local(run, held_out_of(run.method, run.clip, source), run.split.test)
    found = figures(calibration, test)
    write_json(run.folder.path / "calibration.json", found)
    return {f"{name}_before": found["before"][name] for name in ("ece", "nll", "brier")}


def _with_local(run: Setup, found: HeldOut, items: tuple[Item, ...]) -> HeldOut:
    """`found` with what GL-MCM reads of the positions of `items`, where the run says unknown by it."""
    if run.options.known_by != "gl_mcm":
        return found
    source = run.source(items, 0, frozenset({"tokens"}))
    return replace(found, local=local_of(run.clip, run.method.classes, source))
