"""Tables of results: the mean and the sample standard deviation over the seeds, of every metric or over the shots.

There is one table for each benchmark: data set, world, protocol and backbone.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from xrvlm.evaluation.text_tables import Table, aligned_table
from xrvlm.reporting.results import (
    VARIANTS,
    Row,
    Shots,
    by_curve,
    rows_of,
    shot_counts,
    shots_order,
    variant,
    varying,
)

if TYPE_CHECKING:                        # it imports torch, which a table does not need
    from xrvlm.experiments.record import RunRecord

HEADLINES = {"top1": "top-1", "harmonic_mean": "harmonic mean"}


def tables(records: Sequence[RunRecord]) -> list[Table]:
    """A table for each benchmark, its rows by shots, then by the headline metric."""
    return [_table(list(group)) for _, group in groupby(rows_of(records), key=lambda row: row.benchmark)]


def _table(rows: list[Row]) -> Table:
    variants = varying(rows)
    caption = [*_shared(rows, variants), "values in %, mean ± sample standard deviation over the seeds"]
    if rows[0].first.protocol == "base_to_new":
        caption.append("top-1 of the base classes, which were trained on, and of the new classes, each among its "
                       "half of the classes, the harmonic mean of the two, and top-1 of all images among all classes")
    numbers = ["Shots", "Labels", "Seeds", *rows[0].first.shown.values(), "Time s", "Learned"]
    header = ["Method", *(VARIANTS[name] for name in variants), *numbers]
    cells = [[*_words(row, variants), *_numbers(row)] for row in rows]
    return Table("; ".join([*caption, *_notes(rows)]) + ".", header, len(numbers), rows, cells)


def table_over_shots(table: Table) -> Table | None:
    """The headline metric, with a row for each method and a column for each shot count; None below two shot counts.

    Zero-shot has a separate column. A cell names its number of seeds where most cells have another number.
    """
    counts = shot_counts(table.rows)
    if len(counts) < 2:
        return None
    curves = sorted(by_curve(table.rows), key=_rank)
    rows = [_last(points) for points in curves]
    variants = [name for name in varying(rows) if len({variant(row.first, name) for row in rows} - {"-"}) > 1]
    # zero-shot does not depend on the seed: it is left out when the usual number of seeds is counted
    seeds = Counter(row.seeds for row in table.rows if row.first.shots != 0)
    usual = max(seeds, key=lambda number: (seeds[number], number))
    columns = [*([0] if any(0 in points for points in curves) else []), *counts]
    cells = [[*_words(row, variants), *(score_cell(points.get(count), usual) for count in columns)]
             for row, points in zip(rows, curves, strict=True)]
    spread = "mean ± sample standard deviation over " if max(seeds) > 1 else ""
    caption = [*_shared(rows, variants), f"{HEADLINES[rows[0].headline]} in % by the shots",
               f"{spread}{usual} seed{'s' * (usual > 1)}, rows by their last score"]
    if len(seeds) > 1:
        caption.append("(n): of n seeds")
    return Table("; ".join([*caption, *_notes(table.rows)]) + ".",
                 ["Method", *(VARIANTS[name] for name in variants), *map(str, columns)], len(columns), rows, cells)


def with_column(table: Table, heading: str, cells: Sequence[str], note: str) -> Table:
    """The table with another column at its end, one cell for each row, and `note` added to the caption."""
    rows = [[*row, cell] for row, cell in zip(table.cells, cells, strict=True)]
    return replace(table, caption=f"{table.caption.removesuffix('.')}; {note}.", header=[*table.header, heading],
                   numbers=table.numbers + 1, cells=rows)


def _last(points: dict[Shots, Row]) -> Row:
    return points[max(points, key=shots_order)]


def _rank(points: dict[Shots, Row]) -> tuple[float, float]:
    """By the most shots, then by the score there: zero-shot first, then methods without a score in the last column."""
    last = _last(points)
    return shots_order(last.first.shots), last.percent(last.headline)[0]


def score_cell(row: Row | None, usual: int) -> str:
    """The headline metric, with the number of seeds where it is not the usual one."""
    if row is None:
        return "-"
    mean, deviation = row.percent(row.headline)
    marked = f" ({row.seeds})" if row.first.shots != 0 and row.seeds != usual else ""
    shown = deviation is not None and (deviation > 0 or row.first.shots != 0)    # zero-shot does not depend on the seed
    return f"{mean:.1f}{f' ± {deviation:.1f}' if shown else ''}{marked}"


def _words(row: Row, variants: Sequence[str]) -> list[str]:
    return [row.label + row.options_suffix + row.hash_suffix, *(variant(row.first, name) for name in variants)]


def _numbers(row: Row) -> list[str]:
    return [
        str(row.first.shots), _span(run.label_budget for run in row.runs),
        str(row.seeds) if row.seeds == len(row.runs) else f"{row.seeds} ({len(row.runs)} runs)",
        *(_score(row, name) for name in row.first.shown),
        f"{statistics.fmean(run.train_seconds for run in row.runs):.1f}",
        _span(run.learned_parameters for run in row.runs),
    ]


def _score(row: Row, metric: str) -> str:
    mean, deviation = row.percent(metric)
    with_deviation = metric == row.headline or row.first.protocol == "base_to_new"
    return f"{mean:.1f}{f' ± {deviation:.1f}' if with_deviation and deviation is not None else ''}"


def _shared(rows: list[Row], variants: Sequence[str]) -> list[str]:
    """The benchmark, and what else all rows have in common."""
    shared = {name: {variant(row.first, name) for row in rows} - {"-"} for name in VARIANTS if name not in variants}
    same = [f"{VARIANTS[name].lower()}: {value}" for name in shared for value in shared[name]]
    return [rows[0].benchmark, *tested(rows), *same]


def tested(rows: Iterable[Row]) -> list[str]:
    """How many images the rows were scored on, among how many classes; empty where an older record does not say."""
    found = sorted({(run.images, run.classes) for row in rows for run in row.runs if run.images and run.classes})
    if not found:
        return []
    images, classes = (_span(numbers) for numbers in zip(*found, strict=True))
    chances = sorted({f"{100 / count:.1f}" for _, count in found}, key=float)
    return [f"{images} test images in {classes} classes", f"chance {' to '.join(chances[:1] + chances[1:][-1:])}"]


def _notes(rows: list[Row]) -> list[str]:
    notes = {
        "† transductive: saw the test images, without labels": any(row.first.transductive for row in rows),
        "rows with [...] differ in options that no column shows: compare their config.yaml":
            any(row.hash_suffix for row in rows),
        "a row of more runs than seeds mixes runs that differ in options that no column shows, or in figures alone":
            any(row.seeds < len(row.runs) for row in rows),
    }
    return [note for note, true in notes.items() if true]


def terminal_table(records: Sequence[RunRecord], *, width: int = 120) -> str:
    """The tables as aligned text; words that would make a line longer than `width` wrap within their column.

    With several shot counts only the table over the shots is shown, without the one of all metrics.
    """
    found = tables(records)
    over_shots = [table_over_shots(table) for table in found]
    text = [aligned_table(short or full, width) for short, full in zip(over_shots, found, strict=True)]
    if any(over_shots):
        text.append(textwrap.fill("The other metrics, training times and numbers of learned parameters are in "
                                  "report.md.", width))
    return "\n\n".join(text) + "\n"


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,}-{ordered[-1]:,}"


SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
           "†": r"$\dagger$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
           **{mark: f"\\{mark}" for mark in "&%$#_{}"}}
HEADER = "% Needs \\usepackage{booktabs}; a wide table also \\usepackage{graphicx} and \\resizebox{\\textwidth}{!}{...}"


def latex_tables(tables: Sequence[Table]) -> str:
    """Floating tables, labelled tab:results-1 and so on."""
    return "\n\n".join([HEADER, *(_latex_table(table, number) for number, table in enumerate(tables, start=1))]) + "\n"


def latex_text(text: str) -> str:
    """Text escaped for LaTeX, so that it appears unchanged; a hyphen before a number becomes a minus sign."""
    escaped = "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", r"$-$", escaped)


def _latex_table(table: Table, number: int) -> str:
    words = len(table.header) - table.numbers
    rows = [" & ".join(map(latex_text, line)) + r" \\" for line in (table.header, *table.cells)]
    # LaTeX would read a bracket or a star after \\ as an option of \\
    rows = [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:results-{number}}}",
        rf"\begin{{tabular}}{{{'l' * words}{'r' * table.numbers}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
        r"\bottomrule", r"\end{tabular}", r"\end{table}"])
