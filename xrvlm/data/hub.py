"""A data set of Hugging Face's `datasets`: by its name on the hub, or a folder that its `save_to_disk` wrote."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xrvlm.data.dataset import PART_OF_WORD, Dataset, assemble
from xrvlm.errors import UserError
from xrvlm.files import digest, user_path
from xrvlm.text.class_text import few
from xrvlm.views import DAMAGED_FIX

log = logging.getLogger(__name__)

INSTALL = "pip install 'xrvlm[datasets]'"


@dataclass(frozen=True)
class HubSource:
    """The image column of each split; an id is "<split>/<row>"."""

    splits: Mapping[str, Any]            # datasets.Dataset, images not decoded
    image_column: str
    fingerprints: Mapping[str, str]      # of each split, as `datasets` keeps it

    def read(self, item_id: str, /) -> bytes:
        split, row = item_id.rsplit("/", 1)
        return _encoded(self.splits[split][int(row)][self.image_column], item_id)

    def fingerprint(self, ids: Sequence[str], /) -> str:
        return digest([dict(self.fingerprints), self.image_column, list(ids)])


def hub_dataset(path: Any, *, config: str | None = None, image_column: str | None = None,
                label_column: str | None = None,
                class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                skip_damaged: bool = False, name: str | None = None) -> Dataset:
    """`path`: a name on the hub, a saved folder, or a `datasets.Dataset` or `DatasetDict` in memory.

    The image column is found by its type; so is the label column: a ClassLabel, else the only column of strings or
    whole numbers. Classes stand in the order of the ClassLabel, else sorted. Raises UserError, which names the fix.
    """
    _library()
    loaded = _load(str(path), config) if isinstance(path, str | Path) else path
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    title = name or (Path(path).name if isinstance(path, str | Path) else "hub")
    parts = _parts(list(splits), title)
    features = splits[next(iter(parts))].features
    image = _image_column(features, image_column, title)
    label = _label_column(features, label_column, image, title)
    found: dict[str, list[tuple[str, str]]] = {}
    for split, part in parts.items():
        found.setdefault(part, []).extend(_labelled(splits[split], split, label))
    classes = _classes(features[label], found, title)
    # taken before the casts: the library's own fingerprint, the same each time the set is loaded
    fingerprints = {split: splits[split]._fingerprint for split in parts}
    source = HubSource({split: _encoded_column(splits[split], image) for split in parts}, image, fingerprints)
    return assemble(title, source, found, classes=classes, class_names=class_names, skip_damaged=skip_damaged)


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
    except Exception as error:    # whatever the library, its loaders or the network raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load the data set {path!r}: {reason}; check data.path and data.config, "
                        "or pass a folder written by save_to_disk") from error


def _parts(splits: Sequence[str], title: str) -> dict[str, str]:
    """The part that each usable split is for."""
    if len(splits) == 1:
        return {splits[0]: "train"}
    parts = {split: PART_OF_WORD[split.casefold()] for split in splits if split.casefold() in PART_OF_WORD}
    if "train" not in parts.values():
        raise UserError(f"{title} has no train split; its splits are {few(splits, 20)}")
    if others := [split for split in splits if split not in parts]:
        log.warning("ignored the splits %s of %s", few(others), title)
    return parts


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
    """The column that was asked for, or the only one that passes the first of `tests` which any column passes."""
    if wanted is not None and wanted in features:
        return wanted
    for accepts in tests if wanted is None else ():
        if fitting := [column for column, kind in features.items() if accepts(kind)]:
            if len(fitting) == 1:
                return fitting[0]
            break
    shown = few((f"{column} ({_shown(kind)})" for column, kind in features.items()), 20)
    problem = "cannot tell the" if wanted is None else f"no column {wanted!r} for the"
    raise UserError(f"{problem} {what} column of {title}; its columns are {shown}: set data.{what}_column")


def _shown(kind: Any) -> str:
    return str(kind.dtype) if type(kind).__name__ == "Value" else type(kind).__name__


def _labelled(rows: Any, split: str, column: str) -> list[tuple[str, str]]:
    """(id, class) of each row that has a label; -1 stands for none."""
    kind = rows.features[column]
    values = rows.with_format(None)[column][:]
    if hasattr(kind, "names"):
        values = [None if value is None or value < 0 else kind.names[value] for value in values]
    pairs = [(f"{split}/{row}", str(value)) for row, value in enumerate(values) if value is not None]
    if len(pairs) < len(values):
        log.warning("ignored %d of %d images without a label in %s", len(values) - len(pairs), len(values), split)
    return pairs


def _classes(kind: Any, found: Mapping[str, Sequence[tuple[str, str]]], title: str) -> list[str]:
    """The labels that any image carries: a data set cut down to some classes keeps the ClassLabel of all."""
    used = {key for pairs in found.values() for _, key in pairs}
    if not hasattr(kind, "names"):
        return sorted(used, key=int if "int" in str(kind.dtype) else None)
    if absent := [key for key in kind.names if key not in used]:
        log.warning("%d of %d classes of %s have no image and are left out: %s",
                    len(absent), len(kind.names), title, few(absent))
    return [key for key in kind.names if key in used]


def _encoded(value: Any, item_id: str) -> bytes:
    """The bytes of an image file, made anew only where an array is stored."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise UserError(f"cannot read the image {item_id}: the cell is empty; {DAMAGED_FIX}")
    if isinstance(value, str):
        try:
            return Path(value).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the image {item_id} at {value}: {error.strerror}; {DAMAGED_FIX}") from error
    try:
        image = Image.fromarray(np.asarray(value, dtype=np.uint8))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read the image {item_id}: {error}; "
                        "set data.image_column to a column of images") from error
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
