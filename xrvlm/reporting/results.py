"""Rows of a table: the runs that differ in nothing but the seed, how rows are ordered and how they are named."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from xrvlm.errors import UserError
from xrvlm.files import RESULTS, file_text, parsed

if TYPE_CHECKING:                        # it imports torch, which a table does not need
    from xrvlm.experiments.record import RunRecord

# fields of a record, beside the method's name and the shots, in which two rows of one table may differ; shown as
# columns where they do
VARIANTS = {"head": "Head", "prompts": "Prompts", "recipe": "Recipe", "features": "Features", "selection": "Selection",
            "calibrate": "Calibration"}
COLUMNS = ("data", "world", "protocol", "trained_on", "backbone", "method", "label", "transductive", *VARIANTS)
IDENTITY = (*COLUMNS, "shots", "setting")
OPTIONS_IN_COLUMNS = ("head", "part_prompts")     # method options that the columns of VARIANTS show

Shots = int | str
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one configuration, one or more for each seed, by seed."""

    runs: tuple[RunRecord, ...]
    curve: Hashable = ()                 # equal for rows that differ only in the number of shots
    options_suffix: str = ""             # " (image_parts=1)": options of a row whose columns equal those of another
    hash_suffix: str = ""                # " [1a2b3c]": of a row whose options equal those of another too
    test_set: str = ""                   # " · test set 1a2b3c": where data of the same name have other test images

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def label(self) -> str:
        return self.first.label + " †" * self.first.transductive

    @property
    def identity(self) -> tuple:
        return _fields(self.first, IDENTITY)

    @property
    def benchmark(self) -> str:
        """The data set, world, backbone and protocol in words: rows of one benchmark are compared with each other."""
        world = "" if self.first.world is None else f" · world {self.first.world}"
        protocol = "" if self.first.protocol == "few_shot" else f" · {self.first.protocol.replace('_', ' ')}"
        if self.first.trained_on:
            protocol = f" · trained on {self.first.trained_on}"
        return f"{self.first.data}{world} · {self.first.backbone}{protocol}{self.test_set}"

    @property
    def headline(self) -> str:
        """The metric that rows are ordered by."""
        return "harmonic_mean" if self.first.protocol == "base_to_new" else "top1"

    @property
    def seeds(self) -> int:
        return len({run.seed for run in self.runs})

    def values(self, metric: str) -> list[float]:
        """The metric of each run, in %."""
        return [100 * run.metrics[metric] for run in self.runs]

    def percent(self, metric: str) -> tuple[float, float | None]:
        """The mean and the sample standard deviation over the runs; one run has no deviation."""
        values = self.values(metric)
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rows_of(records: Sequence[RunRecord]) -> list[Row]:
    """The rows by data set, world, backbone and protocol, then by shots, then by the headline metric."""
    # a copied run folder is not another seed: records that differ only in folder, time and versions count once
    # of those the first, or one that says how many images there were
    later = sorted(enumerate(records), key=lambda pair: (pair[1].images, -pair[0]))
    unique = {repr(replace(record, run="", train_seconds=0, versions={}, images=0, classes=0)): record
              for _, record in later}
    ordered = sorted(unique.values(), key=lambda record: (record.seed, record.run))
    found = [Row(tuple(runs)) for runs in grouped(
        ordered, lambda run: (_fields(run, IDENTITY), run.setting or sorted(run.options.items())))]
    found = [row for rows in grouped(found, lambda row: row.benchmark) for row in _by_test_set(rows)]
    same_columns = grouped(found, lambda row: (_fields(row.first, COLUMNS), row.test_set))
    return sorted((row for group in same_columns for row in _with_suffixes(group)), key=_order)


def _by_test_set(rows: list[Row]) -> list[Row]:
    """Rows on data of one name: where their test images are not the same, each is marked with a hash of its own."""
    if len({row.first.tested for row in rows} - {""}) < 2:               # "" in records of older versions
        return rows
    return [replace(row, test_set=f" · test set {row.first.tested[:6] or 'not recorded'}") for row in rows]


