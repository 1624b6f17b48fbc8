"""The report of a folder of runs: its tables, and a picture of whatever a table cannot show."""

import contextlib
import csv
import json
import os
import re
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import torch
from tqdm import tqdm

from xrvlm import files, plots
from xrvlm.records import LOSSES, METRICS_FILE, PREDICTIONS, read_records
from xrvlm.settings import SETTING, Setting, by_series, names, shot_counts, shots_order
from xrvlm.tables import HEADLINES, Table, escape, markdown, markdown_table, table_over_shots, tables

LISTED = 10                     # confused pairs, and worst classes, that the report names
COMPARED = 4                    # settings of one shot count from which on they are compared in a picture


def write_report(runs: Path, out: Path | None = None, *, all_shots: bool = False) -> Path:
    """Write `report.md` and its pictures to `out` (default: `runs`/report) and return its path.

    `runs` is a folder or one results.jsonl. The tables come first, then a section a method, with the most shots that it
    had or, with `all_shots`, each number of them: its first seed's run. A file that this run's folder lacks is named.
    """
    records = read_records(runs)
    root = runs if runs.is_dir() else runs.parent
    out = out or root / "report"
    found = tables(records)
    named = {row: f"{name}, {_shots(row)}" for table in found for row, name in names(table.rows).items()}
    shown = [row for table in found for row in ((not all_shots and table_over_shots(table)) or table).rows]
    parts = [f"# Results\n\n{len(records)} runs.", *(_overview(table, out) for table in found), "## Each method"]
    if len(shown) < len(named):
        left = len(named) - len(shown)
        parts.append(f"Each method with the most shots that it was run with; {left} setting{'s' * (left > 1)} with "
                     "fewer shots left out here: `xrvlm report all_shots=true` shows every one.")
    parts += [_run_section(row, named[row], root, out) for row in tqdm(shown, desc="report", leave=False, disable=None)]
    files.write_text(out / "report.md", "\n\n".join(part.strip() for part in parts if part) + "\n")
    return out / "report.md"


def _shots(row: Setting) -> str:
    shots = row.first.shots
    return {0: "zero-shot", 1: "1 shot", "all": "all shots"}.get(shots, f"{shots} shots")


def _overview(table: Table, out: Path) -> str:
    """All that compares the methods of one table."""
    place, told = table.rows[0].place, names(table.rows)
    slug = _slug(place, files.digest(place)[:8])                             # the digest keeps "a b" and "a-b" apart
    parts = [f"## {escape(place)}"]
    if over_shots := table_over_shots(table):
        parts += [markdown_table(over_shots), _curves(table.rows, told, out / f"{slug}-shots.png")]
    parts += [_bars(table.rows, told, out, slug), "### All metrics" if over_shots else "", markdown_table(table)]
    return "\n\n".join(part.strip() for part in parts if part)


def _curves(rows: list[Setting], told: dict[Setting, str], path: Path) -> str:
    series = {told[next(iter(points.values()))]: {shots: row.percent(row.headline) for shots, row in points.items()}
              for points in by_series(rows)}
    measure = HEADLINES[rows[0].headline]
    figure = plots.accuracy_over_shots(series, shot_counts(rows), title=rows[0].place, measure=measure)
    return _picture(figure, path, f"{measure} over shots, {rows[0].place}")


def _bars(rows: list[Setting], told: dict[Setting, str], out: Path, slug: str) -> str:
    """The picture of the settings of one shot count, the one that most share; nothing where these are few."""
    counted = Counter(row.first.shots for row in rows if row.first.shots != 0)
    shots = max(counted, key=lambda count: (counted[count], shots_order(count)), default=0)
    if counted[shots] < COMPARED:
        return ""
    compared = [row for row in rows if row.first.shots == shots]
    flat = {told[row]: row.percent(row.headline)[0] for row in rows if row.first.shots == 0}
    measure, title = HEADLINES[rows[0].headline], f"{rows[0].place}, {_shots(compared[0])}"
    figure = plots.bars({told[row]: row.values(row.headline) for row in compared}, flat=flat, title=title,
                        measure=measure)
    return _picture(figure, out / f"{slug}-{shots}shots-bars.png", f"{measure}, {title}")


