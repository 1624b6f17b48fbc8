"""A data set of Hugging Face's `datasets`: from the hub by name, or from a folder that `save_to_disk` wrote."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from xrvlm.data.cells import encoded
from xrvlm.data.dataset import SUBSETS, Dataset, assemble, registered
from xrvlm.data.folder import subset_of
from xrvlm.data.subsets import column_of_subsets, subset_in
from xrvlm.data.table import MISSING, label_of, names_for_none
from xrvlm.errors import UserError, check_has, option
from xrvlm.files import sha256, user_path
from xrvlm.text.class_text import few

log = logging.getLogger(__name__)

INSTALL = "pip install 'xrvlm[datasets]'"
OF_A_DATASET = ("features", "select_columns", "with_format", "__len__")      # a streamed one has no length
LOOKED_AT = 32                           # images of a split that say what the numbers of all mean
ROWS = 10_000                            # whose cells of a column are read at a time


@dataclass(frozen=True)
class HubSource:
    """The image column of each split; an id is "<split>/<row>"."""

    splits: Mapping[str, Any]            # datasets.Dataset, images not decoded
    image_column: str

    def read(self, item_id: str, /) -> bytes:
        split, row = item_id.rsplit("/", 1)
        return encoded(self.splits[split][int(row)][self.image_column], item_id, lambda: self.of_255)

    def sha256(self, item_id: str, /) -> str:
        # not the fingerprint of the library: a cell may hold the path of a file, which changes without it
        return sha256(self.read(item_id))

    @cached_property
    def of_255(self) -> bool:
        """Whether one of a few arrays of fractions holds more than 1: then an array of at most 1 is a dark image."""
        for rows in self.splits.values():
            for row in range(0, len(rows), max(1, len(rows) // LOOKED_AT)):
                value = rows[row][self.image_column]
                if isinstance(value, list | np.ndarray) and np.max(np.asarray(value, dtype=object).astype(float)) > 1:
                    return True
        return False


@registered("hub")
def hub_dataset(path: Any, *, config: str | None = None, image_column: str | None = None,
                label_column: str | None = None, split_column: str | None = "split",
                class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                skip_damaged: bool = False, name: str | None = None) -> Dataset:
    """Load a data set of the library `datasets`.

    Args:
        path: a name on the hub, a folder that `save_to_disk` wrote, or a `datasets.Dataset` or `DatasetDict` in memory.
            A split alone is to train on, unless it is called test.
        config: the configuration on the hub.
        image_column: None: the only column of type Image.
        label_column: None: the only ClassLabel, else the only column of strings or integers. Classes are in the order
            of the ClassLabel, else sorted.
        split_column: column of subsets, as of a `table`, where the data set has no test split; None: its splits alone
            say what is for testing.
        class_names: see `image_folder`.
        skip_damaged: leave out images that cannot be read, with a warning.
        name: of the data set; None: the last word of the path.

    Raises:
        UserError: the data set cannot be loaded or a column cannot be found; the message names the fix.
    """
    splits = _splits(path, config)
    title = name or (Path(path).name if isinstance(path, str | Path) else "hub")
    subsets = _subsets(list(splits), title)
    features = splits[min(subsets, key=lambda split: SUBSETS.index(subsets[split]))].features
    image = _image_column(features, image_column, title)
    of_split = _split_column(splits, subsets, split_column, {image, label_column}, title)
    label = _label_column(features, label_column, {image, of_split}, title)
    subsets = _with_labels(subsets, splits, image, label, title)
    found = _found({split: splits[split] for split in subsets}, subsets, label, of_split, title)
    if label_column is None and class_names is None and not hasattr(features[label], "names"):
        _check_repeats([pair for pairs in found.values() for pair in pairs], label, title)
    classes = _classes(features[label], found, title)
    source = HubSource({split: _encoded_column(splits[split], image) for split in subsets}, image)
    return assemble(title, source, found, classes=classes, class_names=class_names, skip_damaged=skip_damaged,
                    test_only="train" not in found)


def _splits(path: Any, config: str | None) -> dict[str, Any]:
    """{split: datasets.Dataset}; a data set without splits is one that is called train."""
    if not isinstance(path, str | Path | Mapping):
        kinds = "a name on the hub, a folder, or a Dataset or DatasetDict of the library datasets"
        check_has(option("data.path"), path, kinds, *OF_A_DATASET)
    _library()
    loaded = _load(str(path), config) if isinstance(path, str | Path) else path
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    for split, rows in splits.items():
        check_has(f"{option('data.path')}[{split!r}]", rows, "a datasets.Dataset that is not streamed", *OF_A_DATASET)
    return splits


def _encoded_column(rows: Any, image: str) -> Any:
    rows = rows.select_columns([image]).with_format(None)
    kind = _library().Image
    return rows.cast_column(image, kind(decode=False)) if isinstance(rows.features[image], kind) else rows


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data sets of the hub need the package datasets; {INSTALL}") from error
    return datasets


def _load(path: str, config: str | None) -> Any:
    datasets = _library()
    folder = user_path(path)
    try:
        if folder.is_dir() and any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(folder)
        return datasets.load_dataset(str(folder) if folder.exists() else path, config)
    except Exception as error:    # the library, its loaders and the network may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load the data set {path!r}: {reason}; check {option('data.path')} and "
                        f"{option('data.config')}, or pass a folder written by save_to_disk") from error


def _subsets(splits: Sequence[str], title: str) -> dict[str, str]:
    """{split of the library: our subset}; splits of other names are ignored, but one alone is the whole."""
    if len(splits) == 1:                 # as of a folder: a test set alone is no training set
        return {splits[0]: "test" if subset_of(splits[0]) == "test" else "train"}
    subsets = {split: subset for split in splits if (subset := subset_of(split))}
    if "train" not in subsets.values():
        raise UserError(f"{title} has no train split; its splits are {few(splits, 20)}")
    if others := [split for split in splits if split not in subsets]:
        log.warning("ignored the splits %s of %s", few(others), title)
    return subsets


def _with_labels(subsets: Mapping[str, str], splits: Mapping[str, Any], image: str, label: str, title: str,
                 ) -> dict[str, str]:
    """`subsets` without a test or validation split that has no labels; UserError where a split has no images."""
    kept = dict(subsets)
    for split in subsets:
        if image not in splits[split].features:
            raise UserError(f"the split {split} of {title} has no column {image!r}; set "
                            f"{option('data.image_column')} to a column that all splits have")
        if label not in splits[split].features:
            log.warning("ignored the split %s of %s, which has no labels (no column %r)", split, title, label)
            del kept[split]
    return kept


def _image_column(features: Mapping[str, Any], wanted: str | None, title: str) -> str:
    datasets = _library()
    return _column(features, wanted, "image", title, [lambda kind: isinstance(kind, datasets.Image)])


def _label_column(features: Mapping[str, Any], wanted: str | None, taken: Collection[str | None], title: str) -> str:
    datasets = _library()
    others = {column: kind for column, kind in features.items() if column not in taken}
    return _column(others, wanted, "label", title, [
        lambda kind: isinstance(kind, datasets.ClassLabel),
        lambda kind: isinstance(kind, datasets.Value) and ("string" in kind.dtype or "int" in kind.dtype)])


def _split_column(splits: Mapping[str, Any], subsets: Mapping[str, str], wanted: str | None,
                  taken: Collection[str | None], title: str) -> str | None:
    """The column that says which images are for testing; None where the splits alone do."""
    columns = {column: kind for split in subsets for column, kind in splits[split].features.items()
               if column not in taken}
    named = {column.strip().casefold(): column for column in columns}.get((wanted or "").strip().casefold())
    cells = {column: chain.from_iterable(map(partial(_cells, column=column), map(splits.get, subsets)))
             for column, kind in columns.items() if _may_name_subsets(kind)}
    if named and named in cells and all(column in splits[split].features for column in cells for split in subsets):
        column_of_subsets(cells, title, named)
    if wanted is None or named or (wanted == "split" and "test" in subsets.values()):
        return named
    if wanted != "split":
        raise UserError(f"{title} has no column {wanted!r}; its columns are {few(columns, 20)}: set "
                        f"{option('data.split_column')}")
    return column_of_subsets(cells, title)


def _may_name_subsets(kind: Any) -> bool:
    if hasattr(kind, "names"):
        return all(map(subset_of, kind.names))
    return re.match("(large_)?string|bool|u?int", str(getattr(kind, "dtype", ""))) is not None


def _cells(rows: Any, column: str) -> Iterator[Any]:
    """The cells of a column, a ClassLabel's as words; none where `rows` lack the column."""
    if column in rows.features:
        kind, rows = rows.features[column], rows.select_columns([column]).with_format(None)
        for begin in range(0, len(rows), ROWS):
            cells = rows[begin:begin + ROWS][column]
            yield from _named(kind, cells) if hasattr(kind, "names") else cells