def _with_suffixes(same_columns: list[Row]) -> list[Row]:
    """Rows that are equal in every column but the shots, each with its curve and suffixes."""
    groups = grouped(same_columns, lambda row: sorted(row.first.options.items()))
    finished = []
    for group in groups:
        options = group[0].first.options
        suffix = _in_brackets(options, options.keys() - OPTIONS_IN_COLUMNS) if len(groups) > 1 else ""
        hashes = {row: max(run.series for run in row.runs) for row in group}      # "" in records of older versions
        one_curve = len({row.first.shots for row in group}) == len(group) and len({*hashes.values()} - {""}) < 2
        for row in group:
            code = "" if one_curve else hashes[row] or row.first.setting
            curve = (*_fields(row.first, COLUMNS), repr(sorted(options.items())), code, row.test_set)
            finished.append(replace(row, curve=curve, options_suffix=suffix,
                                    hash_suffix=f" [{code[:6]}]" if code else ""))
    return finished


def _in_brackets(options: Mapping[str, Any], shown: Iterable[str]) -> str:
    words = [f"{name}={value}" for name, value in options.items() if name in set(shown)]
    return f" ({', '.join(words)})" if words else ""


def _order(row: Row) -> tuple:
    first = row.first
    benchmark = (first.data, -1 if first.world is None else first.world, first.backbone,
                 first.protocol != "few_shot", first.protocol, first.trained_on, row.test_set)
    return (*benchmark, shots_order(first.shots), row.percent(row.headline)[0], first.label)


def shots_order(shots: Shots) -> float:
    return math.inf if isinstance(shots, str) else shots


def shot_counts(rows: Iterable[Row]) -> list[Shots]:
    """The numbers of shots that occur, ascending, zero-shot left out."""
    return sorted({row.first.shots for row in rows} - {0}, key=shots_order)


def by_curve(rows: Iterable[Row]) -> list[dict[Shots, Row]]:
    """The rows of each curve by their shots."""
    return [{row.first.shots: row for row in group} for group in grouped(rows, lambda row: row.curve)]


def variant(record: RunRecord, name: str) -> str:
    """What the column `name` of VARIANTS shows: "own" for the method's own recipe, "-" for nothing."""
    own = (None, "none", record.method, re.sub(r"\W", "_", record.label.lower()))
    if name == "recipe" and record.recipe in own:
        return "own"
    return getattr(record, name) or "-"


def varying(rows: Iterable[Row]) -> list[str]:
    """The names of VARIANTS in which the rows differ."""
    differ = _differing([{name: variant(row.first, name) for name in VARIANTS} for row in rows])
    return [name for name in VARIANTS if name in differ]


def display_names(rows: Sequence[Row]) -> dict[Row, str]:
    """The name of each row's method, different for each curve: "XR-VLM (head=alignment)".

    A name holds the options in which rows of one label differ, then the variants in which rows of equal options differ.
    A row with the default options has the plain label.
    """
    named = {}
    for same_label in grouped(rows, lambda row: row.label):
        differ = _differing([row.first.options for row in same_label])
        options = {row: _in_brackets(row.first.options, differ) for row in same_label}
        variants = {name for same_options in grouped(same_label, options.__getitem__) for name in varying(same_options)}
        for row in same_label:
            words = [row.label, *(variant(row.first, name) for name in VARIANTS if name in variants)]
            named[row] = ", ".join(words) + options[row] + row.hash_suffix
    return named


def grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """The items of equal key together, in the order in which the keys occur first."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(repr(key(item)), []).append(item)
    return list(groups.values())


def _fields(record: RunRecord, fields: Sequence[str]) -> tuple:
    return tuple(getattr(record, name) for name in fields)


def _differing(mappings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys whose values are not equal in all mappings; a key that one of them lacks is among these."""
    keys = {key for mapping in mappings for key in mapping}
    return {key for key in keys if len({repr(mapping.get(key, ...)) for mapping in mappings}) > 1}


# ---- options that only the config.yaml of a run tells

# top-level keys of config.yaml that a record has as a field, or that do not change a result
NOT_COMPARED = ("runs", "seed", "shots", "force", "device", "workers", "method")


