"""Which runs form a row: a *setting* is everything about a run but its seed, a *series* all but its seed and shots."""

import math
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xrvlm.experiments.record import RunRecord

# what may tell two rows of one table apart, beside the method's name and the shots; a column each where it does
VARIANTS = {"head": "Head", "prompts": "Prompts", "recipe": "Recipe", "features": "Features", "selection": "Selection"}
COLUMNS = ("data", "world", "protocol", "trained_on", "backbone", "method", "label", "transductive", *VARIANTS)
SETTING = (*COLUMNS, "shots", "setting")
SHOWN_OPTIONS = ("head", "part_prompts")          # which columns of VARIANTS show

Shots = int | str
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one setting, by seed: one row of a table."""

    runs: tuple[RunRecord, ...]
    series: Hashable = ()                # equal for the settings that differ in nothing but the shots
    mark: str = ""                       # the options that tell the row from another that is alike in every column
    code: str = ""                       # tells it from one that is alike in its options too

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def label(self) -> str:
        return self.first.label + " †" * self.first.transductive

    @property
    def place(self) -> str:
        world = "" if self.first.world is None else f" · world {self.first.world}"
        protocol = "" if self.first.protocol == "few_shot" else f" · {self.first.protocol.replace('_', ' ')}"
        if self.first.trained_on:
            protocol = f" · trained on {self.first.trained_on}"
        return f"{self.first.data}{world} · {self.first.backbone}{protocol}"

    @property
    def headline(self) -> str:
        """The metric that rows are ordered by."""
        return "harmonic_mean" if self.first.protocol == "base_to_new" else "top1"

    @property
    def seeds(self) -> int:
        return len({run.seed for run in self.runs})

    def values(self, metric: str) -> list[float]:
        """In %, a run each."""
        return [100 * run.metrics[metric] for run in self.runs]

    def percent(self, metric: str) -> tuple[float, float | None]:
        """The mean and the sample standard deviation over the runs; one run has no deviation."""
        values = self.values(metric)
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def settings(records: Sequence[RunRecord]) -> list[Setting]:
    """The settings by data set, world, backbone and protocol, then by shots, then by the headline metric."""
    # a copied run folder is no further seed: what differs in nothing but place, time and versions counts once
    once = {repr(replace(record, run="", train_seconds=0, versions={})): record for record in reversed(records)}
    ordered = sorted(once.values(), key=lambda record: (record.seed, record.run))
    rows = [Setting(tuple(runs)) for runs in _grouped(
        ordered, lambda run: (_fields(run, SETTING), run.setting or sorted(run.options.items())))]
    told = [row for alike in _grouped(rows, lambda row: _fields(row.first, COLUMNS)) for row in _marked(alike)]
    return sorted(told, key=_order)


def _marked(alike: list[Setting]) -> list[Setting]:
    """Rows that no column but the shots tells apart, with their series and with what tells these apart."""
    groups = _grouped(alike, lambda row: sorted(row.first.options.items()))
    marked = []
    for rows in groups:
        mark = _options(rows[0].first) if len(groups) > 1 else ""
        codes = {row: max(run.series for run in row.runs) for row in rows}           # older lines have none
        clear = len({row.first.shots for row in rows}) == len(rows) and len({*codes.values()} - {""}) < 2
        for row in rows:
            code = "" if clear else codes[row] or row.first.setting
            series = (*_fields(row.first, COLUMNS), repr(sorted(row.first.options.items())), code)
            marked.append(replace(row, series=series, mark=mark, code=f" [{code[:6]}]" if code else ""))
    return marked


def _options(record: RunRecord) -> str:
    """The method's options that no column shows: "(image_parts=1)"."""
    return _told({name: value for name, value in record.options.items() if name not in SHOWN_OPTIONS})


def _told(options: dict) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in options.items())})" if options else ""


def _order(row: Setting) -> tuple:
    first = row.first
    place = (first.data, -1 if first.world is None else first.world, first.backbone,
             first.protocol != "few_shot", first.protocol, first.trained_on)
    return (*place, shots_order(first.shots), row.percent(row.headline)[0], first.label)


def shots_order(shots: Shots) -> float:
    return math.inf if isinstance(shots, str) else shots


def shot_counts(rows: Iterable[Setting]) -> list[Shots]:
    """The numbers of shots that occur, ascending, zero-shot left out."""
    return sorted({row.first.shots for row in rows} - {0}, key=shots_order)


