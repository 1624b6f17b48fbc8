"""A data set as a table of paths and classes beside the images: CSV, JSON Lines or Parquet."""

import csv
import logging
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import SUBSETS, Dataset, assemble, registered
from xrvlm.data.folder import existing_folder, files_below
from xrvlm.data.hierarchy import with_hierarchy
from xrvlm.data.subsets import column_of_subsets, subset_in
from xrvlm.errors import UserError, odd_sign, option
from xrvlm.evaluation.metrics import from_cell
from xrvlm.evaluation.unknown import UNKNOWN
from xrvlm.files import FileSource, file_text, parsed, user_path
from xrvlm.text.class_text import few

log = logging.getLogger(__name__)
Row = tuple[int, Mapping[str, Any]]    # the line in the file, counted from 1, and its cells
BEFORE_HEADER = r"(?:[ \t]*\r?\n)*(?:\"?sep=.\"?\r?\n)?"      # blank lines, and the line that tells Excel the separator
PREDICTED = frozenset({"image", "prediction"})    # columns of what `predict out=` wrote, beside one of `BEST`
BEST = frozenset({"class_1", "classes"})
MISSING = frozenset({"", "nan", "<na>", "#n/a", "n/a", "null"})    # how programs write that a cell is empty


@registered("table")
def table(root: str | Path, *, file: str | Path = "split.csv", path_column: str = "path", class_column: str = "class",
          split_column: str | None = "split", class_names: str | Sequence[str] | Mapping[str, str] | None = None,
          skip_damaged: bool = False, hierarchy: str | Path | None = None, name: str | None = None) -> Dataset:
    """Load a table with one image a row.

    Args:
        root: the folder that holds the images.
        file: the table (.csv, .tsv, .jsonl or .parquet), relative to `root` or absolute.
        path_column: column of paths, relative to `root`.
        class_column: column of class names.
        split_column: column of subsets (see `subsets.subset_in`); None or no such column: all images are to train on.
        class_names: see `image_folder`.
        skip_damaged: leave out images that cannot be read, with a warning.
        hierarchy: a file with the nodes above the classes, see `data.hierarchy.read_hierarchy`.
        name: of the data set; None: that of the folder.

    Raises:
        UserError: the table or an image is missing or wrong; the message names the line and the fix.
    """
    folder = existing_folder(root)
    path, columns, rows, of_predict = _opened(folder, file, class_column)
    path_column, class_column = ("path", "class") if of_predict else (path_column, class_column)
    asked = (path_column, class_column, split_column)
    of_path, of_class, of_split = (_column(columns, wanted, path) for wanted in asked)
    missing = [wanted for wanted, column in zip(asked, (of_path, of_class, of_split), strict=True)
               if column is None and wanted not in (None, "split")]      # the default split column need not be there
    if of_path is None or of_class is None or missing:
        raise UserError(f"{path} has no column {few(map(repr, missing))}; its columns are {few(columns, 20)}: "
                        f"set {option('data.path_column')}, {option('data.class_column')} or "
                        f"{option('data.split_column')}")
    if split_column is not None:
        rows = list(rows)
        of_split = column_of_subsets({column: [row.get(column) for _, row in rows] for column in columns
                                      if column not in (of_path, of_class)}, str(path), of_split)
    found = _found(folder, path, rows, of_path, of_class, of_split)
    dataset = assemble(name or folder.name, FileSource(folder), found, class_names=class_names,
                       skip_damaged=skip_damaged, test_only=not found["train"] and bool(found["test"]))
    return dataset if hierarchy is None else with_hierarchy(dataset, hierarchy)


def _opened(folder: Path, file: str | Path, class_column: str) -> tuple[Path, Sequence[str], Iterable[Row], bool]:
    """The table's path, its columns and rows, and whether `predict` wrote it."""
    path, here = folder / user_path(file), user_path(file).absolute()
    if not path.is_file():
        raise UserError(f"there is no table {path}; check {option('data.file')}"
                        f"{f', which is relative to the images: {here}' if here.is_file() else ''}")
    columns, rows = _read(path)
    if {*columns} >= PREDICTED and BEST & {*columns} and class_column in ("class", "prediction"):
        return path, *_of_predict(rows, path), True
    return path, columns, rows, False