def with_distinguishing_options(records: Sequence[RunRecord], root: Path) -> list[RunRecord]:
    """The records; where they cannot tell two series apart, with what differs in the config.yaml of their runs.

    Such an option is added to `options`, "templates=ensemble" for text.templates, of both series and of the same method
    on other data sets and with other prompts. Where a config.yaml is missing or damaged the records stay as they are,
    and tables tell the rows apart by a hash. `root` is the folder that the runs' paths are relative to.
    """
    fields = [name for name in COLUMNS if name not in ("data", "world", "prompts")]
    same_method = grouped(records, lambda record: (_fields(record, fields), sorted(record.options.items())))
    added = {run: options for group in same_method for run, options in _config_differences(group, root).items()}
    return [replace(record, options=record.options | added.get(record.run, {})) for record in records]


def _config_differences(records: Sequence[RunRecord], root: Path) -> dict[str, dict[str, Any]]:
    """The options by run in which series of one table differ; empty where each table has one series."""
    tables = [{record.series: record for record in reversed(group)}
              for group in grouped(records, lambda record: (record.data, record.world, record.prompts))]
    if all(len(table) == 1 for table in tables) or any("" in table for table in tables):
        return {}
    try:
        configs = {series: _config(root, record) for table in tables for series, record in table.items()}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}
    keys = sorted({key for table in tables for key in _differing_keys(table, configs)})
    return {record.run: {key.rpartition(".")[2]: _short(key, configs[record.series].get(key)) for key in keys}
            for record in records}


def _differing_keys(table: Mapping[str, RunRecord], configs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    keys = _differing([configs[series] for series in table])
    same_images = len({record.tested for record in table.values()}) == 1
    return keys - {"data.root"} if same_images else keys


def _config(root: Path, record: RunRecord) -> dict[str, Any]:
    """The options of the run's config.yaml that may distinguish it, by their full keys, without those that are null."""
    config = yaml.safe_load(file_text(root / record.run / "config.yaml"))
    options = _flat({name: value for name, value in config.items() if name not in NOT_COMPARED})
    # of the data only the root may differ within a table; a method without training steps ignores the recipe
    ignored = ("data.", "recipe.") if record.recipe == "none" else ("data.",)
    return {key: value for key, value in options.items()
            if value is not None and (key == "data.root" or not key.startswith(ignored))}


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(key: str, value: Any) -> Any:
    """The name of a file, and the last two folders of data.root."""
    if isinstance(value, str) and "/" in value:
        return "/".join(Path(value).parts[-2 if key == "data.root" else -1:])
    return value


def read_records(path: Path) -> list[RunRecord]:
    """The records of a .jsonl file, or of every results.jsonl below a folder; each run once, the last line wins.

    Their `run` is relative to the folder `path`, or to the folder of the file. Keys of a newer version are ignored.
    """
    root, sources = (path, sorted(path.rglob(RESULTS))) if path.is_dir() else (path.parent, [path])
    found: dict[Path, RunRecord] = {}
    if missing := [source for source in sources if not source.is_file()]:
        raise UserError(f"there is no {missing[0]}; pass a folder of runs or a {RESULTS}")
    for source in sources:
        for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
            if line.strip():
                record = _parse(line, f"{source}, line {number}")
                folder = source.parent / record.run
                found[folder.resolve()] = replace(record, run=Path(os.path.relpath(folder, root)).as_posix())
    if not found:
        raise UserError(f"{path} holds no results yet; run `xrvlm adapt` first, or pass the folder that it wrote to")
    return list(found.values())


def _parse(line: bytes, where: str) -> RunRecord:
    from xrvlm.experiments.record import RunRecord

    try:
        value = parsed(line.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        # a field with a default is missing in older lines; one without must be there
        known: dict[str, Any] = {
            each.name: value.get(each.name) for each in fields(RunRecord)
            if value.get(each.name) is not None or (each.default is MISSING and each.default_factory is MISSING)}
        return RunRecord(**known)
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); delete that line, then give the `xrvlm adapt` command of its "
                        "run again (a finished run is not trained twice, it only writes its line again)") from error
