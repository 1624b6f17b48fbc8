"""A data set as a table of paths and classes beside the images: CSV, JSON Lines or Parquet."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import SUBSET_OF_WORD, SUBSETS, Dataset, assemble, registered
from xrvlm.data.folder import existing_folder
from xrvlm.errors import UserError, option
from xrvlm.files import user_path
from xrvlm.text.class_text import few
from xrvlm.views import FileSource

Row = tuple[int, Mapping[str, Any]]    # the line in the file, counted from 1, and its cells


@registered("table")
def table(root: str | Path, *, file: str | Path = "split.csv", path_column: str = "path", class_column: str = "class",
          split_column: str | None = "split", class_names: str | Sequence[str] | Mapping[str, str] | None = None,
          skip_damaged: bool = False, name: str | None = None) -> Dataset:
    """Load a table with one image a row.

    Args:
        root: the folder that holds the images.
        file: the table (.csv, .tsv, .jsonl or .parquet), relative to `root` or absolute.
        path_column: column of paths, relative to `root`.
        class_column: column of class names.
        split_column: column of subsets (train, val, valid, validation or test); None: all images are for training, as
            they are if the table has no column "split".
        class_names: see `image_folder`.
        skip_damaged: leave out images that cannot be read, with a warning.
        name: of the data set; None: that of the folder.

    Raises:
        UserError: the table or an image is missing or wrong; the message names the line and the fix.
    """
    folder = existing_folder(root)
    path = folder / user_path(file)
    if not path.is_file():
        raise UserError(f"there is no table {path}; check {option('data.file')}")
    columns, rows = _read(path)
    # a split column other than the default must be there
    wanted = [path_column, class_column, *([split_column] if split_column not in (None, "split") else [])]
    if missing := [column for column in wanted if column not in columns]:
        raise UserError(f"{path} has no column {few(map(repr, missing))}; its columns are {few(columns, 20)}: "
                        f"set {option('data.path_column')}, {option('data.class_column')} or "
                        f"{option('data.split_column')}")
    subset_column = split_column if split_column in columns else None
    found = _found(folder, path, rows, path_column, class_column, subset_column)
    return assemble(name or folder.name, FileSource(folder), found, class_names=class_names, skip_damaged=skip_damaged)


def _found(root: Path, path: Path, rows: Iterable[Row], path_column: str, class_column: str, subset_column: str | None,
           ) -> dict[str, list[tuple[str, str]]]:
    """{subset: (id, class) of its images}. Raises UserError for an image that occurs twice or is not there."""
    entries: dict[str, tuple[str, str, int]] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        item_id = _relative(root, _cell(row, path_column, where), where)
        subset = "train" if subset_column is None else _subset(_cell(row, subset_column, where), where)
        label = _cell(row, class_column, where).strip()
        before = entries.setdefault(item_id, (label, subset, line))
        if before[:2] != (label, subset):
            raise UserError(f"{where}: {item_id} is {label!r} in {subset} here but {before[0]!r} in {before[1]} in "
                            f"line {before[2]}; list every image once")
    if not entries:
        raise UserError(f"the table {path} has no rows; write one for each image")
    if missing := [item_id for item_id in entries if not (root / item_id).is_file()]:
        raise UserError(f"{len(missing)} images named in {path} are not in {root}: {few(missing)}; "
                        f"check {option('data.root')}, or remove these lines")
    found: dict[str, list[tuple[str, str]]] = {subset: [] for subset in SUBSETS}
    for item_id, (label, subset, _) in entries.items():
        found[subset].append((item_id, label))
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
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(",\t;", key=header.count), strict=True)
        columns = list(reader.fieldnames or ())
        rows: list[Row] = []
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {reader.line_num}: more cells than the {len(columns)} columns; "
                                'quote a cell that holds the separator: "a, b"')
            rows.append((reader.line_num, row))
    return columns, rows


def _json_rows(path: Path) -> tuple[Sequence[str], list[Row]]:
    rows: list[Row] = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
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
        raise UserError(f"{where}: the cell of {column!r} is empty; fill it in or remove the line")
    return str(value)


def _subset(word: str, where: str) -> str:
    subset = SUBSET_OF_WORD.get(word.strip().casefold())
    if subset is None:
        raise UserError(f"{where}: unknown subset {word!r}; use train, val or test, or "
                        f"{option('data.split_column', None)} to ignore the column")
    return subset


def _relative(root: Path, name: str, where: str) -> str:
    """`name` relative to `root` and without `..`, so that an image has only one id."""
    path = Path(os.path.normpath(root / name))
    for base, candidate in ((root, path), (root, path.resolve())):    # an absolute path may contain a link
        if candidate.is_relative_to(base) and candidate != base:
            return candidate.relative_to(base).as_posix()
    raise UserError(f"{where}: {name} is not inside {root}; set {option('data.root')} to a folder that holds all "
                    "images")
