"""Hostile tables of photos: odd cells, columns, encodings and paths. Each third input is a folder (folders.py)."""

import csv
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from shutil import copy
from typing import Any

import xrvlm
from fuzz.bench import Bench
from fuzz.folders import folder, judged
from fuzz.oracle import REFUSED, USED, answer, command_line, require, watched
from fuzz.values import NASTY_TEXTS, as_file_text, broken_bytes, hostile
from xrvlm.data.dataset import SUBSETS

FILES = ("1.png", "2.png", "sub/3.png", "4.png", "sub/5.png", "6.png", "7.png", "8.png")
CLASSES = ("robin", "jay")
WORDS = {"train": ("train", "Training", " TRAIN ", "trn"), "val": ("val", "valid", "dev"),
         "test": ("test", "Testing", "holdout")}


@dataclass
class _Table:
    """Rows of (path, class, subset), how they are written, and whether they mean the same as at first."""

    rows: list[list[Any]]
    columns: list[str] = field(default_factory=lambda: ["path", "class", "split"])
    delimiter: str = ","
    encoding: str = "utf-8"
    quoting: Any = csv.QUOTE_MINIMAL
    end: str = "\r\n"
    suffix: str = ".csv"
    most: int = 1000                         # rows that are written
    right: bool = True


def table(bench: Bench, draw: Random, place: Path, number: int) -> str:
    return folder(bench, draw, place, number) if number % 3 == 2 else _table(bench, draw, place, number)


def _table(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """A table: found is what it says, or it is refused."""
    root = place / "photos"
    for index, name in enumerate(FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(bench.photos / ("blue tit", "wren")[index % 2] / f"{index // 2}.png", root / name)
    made = _Table([[name, CLASSES[index % 2], ("train", "train", "train", "train", "val", "val", "test", "test")[index]]
                   for index, name in enumerate(FILES)])
    expected = {(subset, name, label) for name, label, subset in made.rows}
    for change in draw.sample(HARMLESS, draw.randrange(4)):
        change(made, draw)
    if draw.random() < 0.75:
        made.right = False
        for change in draw.sample(HARMFUL, draw.choice((1, 1, 2))):
            change(made, draw)
    data = _written(made)
    if not made.right and draw.random() < 0.3:
        data = broken_bytes(data, draw)
    file = root / f"split{made.suffix}"
    file.write_bytes(data)
    if not made.right and draw.random() < 0.04:
        file.unlink()
        draw.choice((lambda: os.mkfifo(file), lambda: file.mkdir(), lambda: file.symlink_to(file)))()
    with watched([place / "runs", place / "cache", bench.scratch]):
        found, problem = answer(lambda: xrvlm.table(root, file=file.name))
        if made.right:
            triples = found and {(subset, item.id, found.split.classes[item.label])
                                 for subset in SUBSETS for item in getattr(found.split, subset)}
            require(triples == expected, f"a right table gave {triples}, {problem}: {data[:300]!r}")
        if number % 12 == 0:
            code, _ = command_line("data", "check", "data=table", f"data.root={root}", f"data.file={file.name}")
            require(code == (REFUSED if found is None else USED), f"data check: {code}, in Python: {problem}")
        return judged(bench, found, root, place, number)


# ---- changes that leave the meaning

def _delimiter(made: _Table, draw: Random) -> None:
    made.delimiter = draw.choice(",;\t")


def _signature(made: _Table, draw: Random) -> None:
    made.encoding = "utf-8-sig"


def _quotes(made: _Table, draw: Random) -> None:
    made.quoting = csv.QUOTE_ALL


def _line_ends(made: _Table, draw: Random) -> None:
    made.end = draw.choice(("\n", "\r\n"))


def _order(made: _Table, draw: Random) -> None:
    draw.shuffle(made.rows)


def _capitals(made: _Table, draw: Random) -> None:
    made.columns = [draw.choice((column.upper(), f" {column} ", column.title())) for column in made.columns]


def _other_words(made: _Table, draw: Random) -> None:
    made.rows = [[name, label, draw.choice(WORDS[subset])] for name, label, subset in made.rows]


def _dots(made: _Table, draw: Random) -> None:
    made.rows = [[draw.choice((f"./{name}", f"sub/../{name}", name)), *more] for name, *more in made.rows]


def _twice(made: _Table, draw: Random) -> None:
    made.rows.append(list(draw.choice(made.rows)))


HARMLESS = (_delimiter, _signature, _quotes, _line_ends, _order, _capitals, _other_words, _dots, _twice)


# ---- changes that may not

def _cells(made: _Table, draw: Random) -> None:
    for _ in range(draw.choice((1, 2, 8))):
        row = draw.choice(made.rows)
        row[draw.randrange(len(row))] = draw.choice(
            (draw.choice(NASTY_TEXTS), draw.choice(NASTY_TEXTS), "split.csv", "sub", "gone.png", "sub\\3.png", "1",
             "trian"))


def _class_names(made: _Table, draw: Random) -> None:
    names = draw.sample(NASTY_TEXTS, 2)
    made.rows = [[row[0], names[row[1] == CLASSES[0]], *row[2:]] for row in made.rows]


def _paths(made: _Table, draw: Random) -> None:
    made.rows[draw.randrange(len(made.rows))][0] = draw.choice(
        ("/etc/hostname", "../../photos/1.png", "sub/3.png/", "sub//3.png", "1.png\x00", "/dev/stdin", "~/1.png",
         "1.PNG", "1.png ", "a" * 5000, "sub/../../x", "\\\\host\\1.png", "file:///1.png", "http://localhost:9/1.png"))


def _columns(made: _Table, draw: Random) -> None:
    made.columns[draw.randrange(3)] = draw.choice(("path", "class", "split", "", "fold", "is_test", *NASTY_TEXTS))


def _more_columns(made: _Table, draw: Random) -> None:
    made.columns.append(draw.choice(("more", "subset", "Path", "")))
    made.rows = [[*row, draw.choice(("", "x", "test"))] for row in made.rows]


def _ragged(made: _Table, draw: Random) -> None:
    row = draw.choice(made.rows)
    if draw.random() < 0.5:
        row.append("x")
    else:
        row.pop()


def _encoding(made: _Table, draw: Random) -> None:
    made.rows[0][1] = "caf\u00e9"
    made.encoding = draw.choice(("utf-16", "latin-1", "utf-32", "cp037", "utf-7"))


def _no_rows(made: _Table, draw: Random) -> None:
    made.most = draw.choice((0, 1))


def _json(made: _Table, draw: Random) -> None:
    made.suffix = ".jsonl"
    for _ in range(draw.choice((0, 1, 3))):
        row = draw.choice(made.rows)
        row[draw.randrange(len(row))] = hostile(draw)


def _suffix(made: _Table, draw: Random) -> None:
    made.suffix = draw.choice((".tsv", ".parquet", ".json", ".CSV", ".xlsx", ""))


HARMFUL = (_cells, _cells, _class_names, _paths, _columns, _more_columns, _ragged, _encoding, _no_rows, _json, _suffix)


def _written(made: _Table) -> bytes:
    if made.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(made.columns, row, strict=False))) for row in made.rows[:made.most]]
        return as_file_text("\n".join(lines))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=made.delimiter, quoting=made.quoting, lineterminator=made.end)
    writer.writerow(made.columns)
    writer.writerows(made.rows[:made.most])
    try:
        return text.getvalue().encode(made.encoding)
    except UnicodeEncodeError:
        return as_file_text(text.getvalue())
