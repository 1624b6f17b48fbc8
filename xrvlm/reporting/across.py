"""Methods that were run on several data sets, with their means over these: CoOp's way to sum up a benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from xrvlm.evaluation.text_tables import Table
from xrvlm.reporting.results import VARIANTS, Row, Shots, display_names, grouped, shot_counts, shots_order
from xrvlm.reporting.tables import HEADLINES, score_cell


@dataclass(frozen=True)
class Across:
    """The methods of one backbone and protocol that were run on at least two data sets."""

    title: str
    over_shots: Table | None             # the means, with a row for each method and a column for each shot count
    by_data: dict[Shots, Table]          # a row for each method, a column for each data set; most shots first

    @property
    def tables(self) -> list[Table]:
        return [*([self.over_shots] if self.over_shots else []), *self.by_data.values()]


@dataclass(frozen=True, eq=False)
class _Method:
    """One configuration with a row for each data set that it was run on."""

    rows: dict[str, Row]                 # by the data set
    name: str = ""                       # different for each configuration

    @property
    def first(self) -> Row:
        return next(iter(self.rows.values()))

    @property
    def shots(self) -> Shots:
        return self.first.first.shots

    @cached_property
    def mean(self) -> tuple[float, float | None]:
        """Over the data sets, with the sample standard deviation over the seeds where all have the same seeds."""
        rows = list(self.rows.values())
        mean = statistics.fmean(row.percent(row.headline)[0] for row in rows)
        seeds = {tuple(run.seed for run in row.runs) for row in rows}
        if len(seeds) > 1 or len(*seeds) < 2 or self.shots == 0:
            return mean, None
        by_seed = zip(*(row.values(row.headline) for row in rows), strict=True)
        return mean, statistics.stdev(map(statistics.fmean, by_seed))


def across_data(rows: Sequence[Row]) -> list[Across]:
    """The means of all rows of a report. A data set counts where it shares a configuration with another."""
    groups = grouped(rows, lambda row: (row.first.backbone, row.first.protocol, row.first.trained_on))
    return [_across(methods, left_out) for methods, left_out in map(_shared, groups) if methods]


def _shared(rows: Sequence[Row]) -> tuple[list[_Method], int]:
    """The configurations run on at least two data sets, and how many are left out as ambiguous on a data set."""
    same = grouped(rows, lambda row: (row.label, *(getattr(row.first, name) for name in VARIANTS), row.first.options,
                                      row.first.shots))
    found = [(group, {_data(row): row for row in group}) for group in same]
    several = [(group, by_data) for group, by_data in found if len(by_data) > 1]
    clear = [by_data for group, by_data in several if len(group) == len(by_data)]
    names = display_names([next(iter(by_data.values())) for by_data in clear])
    return [_Method(by_data, names[next(iter(by_data.values()))]) for by_data in clear], len(several) - len(clear)


def _data(row: Row) -> str:
    return row.first.data + ("" if row.first.world is None else f" {row.first.world}")


def _across(methods: Sequence[_Method], left_out: int) -> Across:
    columns = list(dict.fromkeys(data for method in methods for data in method.rows))
    run = methods[0].first.first
    words = [run.backbone, run.protocol.replace("_", " ") if run.protocol != "few_shot" else "",
             f"trained on {run.trained_on}" if run.trained_on else ""]
    title = " · ".join(filter(None, [f"Mean over {len(columns)} data sets", *words]))
    counts = shot_counts(method.first for method in methods) or [0]
    notes = [f"{_counted(left_out, 'method')} left out: on one data set several rows differ only in their config.yaml"
             ] if left_out else []
    by_data = {shots: _by_data(title, [method for method in methods if method.shots in (shots, 0)], columns, notes)
               for shots in sorted(counts, key=shots_order, reverse=True)}
    return Across(title, _over_shots(title, methods, columns, counts) if len(counts) > 1 else None, by_data)


def _by_data(title: str, methods: Sequence[_Method], columns: Sequence[str], notes: list[str]) -> Table:
    ordered = sorted(methods, key=lambda method: (method.shots != 0, *_mean_order(method, columns)))
    usual = statistics.mode([row.seeds for method in methods for row in method.rows.values()
                             if row.first.shots != 0] or [1])
    cells = [[method.name, *(score_cell(method.rows.get(data), usual) for data in columns), _mean_cell(method, columns)]
             for method in ordered]
    firsts = [method.first for method in ordered]
    shots = "; ".join(dict.fromkeys(f"{method.shots} shots" for method in ordered if method.shots)) or "zero-shot"
    if incomplete := sum(not _complete(method, columns) for method in methods):
        notes = [f"no mean in {_counted(incomplete, 'row')}: not run on all data sets", *notes]
    measure = HEADLINES[firsts[0].headline]
    caption = [title, shots, f"{measure} in %, mean ± sample standard deviation over the seeds, in the last column of "
                             "each seed's mean over the data sets", *notes]
    return Table("; ".join(caption) + ".", ["Method", *columns, "Mean"], len(columns) + 1, firsts, cells)


def _over_shots(title: str, methods: Sequence[_Method], columns: Sequence[str], counts: Sequence[Shots]) -> Table:
    complete = [method for method in methods if _complete(method, columns)]
    curves = [{method.shots: method for method in group} for group in grouped(complete, lambda method: method.name)]
    curves.sort(key=lambda curve: (shots_order(last := _last(curve)), curve[last].mean[0]))
    used = [*([0] if any(0 in curve for curve in curves) else []), *counts]
    cells = [[curve[_last(curve)].name, *(_mean_cell(curve.get(shots), columns) for shots in used)] for curve in curves]
    return Table(f"{title}: {', '.join(columns)}; over the shots, only methods run on all of these data sets.",
                 ["Method", *map(str, used)], len(used), [curve[_last(curve)].first for curve in curves], cells)


def _last(curve: dict[Shots, _Method]) -> Shots:
    return max(curve, key=shots_order)


def _complete(method: _Method, columns: Sequence[str]) -> bool:
    return set(method.rows) == set(columns)


def _mean_order(method: _Method, columns: Sequence[str]) -> tuple[bool, float]:
    return (False, method.mean[0]) if _complete(method, columns) else (True, 0)


def _mean_cell(method: _Method | None, columns: Sequence[str]) -> str:
    if method is None or not _complete(method, columns):
        return "-"
    mean, deviation = method.mean
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"
