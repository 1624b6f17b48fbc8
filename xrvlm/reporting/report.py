"""The report of a folder of runs: its tables, and a picture of whatever a table cannot show.

`report.html` holds all of it in one file, `report.md` stands beside its pictures, `tables.tex` holds the tables alone.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from xrvlm import files
from xrvlm.errors import unknown
from xrvlm.experiments.record import read_records
from xrvlm.reporting.across import Across, across_data
from xrvlm.reporting.comparison import Place, read_place, shots_in_words
from xrvlm.reporting.page import html_page
from xrvlm.reporting.published import source
from xrvlm.reporting.results import told_apart
from xrvlm.reporting.sections import Album, Picture, Section, read_section
from xrvlm.reporting.tables import escape, latex_tables, markdown, markdown_table, tables
from xrvlm.views import ImageSource


def write_report(runs: Path, out: Path | None = None, *, all_shots: bool = False, baseline: str | None = None,
                 source_of: Callable[[Path], ImageSource] | None = None, pictures: Sequence[Picture] = ()) -> Path:
    """Write report.md, report.html, tables.tex and pictures to `out` (default: `runs`/report); the path of report.md.

    `runs` is a folder or one results.jsonl. The tables come first, then a section a method, with the most shots that it
    had or, with `all_shots`, each number of them: its first seed's run. A file that this run's folder lacks is named.

    Args:
        baseline: what the others are compared with, by the name that the report gives it; None: the best zero-shot.
        source_of: the images of a run's folder, for photos of what was confused; None: no photos.
        pictures: more of them, for the end of the report; they lie in `out`.

    Raises:
        UserError: there are no runs, a line of results.jsonl is damaged, or the baseline is unknown or one of several.
    """
    root = files.folder_of(runs)
    records = told_apart(read_records(runs), root)
    out = out or root / "report"
    places = [read_place(table, baseline, root, out) for table in tables(records)]
    named = {row: f"{name}, {shots_in_words(row.first.shots)}" for place in places for row, name in place.told.items()}
    if baseline is not None and not any(place.baseline.settings for place in places):
        raise unknown("baseline", baseline, {name for place in places for name in place.told.values()})
    shown = [(place, row) for place in places for row in (place.whole.rows if all_shots else place.shown)]
    album = Album(source_of)
    for place, row in tqdm(shown, desc="report", leave=False, disable=None):
        place.sections.append(read_section(row, named[row], root, out, album))
    left = len(named) - len(shown)
    across = across_data([row for place in places for row in place.whole.rows])
    files.write_text(out / "report.md", _markdown(across, places, out, len(records), left, pictures))
    files.write_text(out / "report.html", html_page(across, places, out, runs=len(records), left=left,
                                                    pictures=pictures))
    files.write_text(out / "tables.tex", latex_tables([
        *(table for one in across for table in one.tables),
        *(table for place in places for table in (place.over_shots, place.whole) if table)]))
    return out / "report.md"


def _markdown(across: Sequence[Across], places: Sequence[Place], out: Path, runs: int, left: int,
              pictures: Sequence[Picture]) -> str:
    means = ["\n\n".join([f"## {escape(one.title)}", *map(markdown_table, one.tables)]) for one in across]
    parts = [f"# Results\n\n{runs} runs.", *means, *(_overview(place, out) for place in places), "## Each method"]
    if left:
        parts.append(f"Each method with the most shots that it was run with; {left} setting{'s' * (left > 1)} with "
                     "fewer shots left out here: `xrvlm report all_shots=true` shows every one.")
    parts += [_section(section, out) for place in places for section in place.sections]
    for picture in pictures:
        parts += [f"## {escape(picture.alternative)}", escape(picture.note), _picture(picture, out)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _overview(place: Place, out: Path) -> str:
    """All that compares the methods of one place; the curves belong to the table over the shots."""
    parts = [f"## {escape(place.title)}"]
    if place.over_shots:
        parts.append(markdown_table(place.over_shots))
    parts += [_picture(picture, out) for picture in place.pictures]
    parts += ["### All metrics" if place.over_shots else "", markdown_table(place.whole)]
    if place.published.top1:
        rows = [[method, f"{score:.1f}"] for method, score in place.published.top1.items()]
        parts += ["### Published by others", "Top-1 % for this data set with as many classes and test images, this "
                  f"tower and 16 shots (zero-shot without); not run here. Source: {source()}.",
                  markdown(["Method", "Top-1 %"], rows, numbers=1)]
    parts.append(escape(place.published.mismatch))
    return "\n\n".join(part.strip() for part in parts if part)


def _section(section: Section, out: Path) -> str:
    """What the run of the first seed says of its classes and its training."""
    first = section.row.first
    parts = [f"### {escape(section.row.place)}: {escape(section.name)}",
             f"The run of seed {first.seed}: {_link(first.run, section.folder, out)}"]
    if first.protocol == "base_to_new":
        parts.append("Of the base classes; its `predictions_new.csv` and `predictions_all.csv` hold the others.")
    parts += [f"`{file}` of this run cannot be read ({escape(why)})." if why else
              f"This run's folder holds no `{file}`." for file, why in section.missing]
    parts += [_picture(picture, out) for picture in section.pictures]
    if section.confused is not None:
        parts.append(_classes(section, section.confused))
    return "\n\n".join(parts)


def _classes(section: Section, confused: Sequence[dict]) -> str:
    pairs = [[row["true"], row["predicted"], str(row["count"]), f"{100 * row['share']:.1f}"] for row in confused]
    worst = [[row["class"], str(row["images"]), *("-" if row[key] is None else f"{100 * row[key]:.1f}"
                                                  for key in ("accuracy", "precision"))] for row in section.worst]
    table = markdown(["True class", "Taken for", "Images", "% of the class"], pairs, numbers=2).strip()
    return (f"Most confused pairs of {escape(section.name)}:\n\n{table if pairs else 'None: every image is right.'}\n\n"
            f"Its worst classes:\n\n{markdown(['Class', 'Images', 'Accuracy %', 'Precision %'], worst, numbers=3)}")


def _picture(picture: Picture, out: Path) -> str:
    return "!" + _link(picture.alternative, picture.path, out)


def _link(text: str, target: Path, base: Path) -> str:
    return f"[{escape(text)}]({quote(Path(os.path.relpath(target, base)).as_posix())})"
