"""The tree above the classes of a data set, from a file or from nested folders."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import Dataset
from xrvlm.errors import UserError, option
from xrvlm.evaluation.hierarchy import ROOT, Hierarchy, from_pairs
from xrvlm.files import file_text, parsed, user_path

FOLDERS = "folders"                      # in place of a file: nested folders are the tree


def with_hierarchy(dataset: Dataset, hierarchy: str | Path) -> Dataset:
    """`dataset` with the tree of the file `hierarchy`, which must hold each of its classes."""
    root = getattr(dataset.source, "root", None)
    path = user_path(hierarchy)
    beside = None if root is None else Path(root) / path
    return with_parents(dataset, read_hierarchy(beside if beside is not None and beside.is_file() else path))


def with_parents(dataset: Dataset, parents: Mapping[str, str]) -> Dataset:
    """`dataset` with a tree; UserError where it is none, or lacks a class."""
    tree = Hierarchy(dataset.split.classes, parents)
    if len(tree.nodes) == len(tree.classes):
        raise UserError("the hierarchy has no node above any class: nest the class folders (genus/species), or name "
                        f"the nodes in a file ({option('data.hierarchy', 'FILE')})")
    return replace(dataset, hierarchy=dict(parents))


def read_hierarchy(path: Path) -> dict[str, str]:
    """{node: the node above it, "" at the top}, of a .json or a .csv file.

    JSON: objects within objects, `{"animals": {"cats": ["lion", "tiger"]}}`. CSV: a line a class, its name first, then
    the nodes above it from the nearest to the topmost (`lion,cats,animals`), below a line that names the columns; an
    empty cell is left out. UserError, which names the fix.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; check {option('data.hierarchy')}")
    text = file_text(path)
    if path.suffix.lower() == ".json":
        try:
            tree = parsed(text)
        except ValueError as error:
            raise UserError(f"{path} is no JSON ({error}); it is written as "
                            '{"cats": ["lion", "tiger"]}') from error
        pairs = list(_of_tree(tree, ROOT, str(path)))
    elif path.suffix.lower() in (".csv", ".tsv"):
        pairs = list(_of_lines(text, path))
    else:
        raise UserError(f"{path} must be a .json or a .csv file; check {option('data.hierarchy')}")
    if not pairs:
        raise UserError(f"{path} is empty: it must name the nodes above the classes")
    return from_pairs(pairs, str(path))


def _of_tree(tree: Any, parent: str, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield tree.strip(), parent
    elif isinstance(tree, list):
        for each in tree:
            yield from _of_tree(each, parent, where)
    elif isinstance(tree, dict):
        for node, below in tree.items():
            yield node.strip(), parent
            yield from _of_tree(below, node.strip(), where)
    elif tree is not None:
        raise UserError(f"{where}: {tree!r} below {parent!r} is no name; a node holds names, a list of names or an "
                        "object")


def _of_lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter=delimiter))
    for number, row in enumerate(rows[1:], start=2):
        names = [cell.strip() for cell in row if cell.strip()]
        if not names:
            continue
        if not row[0].strip():
            raise UserError(f"{path}, line {number}: the first cell is empty; it must name the class")
        yield from zip(names, [*names[1:], ROOT], strict=True)
