"""What a run said of each test image, as its predictions.csv holds it."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np

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
