"""All that compares the methods of one data set, world, protocol and backbone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from xrvlm import files
from xrvlm.reporting.baseline import Baseline, baseline_of
from xrvlm.reporting.paired import COVERAGE, Difference, paired_difference, recognised
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots import report as plots_report
from xrvlm.reporting.published import Published, published, source
from xrvlm.reporting.results import Setting, Shots, by_series, names, shot_counts, shots_order
from xrvlm.reporting.sections import Picture, Section, slugged
from xrvlm.reporting.tables import HEADLINES, Table, table_over_shots, with_column

COMPARED = 4                    # settings of one shot count from which on they are compared in a picture


@dataclass(frozen=True)
class Place:
    """A place of comparison with its tables, pictures and the sections of its methods."""

    whole: Table                         # all metrics, the differences and what others report
    over_shots: Table | None
    told: dict[Setting, str]             # the names of its rows
    baseline: Baseline                   # what the others are compared with
    differences: dict[Setting, Difference]
    published: Published                 # by others
    pictures: list[Picture]
    sections: list[Section] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.whole.rows[0].place

    @property
    def shown(self) -> list[Setting]:
        """Each method's setting of the most shots."""
        return (self.over_shots or self.whole).rows


def read_place(table: Table, wanted: str | None, root: Path, out: Path) -> Place:
    """`wanted` is the baseline as `baseline_of` takes it; runs lie below `root`, pictures go to `out`."""
    told, baseline, over_shots = names(table.rows), baseline_of(table.rows, wanted), table_over_shots(table)
    differences, unpaired = _differences(table, baseline, root)
    if baseline.settings:
        note = _about_differences(baseline.title, HEADLINES[table.rows[0].headline], unpaired)
        table = with_column(table, "Difference", [_compared(row, baseline, differences) for row in table.rows], note)
    others = published(table.rows, root)
    if any(others.of(row) is not None for row in table.rows):
        cells = ["-" if (score := others.of(row)) is None else f"{score:.1f}" for row in table.rows]
        table = with_column(table, "Published", cells, "published: top-1 that others report for the method at as many "
                            f"shots on a test part of as many images, not run here ({source()})")
    return Place(table, over_shots, told, baseline, differences, others, _pictures(table, told, baseline, out))


def shots_in_words(shots: Shots) -> str:
    return {0: "zero-shot", 1: "1 shot", "all": "all shots"}.get(shots, f"{shots} shots")


def _differences(table: Table, baseline: Baseline, root: Path) -> tuple[dict[Setting, Difference], dict[str, int]]:
    """What can be paired, and how many rows could not, by the reason."""
    found, unpaired = {}, Counter()
    read = lru_cache(maxsize=16)(recognised)         # the runs of a baseline are those of many rows
    for row in table.rows:
        other = baseline.of(row)
        if other is None:
            continue
        try:
            found[row] = paired_difference(row, other, root, read)
        except ValueError as error:
            unpaired[str(error)] += 1
    return found, unpaired


def _about_differences(baseline: str, measure: str, unpaired: Mapping[str, int]) -> str:
    note = (f"difference: points of {measure} above {baseline} on the same test images, mean over the seeds, in "
            f"brackets the {COVERAGE:.0%} interval of a bootstrap over the test images; it does not cover the draw of "
            "the shots")
    return "; ".join([note, *(f"no difference in {count} rows: {reason}" for reason, count in unpaired.items())])


def _compared(row: Setting, baseline: Baseline, differences: Mapping[Setting, Difference]) -> str:
    if row in differences:
        found = differences[row]
        return " ".join(found.told) + (f" ({found.seeds} seeds)" if found.seeds != row.seeds else "")
    return "baseline" if row in baseline.settings else "-"


def _pictures(table: Table, told: dict[Setting, str], baseline: Baseline, out: Path) -> list[Picture]:
    place = table.rows[0].place
    slug = slugged(place, files.digest(place)[:8])                           # the digest keeps "a b" and "a-b" apart
    coloured = {told[row] for row in baseline.settings}
    curves = ([_curves(table.rows, told, coloured, out / f"{slug}-shots.png")] if len(shot_counts(table.rows)) > 1
              else [])
    return [*curves, *_bars(table.rows, told, out, slug)]


def _curves(rows: list[Setting], told: dict[Setting, str], coloured: Collection[str], path: Path) -> Picture:
    series = {told[next(iter(points.values()))]: {shots: row.percent(row.headline) for shots, row in points.items()}
              for points in by_series(rows)}
    measure = HEADLINES[rows[0].headline]
    figure = plots_report.accuracy_over_shots(series, shot_counts(rows), title=rows[0].place, measure=measure,
                                              coloured=coloured)
    plots.save(figure, path)
    return Picture(path, f"{measure} over shots, {rows[0].place}")


def _bars(rows: list[Setting], told: dict[Setting, str], out: Path, slug: str) -> list[Picture]:
    """The picture of the settings of one shot count, the one that most share; nothing where these are few."""
    counted = Counter(row.first.shots for row in rows if row.first.shots != 0)
    shots = max(counted, key=lambda count: (counted[count], shots_order(count)), default=0)
    if counted[shots] < COMPARED:
        return []
    compared = [row for row in rows if row.first.shots == shots]
    flat = {told[row]: row.percent(row.headline)[0] for row in rows if row.first.shots == 0}
    measure, title = HEADLINES[rows[0].headline], f"{rows[0].place}, {shots_in_words(shots)}"
    figure = plots_report.bars({told[row]: row.values(row.headline) for row in compared}, flat=flat, title=title,
                        measure=measure)
    path = out / f"{slug}-{shots}shots-bars.png"
    plots.save(figure, path)
    return [Picture(path, f"{measure}, {title}")]
