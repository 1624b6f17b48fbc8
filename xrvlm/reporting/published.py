"""What others report for a data set, a tower and a number of shots: published.json, to stand beside figures of ours.

All of it is measured on the test parts of CoOp's splits. A run is comparable where its data set's name, its tower and
the classes and test images of its `split.json` are the same: a folder called "dtd" and the official split of DTD have
another test part than CoOp's, the official split of Aircraft has CoOp's.
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
from xrvlm.files import read_json
from xrvlm.reporting.results import Setting

ZERO_SHOT = "CLIP zero-shot"


@dataclass(frozen=True)
class Published:
    """What others report that a place's rows may stand beside; `mismatch` says why nothing may."""

    top1: dict[str, float] = field(default_factory=dict)     # {method: %} at 16 shots, zero-shot without; ascending
    mismatch: str = ""

    def of(self, row: Setting) -> float | None:
        """What others report of the row's own method at its shots; None where nothing is known."""
        label, shots = row.first.label, row.first.shots
        free = row.first.prompts == "names" and shots == 0
        return self.top1.get(label) if (free if label == ZERO_SHOT else shots == _figures()["shots"]) else None


def source() -> str:
    """Where the figures are from, and how far to trust them."""
    return _figures()["source"]


def published(rows: Sequence[Setting], root: Path) -> Published:
    """Of the rows of one place, whose runs lie below `root`; empty where nothing is known of their data and tower."""
    figures, first = _figures(), rows[0].first
    place = _place(first)
    compared = {run.split: run for row in rows if row.first.shots in (figures["shots"], 0) for run in row.runs}
    if place is None or not compared:
        return Published()
    classes, images = figures["test_part"][place]
    found = {_test_part(root / run.run) for run in compared.values()}
    if found != {(classes, images)}:
        told = " and ".join(f"{part[1]:,} of {part[0]:,}" if part else "not told by its split.json"
                            for part in sorted(found, key=str))
        return Published(mismatch=f"What others report for {first.data} is left out: theirs is of a test part of "
                                  f"{images:,} images of {classes:,} classes, which is CoOp's, and here it is {told}.")
    column = list(figures["data"]).index(place)
    top1 = {method: row[column] for method, row in figures["top1"].items()}
    return Published(dict(sorted(top1.items(), key=lambda pair: pair[1])))


def _test_part(folder: Path) -> tuple[int, int] | None:
    """The numbers of classes and test images of a run, None where its split.json does not tell them."""
    try:
        split = read_json(folder / "split.json", "")
        return len(split["classes"]), len(split["test"])
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None


def _place(run: RunRecord) -> str | None:
    """The data set of published.json that the run's is called like, with a tower that the figures are of."""
    figures, name = _figures(), re.sub(r"[^a-z0-9]", "", run.data.lower())
    if run.backbone not in figures["backbones"] or run.protocol != "few_shot":
        return None
    return next((place for place, names in figures["data"].items() if name in names), None)


@cache
def _figures() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
