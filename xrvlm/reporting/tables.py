"""Tables of results: the mean and the sample standard deviation over the seeds, of every metric or over the shots.

Each data set, world, protocol and backbone has its own table.
"""

import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest

from xrvlm.experiments.record import BASE_TO_NEW, RunRecord
from xrvlm.reporting.results import (
    VARIANTS,
    Setting,
    Shots,
    by_series,
    settings,
    shot_counts,
    shots_order,
    variant,
    varying,
)

HEADLINES = {"top1": "top-1", "harmonic_mean": "harmonic mean"}


@dataclass(frozen=True)
class Table:
    """The settings of one data set, world, protocol and backbone; what all rows share stands in the caption."""

    caption: str
    header: list[str]
    numbers: int                         # how many columns, the last ones, hold no words
    rows: list[Setting]                  # of a table over shots, each method's setting of the most shots
    cells: list[list[str]]


def tables(records: Sequence[RunRecord]) -> list[Table]:
    """A table to each data set, world, protocol and backbone, its rows by shots, then by the headline metric."""
    return [_table(list(group)) for _, group in groupby(settings(records), key=lambda row: row.place)]


def _table(rows: list[Setting]) -> Table:
    variants = varying(rows)
    caption = [*_shared(rows, variants), "values in %, mean ± sample standard deviation over the seeds"]
    if rows[0].first.protocol == "base_to_new":
        caption.append("top-1 of the base classes, which were trained on, and of the new ones, each among its own "
                       "half, the harmonic mean of the two, and top-1 of all images among all classes")
    numbers = ["Shots", "Labels", "Seeds", *rows[0].first.shown.values(), "Time s", "Learned"]
    header = ["Method", *(VARIANTS[name] for name in variants), *numbers]
    cells = [[*_words(row, variants), *_numbers(row)] for row in rows]
    return Table("; ".join([*caption, *_notes(rows)]) + ".", header, len(numbers), rows, cells)


def table_over_shots(table: Table) -> Table | None:
    """A row a method and a column a shot count, of the headline metric; None below two shot counts.

    Zero-shot has a column of its own, and a cell says how many seeds it is of where most are of another number.
    """
    counts = shot_counts(table.rows)
    if len(counts) < 2:
        return None
    series = sorted(by_series(table.rows), key=_rank)
    rows = [_last(points) for points in series]
    variants = [name for name in varying(rows) if len({variant(row.first, name) for row in rows} - {"-"}) > 1]
    # what zero-shot yields depends on no seed: it does not count where the usual number of seeds is told
    seeds = Counter(row.seeds for row in table.rows if row.first.shots != 0)
    usual = max(seeds, key=lambda number: (seeds[number], number))
    columns = [*([0] if any(0 in points for points in series) else []), *counts]
    cells = [[*_words(row, variants), *(score_cell(points.get(count), usual) for count in columns)]
             for row, points in zip(rows, series, strict=True)]
    spread = "mean ± sample standard deviation over " if max(seeds) > 1 else ""
    caption = [*_shared(rows, variants), f"{HEADLINES[rows[0].headline]} in % by the shots",
               f"{spread}{usual} seed{'s' * (usual > 1)}, rows by their last score"]
    if len(seeds) > 1:
        caption.append("(n): of n seeds")
    return Table("; ".join([*caption, *_notes(table.rows)]) + ".",
                 ["Method", *(VARIANTS[name] for name in variants), *map(str, columns)], len(columns), rows, cells)


def with_column(table: Table, heading: str, cells: Sequence[str], note: str) -> Table:
    """The table with one more column at its end, a cell a row, and what the caption says of it."""
    rows = [[*row, cell] for row, cell in zip(table.cells, cells, strict=True)]
    return replace(table, caption=f"{table.caption.removesuffix('.')}; {note}.", header=[*table.header, heading],
                   numbers=table.numbers + 1, cells=rows)


def _last(points: dict[Shots, Setting]) -> Setting:
    return points[max(points, key=shots_order)]


def _rank(points: dict[Shots, Setting]) -> tuple[float, float]:
    """By the most shots, then by the score there: zero-shot first, then what has no score in the last column."""
    last = _last(points)
    return shots_order(last.first.shots), last.percent(last.headline)[0]


def score_cell(row: Setting | None, usual: int) -> str:
    """The headline metric; with the number of seeds where that is not the usual one."""
    if row is None:
        return "-"
    mean, deviation = row.percent(row.headline)
    marked = f" ({row.seeds})" if row.first.shots != 0 and row.seeds != usual else ""
    told = deviation is not None and (deviation > 0 or row.first.shots != 0)     # zero-shot depends on no seed
    return f"{mean:.1f}{f' ± {deviation:.1f}' if told else ''}{marked}"


def _words(row: Setting, variants: Sequence[str]) -> list[str]:
    return [row.label + row.mark + row.code, *(variant(row.first, name) for name in variants)]