def _of_predict(rows: Iterable[Row], path: Path) -> tuple[Sequence[str], list[Row]]:
    """The answers that `predict out=` wrote as a table of path, class and, where it was added, split: the class is the
    label that was filled in, else the prediction.
    """
    kept, unknown, empty = [], [], []
    for line, row in rows:
        label, said = (from_cell(str(row.get(column) or "").strip()) for column in ("label", "prediction"))
        if not label and said in ("", UNKNOWN):
            (unknown if said else empty).append(str(row["image"]))
        else:
            split = {"split": row["split"]} if row.get("split") else {}
            kept.append((line, {"path": from_cell(str(row["image"])), "class": label or said, **split}))
    if unknown:
        raise UserError(f"{path}: {len(unknown)} photos are called {UNKNOWN}, such as {unknown[0]}: write their "
                        "classes into `label`, or delete the lines")
    if empty:
        log.warning("%s: left out %d photos without an answer, such as %s", path, len(empty), empty[0])
    return list(dict.fromkeys(column for _, row in kept for column in row)), kept


def names_for_none(labels: Iterable[Any]) -> frozenset[str]:
    """How a column says that there is no label: beside empty cells with -1, where its classes are numbers from 0 on."""
    numbers = {str(label).strip().removesuffix(".0") for label in labels}
    return MISSING | {"-1", "-1.0"} if {"-1", "0", "1"} <= numbers else MISSING


def label_of(value: Any, where: str, none: Collection[str] = MISSING) -> str | None:
    """The class that the cell of a table names; None for an empty cell, NaN too, and what `names_for_none` found.

    Raises UserError, which says `where`, for what is no name: a list, a fraction, bytes.
    """
    if isinstance(value, float) and not math.isnan(value):
        if not value.is_integer():
            raise UserError(f"{where}: {value} is no class; write a name or a whole number")
        value = int(value)               # a whole number that was stored as a float, since other cells are empty
    if value is None or isinstance(value, float):
        return None
    if isinstance(value, bytes | list | tuple | Mapping):
        raise UserError(f"{where}: {value!r} is no class; write one name a row as text (an image has one class here)")
    label = unicodedata.normalize("NFC", str(value).strip())
    if odd := odd_sign(label):
        raise UserError(f"{where}: the class {label!r} holds {odd}; write it without")
    return None if label.casefold() in none else label


def _column(columns: Sequence[str], wanted: str | None, path: Path) -> str | None:
    """The column `wanted`, whatever its capitals and the spaces around it; None where there is none."""
    if wanted is None or wanted in columns:
        return wanted
    alike = [column for column in columns if column.strip().casefold() == wanted.strip().casefold()]
    if len(alike) > 1:
        raise UserError(f"{path} has the columns {few(map(repr, alike))}; rename all but one of them")
    return alike[0] if alike else None


def _found(root: Path, path: Path, rows: Iterable[Row], path_column: str, class_column: str, subset_column: str | None,
           ) -> dict[str, list[tuple[str, str]]]:
    """{subset: (id, class) of its images}. Raises UserError for an image that occurs twice or is not there."""
    entries: dict[str, tuple[str, str, int]] = {}
    rows = list(rows)
    none = names_for_none(row.get(class_column) for _, row in rows)
    for line, row in rows:
        where = f"{path}, line {line}"
        item_id = _relative(root, _cell(row, path_column, where), where)
        subset = "train" if subset_column is None else _subset(row, subset_column, where)
        label = label_of(row.get(class_column), f"{where}, column {class_column!r}", none)
        if label is None:
            raise _empty(class_column, where, row.get(class_column))
        before = entries.setdefault(item_id, (label, subset, line))
        if before[:2] != (label, subset):
            raise UserError(f"{where}: {item_id} is {label!r} in {subset} here but {before[0]!r} in {before[1]} in "
                            f"line {before[2]}; list every image once")
    if not entries:
        raise UserError(f"the table {path} has no rows; write one for each image")
    files = _files(root, list(entries), path)
    found: dict[str, list[tuple[str, str]]] = {subset: [] for subset in SUBSETS}
    for item_id, (label, subset, _) in entries.items():
        found[subset].append((files[item_id], label))
    return found


