"""The column of a table that says which images are for testing: which column it is, and what its cells mean."""

import logging
from collections.abc import Iterable, Mapping
from itertools import tee
from typing import Any

from xrvlm.data.folder import subset_of
from xrvlm.errors import UserError, option
from xrvlm.text.class_names import words_of
from xrvlm.text.class_text import few

log = logging.getLogger(__name__)

# a column with such a word in its name may say which images are for testing
SPLIT_WORDS = frozenset({"split", "subset", "partition", "phase", "usage", "fold", "set", "train", "training", "test",
                         "testing", "val", "valid", "validation", "dev", "eval", "holdout", "stage",
                         "kfold", "folds", "istest", "istrain", "traintest"})
MOST_STRANGE = 4                         # words in a column of subsets that mean none
TRUTH = {**dict.fromkeys(("true", "1", "1.0", "yes", "y", "t"), True),
         **dict.fromkeys(("false", "0", "0.0", "no", "n", "f"), False)}
ELSE = {"test": "train", "train": "test", "val": "train"}      # what "no" means in a column that is called as a subset


def subset_in(column: str, cell: Any) -> str | None:
    """The subset (train, val or test) that a cell means; None for none: an unknown word, or nothing.

    It is named, or the column is called as one (is_test, isTrain, is_valid) and the cell says yes or no.
    """
    answer = TRUTH.get(str(cell).strip().casefold())
    named = {subset for word in words_of(column) if (subset := subset_of(word.removeprefix("is")))}
    if answer is not None and len(named) == 1:
        subset, = named
        return subset if answer else ELSE[subset]
    return subset_of(cell) if isinstance(cell, str) else None


def column_of_subsets(columns: Mapping[str, Iterable[Any]], where: str, named: str | None = None) -> str | None:
    """The column, among {name: its cells}, that holds subsets: `named`, where given; None where none can be one.

    A warning tells of other columns than `named` that name other images for testing. UserError, which says `where`, for
    columns that may be: not all cells have a meaning, or several columns fit.
    """
    if named is not None:
        _warn_of_others(named, columns, where)
        return named
    plain, others = [], {}
    for column, cells in columns.items():
        cells, again = tee(cells)
        if _holds_subsets(column, cells):
            plain.append(column)
        else:
            others[column] = again
    if len(plain) == 1:
        return plain[0]
    alike = plain or [column for column, cells in others.items()
                      if SPLIT_WORDS & set(words_of(column)) or subset_of(column) or _may_hold_subsets(cells)]
    if not alike:
        return None
    write = "" if plain else "write train, val or test in its cells and "
    raise UserError(f"{where} has the column {few(map(repr, alike))}, which may say what is for testing: {write}set "
                    f"{option('data.split_column', alike[0])}, or {option('data.split_column', None)} to go "
                    "without: then a part of each class is kept for testing")


def _warn_of_others(chosen: str, columns: Mapping[str, Iterable[Any]], where: str) -> None:
    tested = [subset_in(chosen, cell) == "test" for cell in columns[chosen]]
    for column, cells in columns.items():
        cells, again = tee(cells)
        if column == chosen or not _holds_subsets(column, cells):
            continue
        if differ := sum(one != (subset_in(column, cell) == "test") for one, cell in zip(tested, again, strict=True)):
            log.warning("%s: the columns %r and %r differ on which images are for testing, in %d of %d rows; %r counts,"
                        " and %s would take the other", where, chosen, column, differ, len(tested), chosen,
                        option("data.split_column", column))


def _may_hold_subsets(cells: Iterable[Any]) -> bool:
    """Whether a cell is of images to test on or to choose by, and the others are empty or of few words (fit, eval)."""
    subsets, strange = set(), set()
    for cell in cells:
        if isinstance(cell, str) and cell.strip():
            subset = subset_of(cell)
            subsets.update([subset] if subset else ())
            strange.update([] if subset else [cell.strip().casefold()])
        if len(strange) > MOST_STRANGE:
            return False
    return bool(subsets & {"test", "val"}) and len(subsets | strange) > 1


def _holds_subsets(column: str, cells: Iterable[Any]) -> bool:
    """Whether every cell means a subset, and not all the same one."""
    asks = column.strip().casefold().startswith("is")      # "test" alone may be the name of an examination
    subsets = set()
    for cell in cells:
        subset = subset_in(column if asks else "", cell)
        if subset is None:
            return False
        subsets.add(subset)
    return len(subsets) > 1
