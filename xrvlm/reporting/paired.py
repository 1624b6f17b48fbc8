"""How much better than a baseline a method does on the same test images, with an interval that says how sure that is.

The interval is a percentile bootstrap over the test images (Efron, 1979): it tells what other test images of the same
kind would change. The trained models stay as they are, so it does not cover the draw of the shots; the deviation over
the seeds does.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np

from xrvlm.experiments.record import PREDICTIONS, RunRecord
from xrvlm.reporting.results import Setting

REPLICATES, AT_ONCE = 10_000, 1_000      # resamples of the test images; so many of them at a time, for the memory
COVERAGE = 0.95
OTHER_IMAGES = "tested on other images than the baseline, or on others with each seed"
# the files of each headline metric; the images of each are resampled by themselves
FILES = {"top1": (PREDICTIONS,), "harmonic_mean": (PREDICTIONS, "predictions_new.csv")}

Right = tuple[tuple[str, ...], np.ndarray]          # images, and for each whether it was recognised


@dataclass(frozen=True)
class Difference:
    """Method minus baseline, in points of %."""

    mean: float
    low: float
    high: float
    seeds: int                           # that both have

    @property
    def told(self) -> tuple[str, str]:
        """The mean and the interval: "+3.1", "[+1.2, +5.1]"."""
        mean, low, high = (round(value, 1) + 0.0 for value in (self.mean, self.low, self.high))    # no "-0.0"
        return f"{mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired_difference(row: Setting, baseline: Setting, root: Path,
                      read: Callable[[Path], Right] | None = None) -> Difference:
    """Of the headline metric: the mean over the runs of `row`, each against the baseline's run of the same seed.

    A zero-shot baseline has one result for every seed. `root` is the folder that the runs' paths are relative to,
    `read` is `recognised`, or what keeps its results for the next call. Raises ValueError, which says why, where the
    two cannot be paired.
    """
    read = read or recognised
    pairs = [(run, other) for run in row.runs if (other := _partner(run, baseline)) is not None]
    if not pairs:
        raise ValueError("no seed in common with the baseline")
    if len({run.tested for pair in pairs for run in pair} - {""}) > 1:
        raise ValueError(OTHER_IMAGES)
    groups = []
    for file in FILES[row.headline]:
        runs = {run.run: read(root / run.run / file) for pair in pairs for run in pair}
        if len({images for images, _ in runs.values()}) > 1:
            raise ValueError(OTHER_IMAGES)
        groups.append(np.stack([runs[run.run][1] for pair in zip(*pairs, strict=True) for run in pair]))    # (2 s, n)
    score = _harmonic_mean if row.headline == "harmonic_mean" else _accuracy
    low, high = interval(groups, score)
    mean = score(*(right.mean(1, keepdims=True).T for right in groups)).item()
    return Difference(100 * mean, 100 * low, 100 * high, len({run.seed for run, _ in pairs}))


def interval(groups: Sequence[np.ndarray], score: Callable[..., np.ndarray]) -> tuple[float, float]:
    """The percentiles of `score` when the images of each group (r, n) are drawn anew with replacement.

    `groups` hold for r runs whether each image was recognised, `score` maps their accuracies (b, r), one a group, to
    (b,). Images that all runs treat alike are exchangeable: how often each such kind is drawn is multinomial, which
    is the same as drawing the images one by one, and fast. The draws are the same at every call.
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
    """(b, 2 s) -> (b,): the mean of the first half, the method's runs, less that of the second, the baseline's."""
    method, baseline = np.split(right, 2, axis=1)
    return (method - baseline).mean(1)


def _harmonic_mean(base: np.ndarray, new: np.ndarray) -> np.ndarray:
    return _accuracy(2 * base * new / np.maximum(base + new, 1e-12))


def _partner(run: RunRecord, baseline: Setting) -> RunRecord | None:
    same = next((other for other in baseline.runs if other.seed == run.seed), None)
    return baseline.first if same is None and baseline.first.shots == 0 else same


def recognised(path: Path) -> Right:
    """Of a predictions.csv, the images in the order of their names; ValueError, which says why, where it is none."""
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
        for place in np.argsort(-self.confidence, kind="stable"):
            found[self.labels[place], self.predictions[place]].append(self.images[place])
        return dict(found)


def read_outcomes(path: Path) -> Outcomes:
    """OSError, ValueError, LookupError or csv.Error where there is no such file or it is damaged."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if lost := [name for name in COLUMNS if name not in header]:
            raise ValueError(f"no column {', '.join(lost)}")
        rows = list(map(itemgetter(*(header.index(name) for name in COLUMNS)), reader))
    if not rows or not all(label and guess for _, label, guess, _ in rows):
        raise ValueError("images without a label")
    images, labels, guesses, confidence = (list(column) for column in zip(*rows, strict=True))
    return Outcomes(images, labels, guesses, np.array(confidence, dtype=np.float64))
