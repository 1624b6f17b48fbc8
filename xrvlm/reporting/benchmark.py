"""Tables and pictures that compare the methods of one benchmark: data set, world, protocol and backbone."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from xrvlm import files
from xrvlm.errors import option
from xrvlm.evaluation.text_tables import Table
from xrvlm.reporting.across import Across
from xrvlm.reporting.baseline import Baseline, baseline_of
from xrvlm.reporting.paired import COVERAGE, Difference, paired_difference, read_hits
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots import report as plots_report
from xrvlm.reporting.published import Published, published
from xrvlm.reporting.results import Row, Shots, by_curve, display_names, shot_counts, shots_order
from xrvlm.reporting.sections import Picture, Section, slugged
from xrvlm.reporting.tables import HEADLINES, table_over_shots, with_column
from xrvlm.text.class_text import few

COMPARED = 4                    # rows of one shot count from which on a picture compares them


@dataclass(frozen=True)
class Benchmark:
    """The tables, pictures and sections of the methods that were run on one benchmark."""

    all_metrics: Table                   # with the differences and the published results
    over_shots: Table | None
    names: dict[Row, str]                # of its rows
    baseline: Baseline                   # what the rows are compared with
    differences: dict[Row, Difference]
    published: Published                 # by other authors
    pictures: list[Picture]
    sections: list[Section] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.all_metrics.rows[0].benchmark

    def sentence(self, where: str) -> str:
        """What the best method comes to, for a reader who knows no metric; a transductive one does not count."""
        rows = self.all_metrics.rows
        best = max([row for row in rows if not row.first.transductive] or rows,
                   key=lambda row: row.percent(row.headline)[0])
        record, right = best.first, best.percent("top1")[0]
        labels = {0: "without a labelled image", "all": "with all labelled images"}.get(
            record.shots, f"with {record.shots} labelled image{'s' * (record.shots != 1)} a class")
        trained = f", trained on {record.trained_on}" if record.trained_on else ""
        kind, new = "", ""
        if record.protocol == "base_to_new":
            kind = " of the classes that it was trained on"
            new = f", and for {best.percent('new_top1')[0]:.0f} of others"
        tested = f" ({record.images:,} photos, {record.classes:,} classes)" if record.images else ""
        guess = f"; a guess would be right for {100 / record.classes:.2g}" if record.classes else ""
        return (f"On {where}, {record.label} {labels}{trained} is right for {right:.0f} of 100 test photos{kind}"
                f"{tested}{new}{guess}.")

    @property
    def tables(self) -> list[Table]:
        return [*([self.over_shots] if self.over_shots else []), self.all_metrics]

    @property
    def shown(self) -> list[Row]:
        """Each method's row of the most shots."""
        return (self.over_shots or self.all_metrics).rows


@dataclass(frozen=True)
class Contents:
    """What a report holds, whatever its format."""

    across: list[Across]
    benchmarks: list[Benchmark]
    runs: int                            # how many
    left_out: int                        # rows without a section
    pictures: Sequence[Picture]          # for the end
    folder: Path                         # of the report
    contradictions: Sequence[str]        # of the runs' files

    @property
    def caution(self) -> str:
        """What a reader must know of files that disagree; "" where they agree."""
        if not self.contradictions:
            return ""
        return (f"Caution: files of runs were changed, and the figures of these runs are not to be believed: "
                f"{few(self.contradictions)}. Do these runs again ({option('force', True)}).")

    @property
    def first_line(self) -> str:
        """One sentence of up to three benchmarks."""
        data = [benchmark.all_metrics.rows[0].first.data for benchmark in self.benchmarks]
        told = [benchmark.sentence(name if data.count(name) == 1 else benchmark.title).removesuffix(".")
                for benchmark, name in zip(self.benchmarks, data, strict=True)]
        more = [f"and so on for {len(told) - 3} more"] if len(told) > 3 else []
        return f"{'; '.join(told[:3] + more)}."


