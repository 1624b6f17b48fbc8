"""The difference between a method and a baseline on the same test images, with a confidence interval.

The interval is a percentile bootstrap over the test images (Efron, 1979): it covers the choice of the test images. The
trained models are fixed, so it does not cover the draw of the shots; the deviation over the seeds does.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from operator import itemgetter
from pathlib import Path

import numpy as np

from xrvlm.evaluation.metrics import PREDICTIONS, from_cell
from xrvlm.experiments.record import RunRecord
from xrvlm.files import file_text
from xrvlm.reporting.results import Row

REPLICATES, AT_ONCE = 10_000, 1_000      # resamples of the test images, in all and at a time, to bound the memory
COVERAGE = 0.95
OTHER_IMAGES = "tested on other images than the baseline, or on others with each seed"
# the files of each headline metric; the images of each file are resampled independently
FILES = {"top1": (PREDICTIONS,), "harmonic_mean": (PREDICTIONS, "predictions_new.csv")}

Hits = tuple[tuple[str, ...], np.ndarray]           # images, and for each whether its class was predicted


@dataclass(frozen=True)
class Difference:
    """Method minus baseline, in points of %."""

    mean: float
    low: float
    high: float
    seeds: int                           # how many both have

    @property
    def formatted(self) -> tuple[str, str]:
        """The mean and the interval: ("+3.1", "[+1.2, +5.1]")."""
        mean, low, high = (round(value, 1) + 0.0 for value in (self.mean, self.low, self.high))    # no "-0.0"
        return f"{mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired_difference(row: Row, baseline: Row, root: Path,
                      read: Callable[[Path], Hits] | None = None) -> Difference:
    """The mean difference of the headline metric over the runs of `row`, each paired with the run of the same seed.

    A zero-shot baseline has one result for every seed.

    Args:
        root: the folder that the runs' paths are relative to.
        read: reads a predictions.csv, as `read_hits` does; a cached one saves time over many rows.

    Raises:
        ValueError: the rows cannot be paired; the message is the reason.
    """
    pairs = [(run, other) for run in row.runs if (other := _partner(run, baseline)) is not None]
    if not pairs:
        raise ValueError("no seed in common with the baseline")
    if len({run.tested for pair in pairs for run in pair} - {""}) > 1:
        raise ValueError(OTHER_IMAGES)
    groups = [_paired_hits(pairs, file, root, read or read_hits) for file in FILES[row.headline]]
    score = _harmonic_mean if row.headline == "harmonic_mean" else _accuracy
    low, high = interval(groups, score)
    mean = score(*(hits.mean(1, keepdims=True).T for hits in groups)).item()
    return Difference(100 * mean, 100 * low, 100 * high, len({run.seed for run, _ in pairs}))


def _paired_hits(pairs: Sequence[tuple[RunRecord, RunRecord]], file: str, root: Path,
                 read: Callable[[Path], Hits]) -> np.ndarray:
    """(2 s, n): the hits of s runs, then those of their partners, on the same n images."""
    hits = {run.run: read(root / run.run / file) for pair in pairs for run in pair}
    if len({images for images, _ in hits.values()}) > 1:
        raise ValueError(OTHER_IMAGES)
    return np.stack([hits[run.run][1] for side in zip(*pairs, strict=True) for run in side])


def interval(groups: Sequence[np.ndarray], score: Callable[..., np.ndarray]) -> tuple[float, float]:
    """The percentiles of `score` when the images of each group are resampled with replacement.

    Images with the same hits in all runs are exchangeable, so the number of times that each such kind is drawn is
    multinomial. This is faster than drawing the images one by one. The draws are the same at every call.

    Args:
        groups: (r, n) each, whether each of r runs predicted the class of each of n images.
        score: maps the accuracies (b, r) of b resamples, one argument for each group, to (b,).
    """
    rng = np.random.default_rng(0)
    kinds = [np.unique(right, axis=1, return_counts=True) for right in groups]         # (r, k), (k,)
    scores = []
    for _ in range(REPLICATES // AT_ONCE):
        drawn = [rng.multinomial(counts.sum(), counts / counts.sum(), AT_ONCE) @ kind.T / counts.sum()
                 for kind, counts in kinds]                                             # (b, r)
        scores.append(score(*drawn))
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(np.concatenate(scores), [tail, 100 - tail])
    return float(low), float(high)


def _accuracy(right: np.ndarray) -> np.ndarray:
    """(b, 2 s) -> (b,): the mean of the s runs of the method minus that of the s runs of the baseline after them."""
    method, baseline = np.split(right, 2, axis=1)
    return (method - baseline).mean(1)


def _harmonic_mean(base: np.ndarray, new: np.ndarray) -> np.ndarray:
    return _accuracy(2 * base * new / np.maximum(base + new, 1e-12))


def _partner(run: RunRecord, baseline: Row) -> RunRecord | None:
    same = next((other for other in baseline.runs if other.seed == run.seed), None)
    return baseline.first if same is None and baseline.first.shots == 0 else same


def read_hits(path: Path) -> Hits:
    """The hits of a predictions.csv in the order of the images' names; ValueError with the reason if it is damaged."""
    try:
        outcomes = read_outcomes(path)
    except FileNotFoundError as error:
        raise ValueError(f"a run has no {path.name}") from error
    except (OSError, LookupError, csv.Error) as error:
        raise ValueError(f"a run's {path.name} cannot be read") from error
    order = np.argsort(outcomes.images)
    return tuple(np.array(outcomes.images)[order]), outcomes.right[order]


COLUMNS = ("image", "label", "prediction", "probability_1")


@dataclass(frozen=True)
class Outcomes:
    """The labelled test images of a run, in the order of the file."""

    images: list[str]
    labels: list[str]
    predictions: list[str]
    confidence: np.ndarray               # (n,) of the predicted class, 0..1

    @cached_property
    def right(self) -> np.ndarray:       # (n,)
        return np.array([label == guess for label, guess in zip(self.labels, self.predictions, strict=True)])

    @cached_property
    def by_pair(self) -> dict[tuple[str, str], list[str]]:
        """The images of each (true class, predicted class), the most confident first."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for index in np.argsort(-self.confidence, kind="stable"):
            found[self.labels[index], self.predictions[index]].append(self.images[index])
        return dict(found)


def read_outcomes(path: Path) -> Outcomes:
    """Read a predictions.csv; OSError, ValueError, LookupError or csv.Error if it is missing or damaged."""
    with StringIO(file_text(path), newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if lost := [name for name in COLUMNS if name not in header]:
            raise ValueError(f"no column {', '.join(lost)}")
        rows = list(map(itemgetter(*(header.index(name) for name in COLUMNS)), reader))
    if not rows or not all(label and guess for _, label, guess, _ in rows):
        raise ValueError("images without a label")
    *texts, confidence = (list(column) for column in zip(*rows, strict=True))
    images, labels, guesses = (list(map(from_cell, column)) for column in texts)
    return Outcomes(images, labels, guesses, np.array(confidence, dtype=np.float64))