def by_series(rows: Iterable[Setting]) -> list[dict[Shots, Setting]]:
    """The settings of each series by their shots."""
    return [{row.first.shots: row for row in group} for group in _grouped(rows, lambda row: row.series)]


def variant(record: RunRecord, name: str) -> str:
    # a recipe is worth a column only where one is not the method's own
    own = (None, "none", record.method, re.sub(r"\W", "_", record.label.lower()))
    if name == "recipe" and record.recipe in own:
        return "own"
    return getattr(record, name) or "-"


def varying(rows: Iterable[Setting]) -> list[str]:
    """The names of VARIANTS in which the rows differ."""
    rows = list(rows)
    return [name for name in VARIANTS if len({variant(row.first, name) for row in rows}) > 1]


def names(rows: Sequence[Setting]) -> dict[Setting, str]:
    """A name to each series that tells its method from those of the others: "XR-VLM (head=alignment)".

    Options tell a method's rows apart as far as they do, then the variants. A row that changes nothing is plain.
    """
    named = {}
    for alike in _grouped(rows, lambda row: row.label):
        every = {name for row in alike for name in row.first.options}
        differ = {name for name in every if len({repr(row.first.options.get(name, ...)) for row in alike}) > 1}
        told = {row: _told({name: value for name, value in row.first.options.items() if name in differ})
                for row in alike}
        also = {name for group in _grouped(alike, told.__getitem__) for name in varying(group)}
        for row in alike:
            words = [row.label, *(variant(row.first, name) for name in VARIANTS if name in also)]
            named[row] = ", ".join(words) + told[row] + row.code
    return named


def _fields(record: RunRecord, fields: Sequence[str]) -> tuple:
    return tuple(getattr(record, name) for name in fields)


def _grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """The items of equal key together, in the order in which the keys occur first."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(repr(key(item)), []).append(item)
    return list(groups.values())


NO_SETTING = ("runs", "seed", "shots", "force", "device", "workers", "method")    # or told by the record


def told_apart(records: Sequence[RunRecord], root: Path) -> list[RunRecord]:
    """The records, with such options among their `options`: "templates=ensemble" for text.templates.

    Where two series of one data set are alike in all that a record tells, every option in which they differ is told of
    both, and of the same method on other data sets and with other prompts. Where a file is missing the records stay as
    they are, and tables tell the rows apart by codes. `root` is what the runs' paths are relative to.
    """
    alike: dict[str, list[RunRecord]] = {}
    for record in records:
        fields = [getattr(record, name) for name in COLUMNS if name not in ("data", "world", "prompts")]
        alike.setdefault(repr((fields, sorted(record.options.items()))), []).append(record)
    told = {record.run: options for group in alike.values() for record, options in _differing(group, root)}
    return [replace(record, options=record.options | told.get(record.run, {})) for record in records]


def _differing(group: Sequence[RunRecord], root: Path) -> list[tuple[RunRecord, dict[str, Any]]]:
    places: dict[tuple, dict[str, RunRecord]] = {}           # of what a table holds apart, a run of each series
    for record in group:
        places.setdefault((record.data, record.world, record.prompts), {}).setdefault(record.series, record)
    if all(len(series) == 1 for series in places.values()) or any("" in series for series in places.values()):
        return []
    try:
        read = {code: _read(root, record)
                for series in places.values() for code, record in series.items()}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return []
    keys = sorted({key for series in places.values() for key in {name for code in series for name in read[code]}
                   if len({repr(read[code].get(key)) for code in series}) > 1
                   and (key != "data.root" or len({record.tested for record in series.values()}) > 1)})
    return [(record, {key.rpartition(".")[2]: _short(read[record.series].get(key), 1 + (key == "data.root"))
                      for key in keys})
            for record in group]


def _read(root: Path, record: RunRecord) -> dict[str, Any]:
    options = _flat(yaml.safe_load((root / record.run / "config.yaml").read_text(encoding="utf-8")))
    steps = record.recipe != "none"          # without any a recipe is not read
    return {key: value for key, value in options.items() if steps or not key.startswith("recipe.")}


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in options.items():
        if before == "data.":
            flat |= {"data.root": value} if name == "root" else {}
        elif before or name not in NO_SETTING:
            flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _short(value: Any, parts: int) -> Any:
    """The last `parts` of a path."""
    return "/".join(Path(value).parts[-parts:]) if isinstance(value, str) and "/" in value else value
