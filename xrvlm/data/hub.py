"""A data set of Hugging Face's `datasets`: from the hub by name, or from a folder that `save_to_disk` wrote."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xrvlm.data.dataset import SUBSETS, Dataset, assemble, registered
from xrvlm.data.folder import subset_of
from xrvlm.data.table import MISSING, label_of, names_for_none
from xrvlm.errors import UserError, check_has, option
from xrvlm.files import damaged_fix, file_bytes, sha256, user_path
from xrvlm.text.class_text import few

log = logging.getLogger(__name__)

INSTALL = "pip install 'xrvlm[datasets]'"
OF_A_DATASET = ("features", "select_columns", "with_format", "__len__")      # a streamed one has no length
LOOKED_AT = 32                           # images of a split that say what the numbers of all mean
CHANNELS = (1, 3, 4)                     # of an array that is an image: grey, RGB, RGBA


@dataclass(frozen=True)
class HubSource:
    """The image column of each split; an id is "<split>/<row>"."""

    splits: Mapping[str, Any]            # datasets.Dataset, images not decoded
    image_column: str

    def read(self, item_id: str, /) -> bytes:
        split, row = item_id.rsplit("/", 1)
        return _encoded(self.splits[split][int(row)][self.image_column], item_id, self)

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
                label_column: str | None = None,
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
    label = _label_column(features, label_column, image, title)
    subsets = _with_labels(subsets, splits, image, label, title)
    found: dict[str, list[tuple[str, str]]] = {}
    none = MISSING if hasattr(features[label], "names") else names_for_none(
        value for split in subsets for value in splits[split].with_format(None)[label][:])
    for split, subset in subsets.items():
        found.setdefault(subset, []).extend(_labelled(splits[split], split, label, none))
    if label_column is None and class_names is None and not hasattr(features[label], "names"):
        _check_repeats(next(iter(found.values())), label, title)
    classes = _classes(features[label], found, title)
    source = HubSource({split: _encoded_column(splits[split], image) for split in subsets}, image)
    return assemble(title, source, found, classes=classes, class_names=class_names, skip_damaged=skip_damaged,
                    test_only="train" not in subsets.values())


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


def _label_column(features: Mapping[str, Any], wanted: str | None, image: str, title: str) -> str:
    datasets = _library()
    others = {column: kind for column, kind in features.items() if column != image}
    return _column(others, wanted, "label", title, [
        lambda kind: isinstance(kind, datasets.ClassLabel),
        lambda kind: isinstance(kind, datasets.Value) and ("string" in kind.dtype or "int" in kind.dtype)])


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
        values = [None if value is None or value < 0 else kind.names[value] for value in values]
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


def _encoded(value: Any, item_id: str, column: HubSource) -> bytes:
    """The bytes of the image file in a cell; an array is encoded as PNG."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise UserError(f"cannot read the image {item_id}: the cell is empty; {damaged_fix()}")
    if isinstance(value, str):
        try:
            return file_bytes(Path(value))
        except OSError as error:
            raise UserError(f"cannot read the image {item_id} at {value[:200]}: {error.strerror}; {damaged_fix()}"
                            ) from error
    try:
        image = _as_image(np.asarray(value), column)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read the image {item_id}: {error}; "
                        f"set {option('data.image_column')} to a column of images") from error
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _as_image(values: np.ndarray, column: HubSource) -> Image.Image:
    """Of (h, w), (h, w, channels) or (channels, h, w); ValueError for other shapes: Pillow would take some of them."""
    given = values.shape
    if values.ndim == 3 and given[2] not in CHANNELS and given[0] in CHANNELS:
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in CHANNELS or not values.size:
        raise ValueError(f"its numbers are {' x '.join(map(str, given)) or 'one'}, not height x width or height x "
                         "width x 1, 3 or 4 channels")
    values = _as_8_bits(values, column)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def _as_8_bits(values: np.ndarray, column: HubSource) -> np.ndarray:
    """Numbers 0..255 as they are, fractions in 0..1 and yes or no times 255; ValueError for others, whose meaning is
    not plain.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 255:
        raise ValueError(f"its numbers are from {low:g} to {high:g}, not in 0..255 or 0..1")
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and high <= 1 and not column.of_255):
        values = values * 255
    return np.rint(values).astype(np.uint8)
