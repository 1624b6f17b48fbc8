"""The report as one HTML page: pictures are embedded, there is no script and no address of another site."""

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from xrvlm.evaluation.text_tables import Table
from xrvlm.reporting.benchmark import Benchmark, Contents, shots_in_words
from xrvlm.reporting.paired import COVERAGE
from xrvlm.reporting.results import Row, by_curve
from xrvlm.reporting.sections import Picture

PIXELS_A_POINT = 1.5            # pictures have a higher resolution than the page shows
MANY = 12                       # rows; a longer table hides the intervals at first
COSTS = ("Labels", "Time s", "Learned")
NOT_SHOWN = ("-", "own")        # of what a method does not have, and its own recipe


@dataclass(frozen=True)
class Cell:
    text: str
    notes: tuple[str, ...] = ()          # further lines, smaller
    sign: int = 0                        # of a difference whose interval excludes zero: 1 or -1
    best: bool = False
    number: bool = True


@dataclass(frozen=True)
class Grid:
    """A table of the page."""

    header: list[Cell]
    rows: list[list[Cell]]
    caption: str


@dataclass(frozen=True)
class Image64:
    uri: str
    width: int
    height: int
    alternative: str


def html_page(contents: Contents) -> str:
    return _template().render(
        contents=contents, means=_means, shots_in_words=shots_in_words, first_table=_first_table,
        all_metrics=_all_metrics, embedded=_embedded, coverage=f"{COVERAGE:.0%}",
        link=lambda folder: _relative(folder, contents.folder), percent=lambda share: f"{100 * share:.1f}", many=MANY)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def _first_table(benchmark: Benchmark) -> Grid:
    """With several shot counts the table over the shots, each score with its difference; else all metrics."""
    if benchmark.over_shots is None:
        return _all_metrics(benchmark)
    table, rows = benchmark.over_shots, benchmark.all_metrics.rows
    curves = {row.curve: points for points in by_curve(rows) for row in points.values()}
    best = _best(rows)
    with_published = any(benchmark.published.of(row) is not None for row in rows)
    lines = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        points = curves[row.curve]
        words, numbers = _split(table, cells)
        by_heading = {str(shots): point for shots, point in points.items()}
        scores = [_score(text, by_heading.get(heading), benchmark, best)
                  for heading, text in zip(_split(table, table.header)[1], numbers, strict=True)]
        published = [_published(points.values(), benchmark)] if with_published else []
        lines.append([_method(table, words), *scores, *_costs(row, benchmark.all_metrics), *published])
    header = [*_header(table), *map(Cell, COSTS)]
    if with_published:
        header.append(Cell("Published", ("by others, 16 shots",)))
    return Grid(header, lines, f"{table.caption} Labels, time and learned parameters are those of the most shots.")


def _all_metrics(benchmark: Benchmark) -> Grid:
    table, best = benchmark.all_metrics, _best(benchmark.all_metrics.rows)
    lines = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        words, numbers = _split(table, cells)
        difference = benchmark.differences.get(row)
        headline = row.first.shown[row.headline]
        lines.append([_method(table, words),
                      *(Cell(text, sign=difference.sign if difference and heading == "Difference" else 0,
                             best=heading == headline and row in best)
                        for heading, text in zip(_split(table, table.header)[1], numbers, strict=True))])
    return Grid(_header(table), lines, table.caption)


def _published(rows: Iterable[Row], benchmark: Benchmark) -> Cell:
    """The first published result of the rows of one method."""
    scores = [score for row in rows if (score := benchmark.published.of(row)) is not None]
    return Cell(f"{scores[0]:.1f}" if scores else "-")


def _means(table: Table) -> Grid:
    """A table of means over data sets; the highest of each column is shaded, zero-shot and transductive left out."""
    eligible = [i for i, row in enumerate(table.rows) if row.first.shots != 0 and not row.first.transductive]
    best = {_highest(table, column, eligible) for column in range(1, len(table.header))}
    lines = [[Cell(cells[0], number=False),
              *(Cell(text, best=(i, column) in best) for column, text in enumerate(cells[1:], start=1))]
             for i, cells in enumerate(table.cells)]
    return Grid(_header(table), lines, table.caption)


def _highest(table: Table, column: int, eligible: Sequence[int]) -> tuple[int, int] | None:
    """The line and the column of the highest score among the eligible lines."""
    scores = {i: float(text.split()[0]) for i in eligible if (text := table.cells[i][column]) != "-"}
    return (max(scores, key=scores.__getitem__), column) if scores else None


def _score(text: str, row: Row | None, benchmark: Benchmark, best: set[Row]) -> Cell:
    if row is None or row not in benchmark.differences:
        return Cell(text, ("baseline",) if row in benchmark.baseline.rows else (), best=row in best)
    found = benchmark.differences[row]
    return Cell(text, found.formatted, sign=found.sign, best=row in best)


def _costs(row: Row, all_metrics: Table) -> list[Cell]:
    cells = dict(zip(all_metrics.header, all_metrics.cells[all_metrics.rows.index(row)], strict=True))
    return [Cell(cells[heading]) for heading in COSTS]


def _best(rows: Iterable[Row]) -> set[Row]:
    """The row of the highest mean for each shot count; zero-shot and transductive methods are left out."""
    highest: dict[object, Row] = {}
    for row in rows:
        if row.first.shots == 0 or row.first.transductive:
            continue
        other = highest.get(row.first.shots)
        if other is None or row.percent(row.headline)[0] > other.percent(other.headline)[0]:
            highest[row.first.shots] = row
    return set(highest.values())


def _header(table: Table) -> list[Cell]:
    return [Cell("Method", number=False), *map(Cell, _split(table, table.header)[1])]


def _method(table: Table, words: Sequence[str]) -> Cell:
    """The method's name, and below it the words of the other columns, which would make the page too wide."""
    others = zip(table.header[1:], words[1:], strict=False)
    return Cell(words[0], tuple(f"{heading.lower()}: {word}" for heading, word in others if word not in NOT_SHOWN),
                number=False)


def _split(table: Table, cells: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The cells of words and the cells of numbers of a line."""
    return cells[:len(cells) - table.numbers], cells[len(cells) - table.numbers:]


def _embedded(picture: Picture) -> Image64:
    with Image.open(picture.path) as image:
        width, height = (round(side / PIXELS_A_POINT) for side in image.size)
        kind, content = ("png", picture.path.read_bytes()) if image.mode == "P" else ("jpeg", _jpeg(image))
    return Image64(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", width, height, picture.alternative)


def _jpeg(image: Image.Image) -> bytes:
    """For a picture with photos: `plots.save` writes all others with a palette."""
    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def _relative(folder: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(folder, out)).as_posix()) + "/"
