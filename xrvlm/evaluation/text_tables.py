"""Tables as text: aligned for the terminal, and in Markdown."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of cells; what all rows have in common stands in the caption."""

    caption: str
    header: list[str]
    numbers: int                         # how many columns, the last ones, hold no words
    rows: list[Any]                      # what each row is of
    cells: list[list[str]]


def markdown_table(table: Table) -> str:
    """The table in Markdown below its caption."""
    return f"{escape(table.caption)}\n\n{markdown(table.header, table.cells, numbers=table.numbers)}"


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


def escape(text: str) -> str:
    """Text that Markdown shows as it is, within a table's cell too."""
    return re.sub(r"([\\|<*`\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))


def markdown(header: list[str], rows: list[list[str]], *, numbers: int) -> str:
    """A table whose last `numbers` columns are set to the right."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    lines = [header, rule, *([escape(cell) for cell in cells] for cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