def _numbers(row: Setting) -> list[str]:
    return [
        str(row.first.shots), _span(run.label_budget for run in row.runs),
        str(row.seeds) if row.seeds == len(row.runs) else f"{row.seeds} ({len(row.runs)} runs)",
        *(_score(row, name) for name in row.first.shown),
        f"{statistics.fmean(run.train_seconds for run in row.runs):.1f}",
        _span(run.learned_parameters for run in row.runs),
    ]


def _score(row: Setting, metric: str) -> str:
    mean, deviation = row.percent(metric)
    spread = f" ± {'-' if deviation is None else f'{deviation:.1f}'}" if metric in BASE_TO_NEW else ""
    return f"{mean:.1f}{spread}"


def _shared(rows: list[Setting], variants: Sequence[str]) -> list[str]:
    """The place, and what all rows have in common."""
    shared = {name: {variant(row.first, name) for row in rows} - {"-"} for name in VARIANTS if name not in variants}
    return [rows[0].place, *(f"{VARIANTS[name].lower()}: {value}" for name in shared for value in shared[name])]


def _notes(rows: list[Setting]) -> list[str]:
    notes = {
        "† transductive: saw the test images, without labels": any(row.first.transductive for row in rows),
        "[...] tells rows apart that differ in options which no column shows: compare their config.yaml":
            any(row.code for row in rows),
        "a row of more runs than seeds mixes runs that differ in what no column shows":
            any(row.seeds < len(row.runs) for row in rows),
    }
    return [note for note, true in notes.items() if true]


def markdown_table(table: Table) -> str:
    """The table in Markdown below its caption."""
    return f"{escape(table.caption)}\n\n{markdown(table.header, table.cells, numbers=table.numbers)}"


def terminal_table(records: Sequence[RunRecord], *, width: int = 120) -> str:
    """The tables as aligned text; words that would make a line longer than `width` wrap within their column.

    Where there are several shot counts, the table over the shots stands for the one of all metrics.
    """
    found = tables(records)
    over_shots = [table_over_shots(table) for table in found]
    text = [aligned_table(short or whole, width) for short, whole in zip(over_shots, found, strict=True)]
    if any(over_shots):
        text.append(textwrap.fill("The other metrics, training times and numbers of learned parameters stand in "
                                  "report.md.", width))
    return "\n\n".join(text) + "\n"


def aligned_table(table: Table, width: int) -> str:
    """The table below its caption; words that would make a line longer than `width` wrap within their column."""
    words = len(table.header) - table.numbers
    header = [{"Per class": "Class", "Macro-F1": "F1"}.get(name, name) for name in table.header]
    widths = [max(map(len, column)) for column in zip(header, *table.cells, strict=True)]
    while sum(widths) + 2 * len(widths) - 2 > width and max(widths[:words]) > 6:
        widths[widths.index(max(widths[:words]))] -= 1
    lines = [header, ["-" * size for size in widths], *table.cells]
    return "\n".join([textwrap.fill(table.caption, width), "", *(_aligned(line, widths, words) for line in lines)])


def _aligned(cells: Sequence[str], widths: Sequence[int], words: int) -> str:
    wrapped = [_wrapped(cell, size) for cell, size in zip(cells, widths, strict=True)]
    lines = []
    for line in zip_longest(*wrapped, fillvalue=""):
        padded = [cell.ljust(size) if i < words else cell.rjust(size)
                  for i, (cell, size) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, size: int) -> list[str]:
    """Lines of at most `size` characters, broken behind a space or within a name behind one of its marks."""
    pieces = re.findall(rf".{{1,{size}}}(?:(?<=[ _=-])|$)|.{{1,{size}}}", " ".join(text.split()))
    return [piece.strip() for piece in pieces]


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,}-{ordered[-1]:,}"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, within a table's cell too."""
    return re.sub(r"([\\|<*`\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))


def markdown(header: list[str], rows: list[list[str]], *, numbers: int) -> str:
    """A table whose last `numbers` columns are set to the right."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    lines = [header, rule, *([escape(cell) for cell in cells] for cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
           "†": r"$\dagger$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
           **{mark: f"\\{mark}" for mark in "&%$#_{}"}}
HEADER = "% Needs \\usepackage{booktabs}; a wide table also \\usepackage{graphicx} and \\resizebox{\\textwidth}{!}{...}"


def latex_tables(tables: Sequence[Table]) -> str:
    """A floating table each, labelled tab:results-1 and so on."""
    return "\n\n".join([HEADER, *(_latex_table(table, number) for number, table in enumerate(tables, start=1))]) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is; a minus before a number becomes a minus sign."""
    escaped = "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", r"$-$", escaped)


def _latex_table(table: Table, number: int) -> str:
    words = len(table.header) - table.numbers
    rows = [" & ".join(map(latex_text, line)) + r" \\" for line in (table.header, *table.cells)]
    # what starts with a bracket or a star behind \\ would be read as its option
    rows = [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:results-{number}}}",
        rf"\begin{{tabular}}{{{'l' * words}{'r' * table.numbers}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
        r"\bottomrule", r"\end{tabular}", r"\end{table}"])