def _run_section(row: Setting, name: str, root: Path, out: Path) -> str:
    """What the run of the first seed says of its classes and its training."""
    folder = root / row.first.run
    slug = _slug(row.place, name, files.digest([getattr(row.first, field) for field in SETTING])[:8])
    parts = [f"### {escape(row.place)}: {escape(name)}",
             f"The run of seed {row.first.seed}: {_link(row.first.run, folder, out)}"]
    if row.first.protocol == "base_to_new":
        parts.append("Of the base classes; its `predictions_new.csv` and `predictions_all.csv` hold the others.")
    for file, shows, read in ((PREDICTIONS, "confusion matrix", _confusion), (LOSSES, "training loss", _losses),
                              (METRICS_FILE, "classes", _classes)):
        if file == LOSSES and (row.first.learned_parameters == 0 or row.first.protocol == "transfer"):
            continue
        if not (folder / file).is_file():
            parts.append(f"This run's folder holds no `{file}`.")
            continue
        try:
            content = read(folder, name)
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            parts.append(f"`{file}` of this run cannot be read ({escape(f'{type(error).__name__}: {error}')}).")
        else:
            picture = out / f"{slug}-{_slug(shows)}.png"
            parts.append(content if isinstance(content, str) else _picture(content, picture, f"{shows} of {name}"))
    return "\n\n".join(parts)


def _confusion(folder: Path, name: str) -> plots.Figure:
    with (folder / PREDICTIONS).open(newline="", encoding="utf-8") as file:
        pairs = [(row["label"], row["prediction"]) for row in csv.DictReader(file)]
    if not pairs or not all(label and guess for label, guess in pairs):
        raise ValueError("images without a label")
    known: list[str] = []        # in the order of the data set, those that no image shows included
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        known = [row["class"] for row in json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["per_class"]]
    classes = [*known, *sorted({word for pair in pairs for word in pair} - set(known))]
    index = {word: i for i, word in enumerate(classes)}
    cells = torch.tensor([index[label] * len(classes) + index[guess] for label, guess in pairs])
    matrix = torch.bincount(cells, minlength=len(classes)**2).reshape(len(classes), len(classes))
    return plots.confusion(matrix, classes, title=name)


def _losses(folder: Path, name: str) -> plots.Figure:
    with (folder / LOSSES).open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    if not rows or not all({"epoch", "loss"} <= row.keys() for row in rows):
        raise ValueError("no epochs")
    return plots.losses({name: rows}, title=name)


def _classes(folder: Path, name: str) -> str:
    content = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    confused = [[row["true"], row["predicted"], str(row["count"]), f"{100 * row['share']:.1f}"]
                for row in content["most_confused"][:LISTED]]
    worst = sorted((row for row in content["per_class"] if row["images"]), key=lambda row: row["accuracy"])[:LISTED]
    rows = [[row["class"], str(row["images"]), *("-" if row[key] is None else f"{100 * row[key]:.1f}"
                                                 for key in ("accuracy", "precision"))] for row in worst]
    pairs = markdown(["True class", "Taken for", "Images", "% of the class"], confused, numbers=2).strip()
    return (f"Most confused pairs of {escape(name)}:\n\n{pairs if confused else 'None: every image is right.'}\n\n"
            f"Its worst classes:\n\n{markdown(['Class', 'Images', 'Accuracy %', 'Precision %'], rows, numbers=3)}")


def _picture(figure: plots.Figure, path: Path, alternative: str) -> str:
    plots.save(figure, path)
    return "!" + _link(alternative, path, path.parent)


def _link(text: str, target: Path, base: Path) -> str:
    return f"[{escape(text)}]({quote(Path(os.path.relpath(target, base)).as_posix())})"


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:100]
