"""The same settings on several data sets, with their mean: how CoOp and all after it sum up a benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from xrvlm.reporting.results import VARIANTS, Setting, Shots, names, shot_counts, shots_order
from xrvlm.reporting.tables import HEADLINES, Table, score_cell

Row = dict[str, Setting]                 # a setting by its data set


@dataclass(frozen=True)
class Across:
    """The settings of one tower and protocol that were run on at least two data sets."""

    title: str
    over_shots: Table | None             # a row a method, a column a shot count: the means
    by_data: dict[Shots, Table]          # a row a method, a column a data set and the mean; the most shots first

    @property
    def tables(self) -> list[Table]:
        return [*([self.over_shots] if self.over_shots else []), *self.by_data.values()]


def across_data(rows: Sequence[Setting]) -> list[Across]:
    """Of all rows of a report. A data set counts where it shares a setting with another."""
    groups: dict[tuple, list[Setting]] = {}
    for row in rows:
        groups.setdefault((row.first.backbone, row.first.protocol, row.first.trained_on), []).append(row)
    found = ((group, *_shared(group)) for group in groups.values())
    return [_across(shared, doubtful) for _, shared, doubtful in found if shared]


def _shared(rows: Sequence[Setting]) -> tuple[list[Row], int]:
    """The settings of at least two data sets, and how many are left out, for one data set has several of the kind."""
    alike: dict[str, dict[str, list[Setting]]] = {}
    for row in rows:
        key = (row.label, *(getattr(row.first, name) for name in VARIANTS), row.first.options, row.first.shots)
        alike.setdefault(repr(key), {}).setdefault(_data(row), []).append(row)
    several = [found for found in alike.values() if len(found) > 1]
    clear = [found for found in several if all(len(same) == 1 for same in found.values())]
    return [{data: same[0] for data, same in found.items()} for found in clear], len(several) - len(clear)


def _data(row: Setting) -> str:
    return row.first.data + ("" if row.first.world is None else f" {row.first.world}")


def _across(rows: Sequence[Row], doubtful: int) -> Across:
    columns = list(dict.fromkeys(data for row in rows for data in row))
    first = next(iter(rows[0].values()))
    of = [first.first.backbone, first.first.protocol.replace("_", " ") if first.first.protocol != "few_shot" else "",
          f"trained on {first.first.trained_on}" if first.first.trained_on else ""]
    title = " · ".join(filter(None, [f"Mean over {len(columns)} data sets", *of]))
    told = names([next(iter(row.values())) for row in rows])
    counts = shot_counts(next(iter(row.values())) for row in rows) or [0]
    note = [f"{_counted(doubtful, 'setting')} left out, for a data set has several that only their config.yaml tells "
            "apart"] if doubtful else []
    by_data = {shots: _by_data(title, [row for row in rows if _shots(row) in (shots, 0)], columns, told, note)
               for shots in sorted(counts, key=shots_order, reverse=True)}
    return Across(title, _over_shots(title, rows, columns, told, counts) if len(counts) > 1 else None, by_data)


def _by_data(title: str, rows: Sequence[Row], columns: Sequence[str], told: dict[Setting, str],
             notes: list[str]) -> Table:
    means = [_mean(row, columns) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (_shots(rows[i]) != 0, means[i] is None, (means[i] or (0, 0))[0]))
    usual = statistics.mode([one.seeds for row in rows for one in row.values() if one.first.shots != 0] or [1])
    cells = [[told[next(iter(rows[i].values()))], *(score_cell(rows[i].get(data), usual) for data in columns),
              _told(means[i])] for i in order]
    firsts = [next(iter(rows[i].values())) for i in order]
    shots = "; ".join(dict.fromkeys(f"{row.first.shots} shots" for row in firsts if row.first.shots)) or "zero-shot"
    if incomplete := sum(mean is None for mean in means):
        notes = [f"no mean in {_counted(incomplete, 'row')} without one of the data sets", *notes]
    measure = HEADLINES[firsts[0].headline]
    caption = [title, shots, f"{measure} in %, mean ± sample standard deviation over the seeds, in the last column of "
                             "each seed's mean over the data sets", *notes]
    return Table("; ".join(caption) + ".",
                 ["Method", *columns, "Mean"], len(columns) + 1, firsts, cells)


def _over_shots(title: str, rows: Sequence[Row], columns: Sequence[str], told: dict[Setting, str],
                counts: Sequence[Shots]) -> Table:
    points: dict[str, dict[Shots, Row]] = {}
    for row in rows:
        if _mean(row, columns) is not None:
            points.setdefault(told[next(iter(row.values()))], {})[_shots(row)] = row
    used = [*([0] if any(0 in found for found in points.values()) else []), *counts]
    lines = []
    for name, found in points.items():
        last = max(found, key=shots_order)
        mean = _mean(found[last], columns)
        cells = [name, *(_told(_mean(found[shots], columns)) if shots in found else "-" for shots in used)]
        lines.append((shots_order(last), mean and mean[0], next(iter(found[last].values())), cells))
    lines.sort(key=lambda line: line[:2])
    return Table(f"{title}: {', '.join(columns)}; by the shots, only of methods that have all of these data sets.",
                 ["Method", *map(str, used)], len(used), [line[2] for line in lines], [line[3] for line in lines])


def _shots(row: Row) -> Shots:
    return next(iter(row.values())).first.shots


def _mean(row: Row, columns: Sequence[str]) -> tuple[float, float | None] | None:
    """Over the data sets, and its deviation over the seeds where all have the same; None where one is missing."""
    if set(row) != set(columns):
        return None
    settings = [row[data] for data in columns]
    mean = statistics.fmean(one.percent(one.headline)[0] for one in settings)
    seeds = {tuple(run.seed for run in one.runs) for one in settings}
    if len(seeds) > 1 or len(*seeds) < 2 or settings[0].first.shots == 0:
        return mean, None
    return mean, statistics.stdev(map(statistics.fmean, zip(*(one.values(one.headline) for one in settings),
                                                            strict=True)))


def _told(mean: tuple[float, float | None] | None) -> str:
    return "-" if mean is None else f"{mean[0]:.1f}" + ("" if mean[1] is None else f" ± {mean[1]:.1f}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"
