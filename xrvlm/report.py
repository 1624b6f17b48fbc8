"""The report of a folder of runs: its tables, and a picture of whatever a table cannot show."""

import contextlib
import csv
import json
import math
import os
import re
from pathlib import Path
from urllib.parse import quote

import torch
from tqdm import tqdm

from xrvlm import files, plots
from xrvlm.records import LOSSES, METRICS_FILE, PREDICTIONS, read_records
from xrvlm.tables import SETTING, Setting, escape, markdown, markdown_table, tables, varying

LISTED = 10                     # confused pairs, and worst classes, that the report names


def write_report(runs: Path, out: Path | None = None) -> Path:
    """Write `report.md` and its pictures to `out` (default: `runs`/report) and return its path.

    `runs` is a folder or one results.jsonl. A setting is shown by its first seed's run; a file that this run's folder
    lacks is named in the report.
    """
    records = read_records(runs)
    root = runs if runs.is_dir() else runs.parent
    out = out or root / "report"
    parts = [f"# Results\n\n{len(records)} runs.", markdown_table(records)]
    for table in tables(records):
        names = _series(table.rows)
        parts.append(_accuracy_over_shots(table.rows, names, out))
        parts += [_run_section(row, f"{names[row]}, {_shots(row)}", root, out)
                  for row in tqdm(table.rows, desc="report", leave=False, disable=None)]
    files.write_text(out / "report.md", "\n\n".join(part.strip() for part in parts if part) + "\n")
    return out / "report.md"


def _series(rows: list[Setting]) -> dict[Setting, str]:
    """A name to each row that tells its method from those of other rows, not its shots."""
    names = {}
    for row in rows:
        variants = varying([other.first for other in rows if other.first.label == row.first.label])
        names[row] = ", ".join(row.cells(variants)[:1 + len(variants)])
    return names


def _shots(row: Setting) -> str:
    shots = row.first.shots
    return {0: "zero-shot", 1: "1 shot", "all": "all shots"}.get(shots, f"{shots} shots")


def _accuracy_over_shots(rows: list[Setting], names: dict[Setting, str], out: Path) -> str:
    """The picture for one table; nothing where fewer than two shot counts occur."""
    counts = sorted({row.first.shots for row in rows} - {0}, key=lambda shots: math.inf if shots == "all" else shots)
    if len(counts) < 2:
        return ""
    series: dict[str, dict] = {}
    for row in rows:
        series.setdefault(names[row], {})[row.first.shots] = row.percent(row.headline)
    measure = {"top1": "top-1", "harmonic_mean": "harmonic mean"}[rows[0].headline]
    figure = plots.accuracy_over_shots(series, counts, title=rows[0].place, measure=measure)
    slug = _slug(rows[0].place, files.digest(rows[0].place)[:8])             # the digest keeps "a b" and "a-b" apart
    return _picture(figure, out / f"{slug}-shots.png", f"{measure} over shots, {rows[0].place}")


def _run_section(row: Setting, name: str, root: Path, out: Path) -> str:
    """What the run of the first seed says of its classes and its training."""
    folder = root / row.first.run
    slug = _slug(row.place, name, files.digest([getattr(row.first, field) for field in SETTING])[:8])
    parts = [f"## {escape(row.place)}: {escape(name)}",
             f"The run of seed {row.first.seed}: {_link(row.first.run, folder, out)}"]
    if row.first.protocol == "base_to_new":
        parts.append("Of the base classes; its `predictions_new.csv` and `predictions_all.csv` hold the others.")
    for file, shows, read in ((PREDICTIONS, "confusion matrix", _confusion), (LOSSES, "training loss", _losses),
                              (METRICS_FILE, "classes", _classes)):
        if file == LOSSES and row.first.learned_parameters == 0:
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
