"""The report as one HTML page that needs nothing beside it: pictures within, no script, no outside address."""

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

from xrvlm.reporting.across import Across
from xrvlm.reporting.comparison import Place, shots_in_words
from xrvlm.reporting.paired import COVERAGE
from xrvlm.reporting.published import source
from xrvlm.reporting.results import Setting, by_series
from xrvlm.reporting.sections import Picture
from xrvlm.reporting.tables import Table

PIXELS_A_POINT = 1.5            # pictures are drawn finer than a page shows them
MANY = 12                       # rows; of a longer table the intervals are shown when asked for
COSTS = ("Labels", "Time s", "Learned")
UNSAID = ("-", "own")           # of what a method does not have, and its own recipe


@dataclass(frozen=True)
class Cell:
    text: str
    notes: tuple[str, ...] = ()          # further lines, smaller
    sign: int = 0                        # whether the difference that it tells is clear: 1 up, -1 down
    best: bool = False
    number: bool = True


@dataclass(frozen=True)
class Grid:
    """A table as the page shows it."""

    header: list[Cell]
    rows: list[list[Cell]]
    caption: str


@dataclass(frozen=True)
class Image64:
    uri: str
    width: int
    height: int
    alternative: str


def html_page(across: Sequence[Across], places: Sequence[Place], out: Path, *, runs: int, left: int,
              pictures: Sequence[Picture]) -> str:
    """The page of `places`, which will lie in `out`; `left` settings were left out of the sections."""
    return _template().render(
        across=across, means=_means, shots_in_words=shots_in_words, places=places, runs=runs, left=left,
        pictures=pictures, lead=_lead, whole=_whole, embedded=_embedded,
        coverage=f"{COVERAGE:.0%}", source=source(), link=lambda folder: _relative(folder, out),
        percent=lambda share: f"{100 * share:.1f}", many=MANY)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def _lead(place: Place) -> Grid:
    """The table that the place begins with: over the shots where there are several, each with its difference."""
    if place.over_shots is None:
        return _whole(place)
    table = place.over_shots
    points = {points[row.first.shots].series: points for points in by_series(place.whole.rows)
              for row in points.values()}
    best = _best(place.whole.rows)
    rows = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        words, numbers = _split(table, cells)
        by_shots = {str(shots): setting for shots, setting in points[row.series].items()}
        scores = [_score(text, by_shots.get(heading), place, best)
                  for heading, text in zip(_split(table, table.header)[1], numbers, strict=True)]
        rows.append([_method(table, words), *scores, *_costs(row, place.whole)])
    header = [*_header(table), *map(Cell, COSTS)]
    if any(place.published.of(row) is not None for row in place.whole.rows):
        header.append(Cell("Published", ("by others, 16 shots",)))
        for cells, row in zip(rows, table.rows, strict=True):
            theirs = [score for setting in points[row.series].values()
                      if (score := place.published.of(setting)) is not None]
            cells.append(Cell(f"{theirs[0]:.1f}" if theirs else "-"))
    return Grid(header, rows, f"{table.caption} Labels, time and learned parameters are those of the most shots.")


def _whole(place: Place) -> Grid:
    """All metrics."""
    table, best = place.whole, _best(place.whole.rows)
    rows = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        words, numbers = _split(table, cells)
        signs = {"Difference": place.differences[row].sign if row in place.differences else 0}
        headline = row.first.shown[row.headline]
        rows.append([_method(table, words),
                     *(Cell(text, sign=signs.get(heading, 0), best=heading == headline and row in best)
                       for heading, text in zip(_split(table, table.header)[1], numbers, strict=True))])
    return Grid(_header(table), rows, table.caption)


def _means(table: Table) -> Grid:
    """A table of means over data sets, in each column the highest shaded but for zero-shot."""
    columns = list(zip(*table.cells, strict=True))[1:]
    trained = [place for place, row in enumerate(table.rows) if row.first.shots != 0 and not row.first.transductive]
    best = [max((place for place in trained if column[place] != "-"), default=None,
                key=lambda place, column=column: float(column[place].split()[0])) for column in columns]
    return Grid(_header(table), [[Cell(cells[0], number=False), *(Cell(text, best=best[i] == place)
                                                                  for i, text in enumerate(cells[1:]))]
                                 for place, cells in enumerate(table.cells)], table.caption)


def _score(text: str, setting: Setting | None, place: Place, best: set[Setting]) -> Cell:
    if setting is None or setting not in place.differences:
        known = setting in place.baseline.settings
        return Cell(text, ("baseline",) if known else (), best=setting in best)
    found = place.differences[setting]
    return Cell(text, found.told, sign=found.sign, best=setting in best)


def _costs(row: Setting, whole: Table) -> list[Cell]:
    cells = dict(zip(whole.header, whole.cells[whole.rows.index(row)], strict=True))
    return [Cell(cells[heading]) for heading in COSTS]


def _best(rows: Iterable[Setting]) -> set[Setting]:
    """The highest mean of each shot count; zero-shot and what saw the test images are left out."""
    highest: dict[object, Setting] = {}
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
    """The method's name, with what else tells the row from others below it: columns of words need a wide page."""
    told = zip(table.header[1:], words[1:], strict=False)
    return Cell(words[0], tuple(f"{heading.lower()}: {word}" for heading, word in told if word not in UNSAID),
                number=False)


def _split(table: Table, cells: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words and the numbers of a line."""
    return cells[:len(cells) - table.numbers], cells[len(cells) - table.numbers:]


def _embedded(picture: Picture) -> Image64:
    with Image.open(picture.path) as image:
        width, height = (round(side / PIXELS_A_POINT) for side in image.size)
        kind, content = ("png", picture.path.read_bytes()) if image.mode == "P" else ("jpeg", _jpeg(image))
    return Image64(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", width, height, picture.alternative)


def _jpeg(image: Image.Image) -> bytes:
    """Of a picture that holds photos: `plots.save` draws all others in few colours."""
    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def _relative(folder: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(folder, out)).as_posix()) + "/"
