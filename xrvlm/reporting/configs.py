"""What tells runs apart that no field of their records does: the options in which their config.yaml files differ."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from xrvlm.records import RunRecord
from xrvlm.settings import COLUMNS

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