def read_benchmark(table: Table, wanted: str | None, root: Path, out: Path) -> Benchmark:
    """The benchmark of `table`, without sections.

    Args:
        table: of all metrics, as `tables` makes it.
        wanted: the baseline, see `baseline_of`.
        root: the folder that the runs' paths are relative to.
        out: where pictures are written.
    """
    names, baseline, over_shots = display_names(table.rows), baseline_of(table.rows, wanted), table_over_shots(table)
    differences, unpaired = _differences(table, baseline, root)
    if baseline.rows:
        note = _about_differences(baseline.title, HEADLINES[table.rows[0].headline], unpaired)
        table = with_column(table, "Difference", [_compared(row, baseline, differences) for row in table.rows], note)
    others = published(table.rows, root)
    if any(others.of(row) is not None for row in table.rows):
        cells = ["-" if (score := others.of(row)) is None else f"{score:.1f}" for row in table.rows]
        table = with_column(table, "Published", cells, "published: top-1 that other authors report for the method with "
                            f"as many shots on a test set of the same size, not run here ({others.source})")
    return Benchmark(table, over_shots, names, baseline, differences, others, _pictures(table, names, baseline, out))


def shots_in_words(shots: Shots) -> str:
    return {0: "zero-shot", 1: "1 shot", "all": "all shots"}.get(shots, f"{shots} shots")


def _differences(table: Table, baseline: Baseline, root: Path) -> tuple[dict[Row, Difference], dict[str, int]]:
    """The differences of the rows that can be paired, and the number of the others by the reason."""
    found, unpaired = {}, Counter()
    read = lru_cache(maxsize=16)(read_hits)          # many rows are compared with the same runs
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


def _compared(row: Row, baseline: Baseline, differences: Mapping[Row, Difference]) -> str:
    if row in differences:
        found = differences[row]
        return " ".join(found.formatted) + (f" ({found.seeds} seeds)" if found.seeds != row.seeds else "")
    return "baseline" if row in baseline.rows else "-"


def _pictures(table: Table, names: dict[Row, str], baseline: Baseline, out: Path) -> list[Picture]:
    title = table.rows[0].benchmark
    slug = slugged(title, files.digest(title)[:8])       # the digest distinguishes "a b" from "a-b"
    coloured = {names[row] for row in baseline.rows}
    curves = ([_curves(table.rows, names, coloured, out / f"{slug}-shots.png")] if len(shot_counts(table.rows)) > 1
              else [])
    return [*curves, *_bars(table.rows, names, out, slug)]


def _curves(rows: list[Row], names: dict[Row, str], coloured: Collection[str], path: Path) -> Picture:
    curves = {names[next(iter(points.values()))]: {shots: row.percent(row.headline) for shots, row in points.items()}
              for points in by_curve(rows)}
    measure = HEADLINES[rows[0].headline]
    figure = plots_report.accuracy_over_shots(curves, shot_counts(rows), title=rows[0].benchmark, measure=measure,
                                              coloured=coloured)
    plots.save(figure, path)
    return Picture(path, f"{measure} over shots, {rows[0].benchmark}")


def _bars(rows: list[Row], names: dict[Row, str], out: Path, slug: str) -> list[Picture]:
    """A picture of the rows of the most common shot count; none if these are few."""
    counted = Counter(row.first.shots for row in rows if row.first.shots != 0)
    shots = max(counted, key=lambda count: (counted[count], shots_order(count)), default=0)
    if counted[shots] < COMPARED:
        return []
    compared = [row for row in rows if row.first.shots == shots]
    flat = {names[row]: row.percent(row.headline)[0] for row in rows if row.first.shots == 0}
    measure, title = HEADLINES[rows[0].headline], f"{rows[0].benchmark}, {shots_in_words(shots)}"
    figure = plots_report.bars({names[row]: row.values(row.headline) for row in compared}, flat=flat, title=title,
                               measure=measure)
    path = out / f"{slug}-{shots}shots-bars.png"
    plots.save(figure, path)
    return [Picture(path, f"{measure}, {title}")]
