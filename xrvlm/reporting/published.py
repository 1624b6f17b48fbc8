"""Results that other authors published for a data set, a backbone and a number of shots: published.json.

All are measured on the test sets of CoOp's splits. A run is comparable if the name of its data set, its backbone and
the numbers of classes and test images in its `split.json` are equal. The official split of DTD has another test set
than CoOp's, the official split of Aircraft has the same.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from xrvlm.errors import UserError
from xrvlm.experiments.record import RunRecord
from xrvlm.experiments.saved import split_record
from xrvlm.reporting.results import Row

ZERO_SHOT = "CLIP zero-shot"


@dataclass(frozen=True)
class Published:
    """The published results that are comparable with a benchmark; `mismatch` says why there are none."""

    top1: dict[str, float] = field(default_factory=dict)     # {method: %} with 16 shots, zero-shot with 0; ascending
    mismatch: str = ""

    def of(self, row: Row) -> float | None:
        """The published result of the row's method with its number of shots; None if there is none."""
        label, shots = row.first.label, row.first.shots
        free = row.first.prompts == "names" and shots == 0
        return self.top1.get(label) if (free if label == ZERO_SHOT else shots == _figures()["shots"]) else None


def source() -> str:
    """Where the results are from, and which of them are less certain."""
    return _figures()["source"]


def published(rows: Sequence[Row], root: Path) -> Published:
    """The results that are comparable with the rows of one benchmark, whose runs are below `root`."""
    figures, first = _figures(), rows[0].first
    key = _data_key(first)
    compared = {run.split: run for row in rows if row.first.shots in (figures["shots"], 0) for run in row.runs}
    if key is None or not compared:
        return Published()
    classes, images = figures["test_set"][key]
    found = {_test_set(root / run.run) for run in compared.values()}
    if found != {(classes, images)}:
        sizes = " and ".join(f"{size[1]:,} of {size[0]:,}" if size else "unknown, for its split.json does not hold it"
                             for size in sorted(found, key=str))
        return Published(mismatch=f"Results that others published for {first.data} are left out: they were measured "
                                  f"on CoOp's test set of {images:,} images of {classes:,} classes, and the one here "
                                  f"is {sizes}.")
    column = list(figures["data"]).index(key)
    top1 = {method: row[column] for method, row in figures["top1"].items()}
    return Published(dict(sorted(top1.items(), key=lambda pair: pair[1])))


def _test_set(folder: Path) -> tuple[int, int] | None:
    """The numbers of classes and test images of a run, None if its split.json is missing or damaged."""
    try:
        split = split_record(folder / "split.json")
    except UserError:
        return None
    return len(split["classes"]), len(split["test"])


def _data_key(run: RunRecord) -> str | None:
    """Published data-set key that matches the run's data set and backbone."""
    figures, name = _figures(), re.sub(r"[^a-z0-9]", "", run.data.lower())
    if run.backbone not in figures["backbones"] or run.protocol != "few_shot":
        return None
    return next((key for key, names in figures["data"].items() if name in names), None)


@cache
def _figures() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