def _files(root: Path, names: Sequence[str], path: Path) -> dict[str, str]:
    """{name in the table: the same as the disk spells it}; another machine may write `\\`, or accents otherwise."""
    missing = [name for name in names if not (root / name).is_file()]
    found = {name: name for name in names}
    if missing:
        on_disk = {unicodedata.normalize("NFC", file): file
                   for file in (file.relative_to(root).as_posix() for file in files_below(root))}
        found |= {name: on_disk.get(unicodedata.normalize("NFC", name.replace("\\", "/")), "") for name in missing}
    if gone := [name for name in missing if not found[name]]:
        raise UserError(f"{len(gone)} images named in {path} are not in {root}: {few(gone)}; "
                        f"check {option('data.root')}, or remove these lines")
    if len(set(found.values())) < len(found):
        raise UserError(f"{path} names an image in two ways, by / and \\ or by accents; list every image once")
    return found


def _read(path: Path) -> tuple[Sequence[str], Iterable[Row]]:
    """The column names and the rows."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            return _csv_rows(path)
        if suffix in (".jsonl", ".ndjson"):
            return _json_rows(path)
        if suffix in (".parquet", ".pq"):
            return _parquet_rows(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read the table {path}: {error}; save it again") from error
    raise UserError(f"cannot tell the format of the table {path}; save it as .csv, .tsv, .jsonl or .parquet")


def _csv_rows(path: Path) -> tuple[Sequence[str], list[Row]]:
    text = file_text(path)
    if "\0" in text[:4]:
        raise UserError(f"{path} begins like UTF-16 without its mark; save it as UTF-8")
    begin = len(re.match(BEFORE_HEADER, text, re.IGNORECASE)[0])                       # pyright: ignore
    skipped = text.count("\n", 0, begin)
    with StringIO(text[begin:], newline="") as file:
        delimiter = max(",\t;|", key=file.readline().count)
        file.seek(0)
        spaced = re.search(rf'{re.escape(delimiter)} +"', text) is not None      # "a", "b": the quotes are none of b's
        reader = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=spaced)
        columns = list(reader.fieldnames or ())
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise UserError(f"{path} has two columns {few(map(repr, twice))}; rename one of them")
        rows: list[Row] = []
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {skipped + reader.line_num}: more cells than the {len(columns)} columns"
                                '; quote a cell that holds the separator: "a, b"')
            rows.append((skipped + reader.line_num, row))
    return columns, rows


def _json_rows(path: Path) -> tuple[Sequence[str], list[Row]]:
    rows: list[Row] = []
    for line, text in enumerate(file_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = parsed(text)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}; write one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: not a JSON object; write one a line")
        rows.append((line, row))
    return list(dict.fromkeys(column for _, row in rows for column in row)), rows


def _parquet_rows(path: Path) -> tuple[Sequence[str], Iterator[Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow; pip install 'xrvlm[datasets]'") from error
    try:
        content = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read the table {path}: {error}; save it again") from error
    return content.column_names, enumerate(content.to_pylist(), start=1)


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None or not str(value).strip():
        raise _empty(column, where)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _empty(column: str, where: str, cell: Any = "") -> UserError:
    what = "-1, which is no class beside 0 and 1" if str(cell).strip() in ("-1", "-1.0") else "empty"
    return UserError(f"{where}: the cell of {column!r} is {what}; fill it in or remove the line")


def _subset(row: Mapping[str, Any], column: str, where: str) -> str:
    word = _cell(row, column, where)
    subset = subset_in(column, word)
    if subset is None:
        raise UserError(f"{where}: unknown subset {word!r}; use train, val or test, or "
                        f"{option('data.split_column', None)} to ignore the column")
    return subset


def _relative(root: Path, name: str, where: str) -> str:
    """`name` relative to `root` and without `..`, so that an image has only one id."""
    if odd := odd_sign(name):
        raise UserError(f"{where}: the path {name!r} holds {odd}; write it without")
    path = Path(os.path.normpath(root / name))
    for base, candidate in ((root, path), (root, Path(os.path.realpath(path)))):    # a path may contain a link
        if candidate.is_relative_to(base) and candidate != base:
            return candidate.relative_to(base).as_posix()
    raise UserError(f"{where}: {name} is not inside {root}; set {option('data.root')} to a folder that holds all "
                    "images")