def _named(kind: Any, cells: Sequence[int | None]) -> list[str | None]:
    return [None if value is None or value < 0 else kind.names[value] for value in cells]


def _found(splits: Mapping[str, Any], subsets: Mapping[str, str], label: str, of_split: str | None, title: str,
           ) -> dict[str, list[tuple[str, str]]]:
    """{subset: (id, class) of its images}"""
    none = MISSING if any(hasattr(rows.features[label], "names") for rows in splits.values()) else names_for_none(
        value for rows in splits.values() for value in rows.with_format(None)[label][:])
    found: dict[str, list[tuple[str, str]]] = {}
    for split, rows in splits.items():
        own = _own_subsets(rows, split, of_split, subsets, title)
        for item_id, key in _labelled(rows, split, label, none):
            found.setdefault(own.get(item_id, subsets[split]), []).append((item_id, key))
    return found


def _own_subsets(rows: Any, split: str, column: str | None, subsets: Mapping[str, str], title: str) -> dict[str, str]:
    """{id: subset} of the images of a split by `column`; UserError where it contradicts the split or means nothing."""
    own, tested = {}, "test" in subsets.values()
    for row, cell in enumerate(_cells(rows, column) if column else ()):
        means = subset_in(str(column), cell)
        if means is None and not tested:
            raise UserError(f"row {row} of the split {split} of {title}: unknown subset {cell!r} in {column!r}; use "
                            f"train, val or test, or {option('data.split_column', None)} to ignore the column")
        if tested and means and (means == "test") != (subsets[split] == "test"):
            raise UserError(f"row {row} of the split {split} of {title} is {cell!r} by its column {column!r}: use "
                            f"{option('data.split_column', None)} to go by the splits, or one split of all rows to "
                            "go by the column")
        own[f"{split}/{row}"] = means or subsets[split]
    return own


