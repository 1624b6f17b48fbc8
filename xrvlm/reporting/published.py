"""Results that other authors published for a data set, a backbone and a number of shots: published.json.

One table is measured on the test sets of CoOp's splits, one is that of the XR-VLM paper on CUB. A run is comparable if
the name of its data set, its backbone (with the paper's resizing, where the name tells it) and the numbers of classes
and test images in its `split.json` are equal. The official split of DTD has another test set than CoOp's, the official
split of Aircraft has the same.
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
from xrvlm.reporting.results import Row, variant

ZERO_SHOT = "CLIP zero-shot"


@dataclass(frozen=True)
class Published:
    """The published results that are comparable with a benchmark; `mismatch` says why there are none."""

    top1: dict[str, float] = field(default_factory=dict)     # {method: %} with `shots`, zero-shot with 0; ascending
    mismatch: str = ""
    source: str = ""                     # where they are from, and which of them are less certain
    shots: int = 0

    def of(self, row: Row) -> float | None:
        """The published result of the row's method with its number of shots; None if there is none."""
        first = row.first
        free = first.prompts == "names" and first.shots == 0
        fits = free if first.label == ZERO_SHOT else first.shots == self.shots
        # the paper's own method: by its head, with its other options and its recipe as they are
        as_in_paper = not first.options.keys() - {"head"} and variant(first, "recipe") == "own"
        of_head = self.top1.get(f"{first.label}, head {first.head}") if as_in_paper else None
        return self.top1.get(first.label, of_head) if fits else None


def published(rows: Sequence[Row], root: Path) -> Published:
    """The results that are comparable with the rows of one benchmark, whose runs are below `root`."""
    first = rows[0].first
    table, key = next(((table, key) for table in _tables() if (key := _data_key(first, table))), (None, ""))
    if table is None:
        return Published()
    compared = {run.split: run for row in rows if row.first.shots in (table["shots"], 0) for run in row.runs}
    if not compared:
        return Published()
    classes, images = table["test_set"][key]
    found = {_test_set(root / run.run) for run in compared.values()}
    if found != {(classes, images)}:
        sizes = " and ".join(f"{size[1]:,} of {size[0]:,}" if size else "unknown, for its split.json does not hold it"
                             for size in sorted(found, key=str))
        return Published(mismatch=f"Results that others published for {first.data} are left out: they were measured "
                                  f"on {table['measured_on']} of {images:,} images of {classes:,} classes, and the "
                                  f"one here is {sizes}.")
    return _of(table, key)


def reported(data: str) -> Published:
    """What others report for a data set of this name, whether or not a run is comparable with it."""
    return next((_of(table, key) for table in _tables() if (key := _key(data, table))), Published())


def _of(table: dict[str, Any], key: str) -> Published:
    column = list(table["data"]).index(key)
    top1 = {method: row[column] for method, row in table["top1"].items()}
    return Published(dict(sorted(top1.items(), key=lambda pair: pair[1])), source=table["source"],
                     shots=table["shots"])


def _test_set(folder: Path) -> tuple[int, int] | None:
    """The numbers of classes and test images of a run, None if its split.json is missing or damaged."""
    try:
        split = split_record(folder / "split.json")
    except UserError:
        return None
    return len(split["classes"]), len(split["test"])


def _data_key(run: RunRecord, table: dict[str, Any]) -> str | None:
    """The key of the table's data set that matches the run's data set and backbone."""
    comparable = run.backbone in table["backbones"] and run.protocol == "few_shot"
    return _key(run.data, table) if comparable else None


def _key(data: str, table: dict[str, Any]) -> str | None:
    name = re.sub(r"[^a-z0-9]", "", data.lower())
    return next((key for key, names in table["data"].items() if name in names), None)


@cache
def _tables() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
