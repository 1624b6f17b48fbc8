"""The report of a folder of runs: its tables, and a picture of whatever a table cannot show.

`report.html` is one file with everything, `report.md` refers to pictures beside it, `tables.tex` holds only the tables.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from xrvlm import files
from xrvlm.distributed import Bar
from xrvlm.errors import typed, unknown
from xrvlm.evaluation.text_tables import escape, markdown, markdown_table
from xrvlm.experiments.record import contradiction
from xrvlm.experiments.saved import check_writable, inside
from xrvlm.experiments.saved import source_of as source_of_run
from xrvlm.reporting.across import across_data
from xrvlm.reporting.benchmark import Benchmark, Contents, read_benchmark, shots_in_words
from xrvlm.reporting.page import html_page
from xrvlm.reporting.results import read_records, with_distinguishing_options
from xrvlm.reporting.sections import Album, Picture, Section, read_section
from xrvlm.reporting.tables import latex_tables, tables, terminal_table
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """A written report."""

    markdown: Path                       # report.md, with pictures beside it
    html: Path                           # report.html
    latex: Path                          # tables.tex
    table: str                           # the results as aligned text for a terminal


@typed
def report(runs: str | Path = "runs", out: str | Path | None = None, *, baseline: str | None = None,
           all_shots: bool = False, photos: bool = True) -> Report:
    """Write the report of finished runs: report.md with its pictures, report.html and tables.tex.

    The tables come first, then a section for each method: the run of its first seed with the most shots.

    Args:
        runs: a folder of runs or one results.jsonl.
        out: the folder of the report; None: the folder `report` in that of the runs.
        baseline: the method that the others are compared with, by a name that the report shows, a label or a registry
            name, which options may follow: "zero_shot prompts=descriptions". None: the best zero-shot.
        all_shots: a section for each number of shots, not only for the most.
        photos: show test images that were confused, read from where the run's images were.

    Returns:
        The paths of the files, and the results as text for a terminal.

    Raises:
        UserError: there are no runs, a line of results.jsonl is damaged, or the baseline is unknown or ambiguous.
    """
    return write_report(files.user_path(runs), None if out is None else files.user_path(out), all_shots=all_shots,
                        baseline=baseline,
                        source_of=source_of_run if photos else None)


def write_report(runs: Path, out: Path | None = None, *, all_shots: bool = False, baseline: str | None = None,
                 source_of: Callable[[Path], ImageSource] | None = None, pictures: Sequence[Picture] = ()) -> Report:
    """As `report`, which has the other arguments.

    Args:
        source_of: the image source of a run's folder; None: no photos.
        pictures: shown at the end of the report; their files are in `out`.
    """
    root = files.folder_of(runs)
    out = out or inside(root, "report")
    check_writable(out)
    records = with_distinguishing_options(read_records(runs), root)
    benchmarks = [read_benchmark(table, baseline, root, out) for table in tables(records)]
    _check_baseline(baseline, benchmarks)
    left_out = _read_sections(benchmarks, root, out, Album(source_of), all_shots)
    across = across_data([row for benchmark in benchmarks for row in benchmark.all_metrics.rows])
    found = [contradiction(record, root / record.run) for record in records]
    found += [section.contradiction for benchmark in benchmarks for section in benchmark.sections]
    contents = Contents(across, benchmarks, len(records), left_out, pictures, out, [each for each in found if each])
    if contents.caution:
        log.warning(contents.caution)
    files.write_text(out / "report.md", _markdown(contents))
    files.write_text(out / "report.html", html_page(contents))
    written = latex_tables([table for each in (*across, *benchmarks) for table in each.tables])
    files.write_text(out / "tables.tex", written)
    return Report(out / "report.md", out / "report.html", out / "tables.tex", terminal_table(records))


def _check_baseline(baseline: str | None, benchmarks: Sequence[Benchmark]) -> None:
    if baseline is not None and not any(benchmark.baseline.rows for benchmark in benchmarks):
        raise unknown("baseline", baseline, {name for benchmark in benchmarks for name in benchmark.names.values()})


def _read_sections(benchmarks: Sequence[Benchmark], root: Path, out: Path, album: Album, all_shots: bool) -> int:
    """Give each benchmark its sections; returns how many rows have none."""
    shown = [(benchmark, row) for benchmark in benchmarks
             for row in (benchmark.all_metrics.rows if all_shots else benchmark.shown)]
    for benchmark, row in Bar(shown, desc="report", unit="run"):
        name = f"{benchmark.names[row]}, {shots_in_words(row.first.shots)}"
        benchmark.sections.append(read_section(row, name, root, out, album))
    return sum(len(benchmark.names) for benchmark in benchmarks) - len(shown)


def _markdown(contents: Contents) -> str:
    out, left_out = contents.folder, contents.left_out
    means = ["\n\n".join([f"## {escape(one.title)}", *map(markdown_table, one.tables)]) for one in contents.across]
    blocks = [f"# Results\n\n{escape(contents.first_line)}", escape(contents.caution), f"{contents.runs} runs.", *means,
              *(_overview(benchmark, out) for benchmark in contents.benchmarks), "## Each method"]
    if left_out:
        blocks.append(f"Each method with the most shots that it was run with; {left_out} row{'s' * (left_out > 1)} "
                      "with fewer shots left out here: `xrvlm report all_shots=true` shows every one.")
    blocks += [_section(section, out) for benchmark in contents.benchmarks for section in benchmark.sections]
    for picture in contents.pictures:
        blocks += [f"## {escape(picture.alternative)}", escape(picture.note), _picture(picture, out)]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _overview(benchmark: Benchmark, out: Path) -> str:
    """The tables and pictures that compare the methods of one benchmark."""
    blocks = [f"## {escape(benchmark.title)}"]
    if benchmark.over_shots:
        blocks.append(markdown_table(benchmark.over_shots))
    blocks += [_picture(picture, out) for picture in benchmark.pictures]
    blocks += ["### All metrics" if benchmark.over_shots else "", markdown_table(benchmark.all_metrics)]
    if benchmark.published.top1:
        rows = [[method, f"{score:.1f}"] for method, score in benchmark.published.top1.items()]
        blocks += ["### Published by others", "Top-1 % for this data set with as many classes and test images, this "
                   f"backbone and 16 shots (zero-shot with 0); not run here. Source: {benchmark.published.source}.",
                   markdown(["Method", "Top-1 %"], rows, numbers=1)]
    blocks.append(escape(benchmark.published.mismatch))
    return "\n\n".join(block.strip() for block in blocks if block)


def _section(section: Section, out: Path) -> str:
    first = section.row.first
    blocks = [f"### {escape(section.row.benchmark)}: {escape(section.name)}",
              f"The run of seed {first.seed}: {_link(first.run, section.folder, out)}"]
    if first.protocol == "base_to_new":
        blocks.append("Of the base classes; its `predictions_new.csv` and `predictions_all.csv` hold the others.")
    blocks += [escape(note) for note in section.notes]
    blocks += [markdown([*section.domain_titles], section.domains, numbers=4).strip()] if section.domains else []
    blocks += [f"`{file}` of this run cannot be read ({escape(why)})." if why else
               f"This run's folder holds no `{file}`." for file, why in section.missing]
    blocks += [_picture(picture, out) for picture in section.pictures]
    if section.confused is not None:
        blocks.append(_classes(section, section.confused))
    return "\n\n".join(blocks)


def _classes(section: Section, confused: Sequence[dict]) -> str:
    """The most confused pairs of classes, and the classes of the lowest accuracy."""
    pairs = [[row["true"], row["predicted"], str(row["count"]), f"{100 * row['share']:.1f}"] for row in confused]
    worst = [[row["class"], str(row["images"]), *("-" if row[key] is None else f"{100 * row[key]:.1f}"
                                                  for key in ("accuracy", "precision"))] for row in section.worst]
    table = (markdown(["True class", "Taken for", "Images", "% of the class"], pairs, numbers=2).strip() if pairs
             else "None: every image was predicted correctly.")
    return (f"Most confused pairs of {escape(section.name)}:\n\n{table}\n\n"
            f"Its worst classes:\n\n{markdown(['Class', 'Images', 'Accuracy %', 'Precision %'], worst, numbers=3)}")


def _picture(picture: Picture, out: Path) -> str:
    return "!" + _link(picture.alternative, picture.path, out)


def _link(text: str, target: Path, base: Path) -> str:
    return f"[{escape(text)}]({quote(Path(os.path.relpath(target, base)).as_posix())})"