def _column(features: Mapping[str, Any], wanted: str | None, what: str, title: str,
            tests: Sequence[Callable[[Any], bool]]) -> str:
    """The column `wanted`; if None, the only one that passes the first of `tests` that any column passes."""
    if wanted is not None and wanted in features:
        return wanted
    for accepts in tests if wanted is None else ():
        if fitting := [column for column, kind in features.items() if accepts(kind)]:
            if len(fitting) == 1:
                return fitting[0]
            break
    shown = few((f"{column} ({_shown(kind)})" for column, kind in features.items()), 20)
    problem = "cannot tell the" if wanted is None else f"no column {wanted!r} for the"
    raise UserError(f"{problem} {what} column of {title}; its columns are {shown}: set {option(f'data.{what}_column')}")


def _shown(kind: Any) -> str:
    return str(kind.dtype) if type(kind).__name__ == "Value" else type(kind).__name__


def _labelled(rows: Any, split: str, column: str, none: Collection[str]) -> list[tuple[str, str]]:
    """(id, class) of each row that has a label; -1, an empty cell and NaN mean none."""
    kind = rows.features[column]
    values = rows.with_format(None)[column][:]
    if hasattr(kind, "names"):
        values = _named(kind, values)
    labels = [label_of(value, f"row {row} of {split}, column {column!r}", none) for row, value in enumerate(values)]
    pairs = [(f"{split}/{row}", label) for row, label in enumerate(labels) if label is not None]
    if len(pairs) < len(values):
        log.warning("ignored %d of %d images without a label in %s", len(values) - len(pairs), len(values), split)
    return pairs


def _check_repeats(pairs: Sequence[tuple[str, str]], column: str, title: str) -> None:
    """UserError where each row has a value of its own in the column that was taken for the classes."""
    if len({label for _, label in pairs}) == len(pairs) > 2:
        raise UserError(f"each of the {len(pairs)} rows of {title} has another value in {column!r}, as captions and "
                        f"file names have: set {option('data.label_column')} to the column of the classes, which may "
                        "be this one")


def _classes(kind: Any, found: Mapping[str, Sequence[tuple[str, str]]], title: str) -> list[str] | None:
    """The classes that have images: a data set filtered to some classes keeps the ClassLabel of all."""
    used = {key for pairs in found.values() for _, key in pairs}
    if not hasattr(kind, "names"):
        return sorted(used, key=int) if re.match("u?int|float", str(kind.dtype)) else None
    names = [label_of(name, f"the classes of {title}") or "" for name in kind.names]
    times = Counter(names)
    if equal := [repr(given) for given, name in zip(kind.names, names, strict=True) if times[name] > 1]:
        raise UserError(f"the ClassLabel of {title} has classes of one name, {few(equal)}: make them one class or "
                        "rename all but one, with cast_column")
    if strange := sorted(used.difference(names)):
        raise UserError(f"the labels {few(strange)} of {title} are not among the classes of its training images "
                        f"({few(names)}): give all splits the same ClassLabel, with cast_column")
    if absent := [key for key in names if key not in used]:
        log.warning("%d of %d classes of %s have no image and are left out: %s",
                    len(absent), len(names), title, few(absent))
    return list(dict.fromkeys(key for key in names if key in used))
