"""The parts of a data set, the few labels drawn from them, the split.json that records both, and the images to read.

The readers stand beside this module: data_folder.py, data_table.py, data_hub.py. Each ends in `assemble`.
"""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xrvlm.errors import UserError
from xrvlm.files import digest, read_json, sha256, write_json
from xrvlm.randomness import seed_of
from xrvlm.text.class_text import few, name_classes
from xrvlm.views import ImageSource, decode

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
PART_OF_WORD = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLIT_FIX = "give the command of that run again with force=true"
MOST_VALIDATION_SHOTS = 4    # a class; as CoOp and most after it


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image."""

    id: str       # relative POSIX path, or "train/12" in an Arrow set
    label: int    # index into Split.classes




@dataclass(frozen=True)
class Split:
    """Which images are for what."""

    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...] = ()
    test: tuple[Item, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.classes, *([[item.id, item.label] for item in getattr(self, part)] for part in PARTS)])


@dataclass(frozen=True)
class Dataset:
    """A data set as found: all that is for training in `train`; val and test are empty where none is given."""

    name: str
    source: ImageSource
    split: Split
    world: int | None = None    # the seed of a drawn data set




def with_test_part(split: Split) -> Split:
    """Unchanged where a test part is given, else a quarter of each class by the hash of the paths becomes it.

    At least one image of a class with two or more, never all of them; the same whatever the seed and the shots.
    """
    if split.test:
        return split
    test: set[Item] = set()
    for order in _drawn(split.train, len(split.classes), "test"):
        test.update(order[:(len(order) + 2) // 4])    # rounded half up: one of two images, none of one
    return replace(split, train=_without(split.train, test), test=_only(split.train, test))


def sample_shots(split: Split, shots: int | None, seed: int, val: bool = False) -> Split:
    """`shots` labelled training images of each class (None: all), and validation images beside them where wanted.

    The draw depends on the seed and on each image's own path: 4 shots are contained in 8, whatever the order of
    files and classes. Validation is min(shots, 4) further images a class (10 % of the class for all shots), from the
    data set's own val part where it has one (for all shots: that whole part), else from what training leaves over.
    Raises UserError for a class without a training image.
    """
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 1):
        raise UserError(f"shots={shots!r} must be a whole number of images a class, at least 1, or all "
                        "(None in Python)")
    count = len(split.classes)
    orders = _drawn(split.train, count, seed, "shots")
    _check_enough(split.classes, orders, shots)
    held_out: set[Item] = set()
    if val and split.val:
        most = len(split.val) if shots is None else min(shots, MOST_VALIDATION_SHOTS)
        held_out.update(item for order in _drawn(split.val, count, seed, "val") for item in order[:most])
    elif val:    # from the far end of the order, so that it stays the same from a few shots to many
        held_out.update(item for order in orders for item in order[len(order) - _held_out(len(order), shots):])
    train = {item for order in orders for item in order[:shots] if item not in held_out}
    if val:
        _warn_of_no_validation(split.classes, held_out)
    return replace(split, train=_only(split.train, train), val=_only((*split.train, *split.val), held_out))


def label_budget(split: Split) -> int:
    """How many labels a run looks at: validation images are labels too."""
    return len(split.train) + len(split.val)


def hash_images(split: Split, source: ImageSource) -> dict[str, str]:
    """{id: sha256 of the image file's bytes} of all parts."""
    return hash_items([item for part in PARTS for item in getattr(split, part)], source)


def hash_items(items: Sequence[Item], source: ImageSource) -> dict[str, str]:
    """{id: sha256 of the image file's bytes}."""
    return {item.id: sha256(source.read(item.id)) for item in items}


def without_images_of(split_file: Path, items: Sequence[Item], hashes: Mapping[str, str]) -> tuple[Item, ...]:
    """The items whose bytes, of which `hash_items` made `hashes`, are not those of a training or validation image of
    the split; a warning counts the rest.
    """
    record = read_json(split_file, SPLIT_FIX)
    learned = {entry["sha256"] for part in ("train", "val") for entry in record[part]}
    kept = tuple(item for item in items if hashes[item.id] not in learned)
    if len(kept) < len(items):
        log.warning("left out %d of %d images: the run learned from them", len(items) - len(kept), len(items))
    return kept


def write_split(path: Path, split: Split, source: ImageSource, *, seed: int, shots: int | str | None,
                hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write split.json: which images stand in which part, with the hash of each; returns what was written.

    `duplicates` lists the byte-identical images that stand both in training (or validation) and in test.
    """
    hashes = hashes or hash_images(split, source)
    parts = {part: [{"path": item.id, "class": split.classes[item.label], "sha256": hashes[item.id]}
                    for item in getattr(split, part)] for part in PARTS}
    duplicates = _duplicates([*parts["train"], *parts["val"]], parts["test"])
    if duplicates:
        log.warning("%d test images stand in training too (byte-identical): %s; the test score counts them",
                    sum(len(pair["test"]) for pair in duplicates),
                    few(f"{pair['train'][0]} = {pair['test'][0]}" for pair in duplicates))
    record = {"classes": list(split.classes), "seed": seed, "shots": shots, "fingerprint": split.fingerprint,
              **parts, "duplicates": duplicates}
    write_json(path, record)
    return record


def read_split(path: Path) -> Split:
    """The split that `write_split` wrote; UserError where the file is damaged or was changed by hand."""
    fix = SPLIT_FIX
    record = read_json(path, fix)
    try:
        labels = {name: label for label, name in enumerate(record["classes"])}
        parts = {part: tuple(Item(entry["path"], labels[entry["class"]]) for entry in record[part]) for part in PARTS}
        split = Split(tuple(labels), **parts)
        intact = split.fingerprint == record["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a split: {error!r} in it; {fix}") from error
    if not intact:
        raise UserError(f"{path} was changed after it was written; {fix}")
    return split


def drop_damaged(dataset: Dataset, workers: int) -> Dataset:
    """The data set without the images that cannot be decoded; a warning names them. Decodes every image once."""
    items = [item for part in PARTS for item in getattr(dataset.split, part)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checks = pool.map(lambda item: _is_readable(dataset.source, item.id), items)
        good = list(tqdm(checks, total=len(items), desc="checking images", unit="image", disable=None))
    damaged = {item for item, readable in zip(items, good, strict=True) if not readable}
    if not damaged:
        return dataset
    log.warning("skipped %d of %d images, which cannot be read: %s", len(damaged), len(items),
                few(sorted(item.id for item in damaged), 20))
    kept = {part: _without(getattr(dataset.split, part), damaged) for part in PARTS}
    return replace(dataset, split=replace(dataset.split, **kept))


def assemble(name: str, source: ImageSource, found: Mapping[str, Sequence[tuple[str, str]]], *,
             classes: Sequence[str] | None = None, class_names: Any = None, skip_damaged: bool = False,
             test_alone: bool = False) -> Dataset:
    """The common end of every reader: `found` holds (id, class) for each part, in any order.

    `classes` in their order; None: sorted. Raises UserError for fewer than two classes, for a class without an image
    in train, unless the data set is published with a test part alone (`test_alone`), and for `class_names` that do not
    fit.
    """
    known = sorted({key for pairs in found.values() for _, key in pairs}) if classes is None else list(classes)
    if len(known) < 2:
        raise UserError(f"found only one class in {name} ({few(known) or 'none'}); recognition needs two at least: "
                        "give each class a folder or a label of its own")
    trained = {key for _, key in found.get("train", ())}
    if missing := [key for key in known if key not in trained and not test_alone]:
        raise UserError(f"{name} has no training image of {len(missing)} classes: {few(missing)}; "
                        "add some to its train part or remove the class")
    labels = {key: label for label, key in enumerate(known)}
    parts = {part: tuple(Item(item_id, labels[key]) for item_id, key in sorted(found.get(part, ()))) for part in PARTS}
    dataset = Dataset(name, source, Split(name_classes(known, class_names), **parts))
    return drop_damaged(dataset, workers=min(8, os.cpu_count() or 1)) if skip_damaged else dataset


def _drawn(items: Iterable[Item], classes: int, *key: object) -> list[list[Item]]:
    """The items of each class in an order that depends only on `key` and on each item's own path."""
    groups: list[list[Item]] = [[] for _ in range(classes)]
    for item in items:
        groups[item.label].append(item)
    # NFC: the same photos on a Mac have the same names, but spell their accents with two characters
    return [sorted(group, key=lambda item: (seed_of(*key, unicodedata.normalize("NFC", item.id)), item.id))
            for group in groups]


def _held_out(size: int, shots: int | None) -> int:
    """How many of a class's `size` training images become validation: the shots come first."""
    if shots is None:
        return min(max(1, (size + 5) // 10), size - 1)
    return max(0, min(shots, MOST_VALIDATION_SHOTS, size - shots))


def _only(items: Iterable[Item], chosen: set[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item in chosen)


def _without(items: Iterable[Item], dropped: set[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item not in dropped)


def _check_enough(classes: Sequence[str], orders: Sequence[Sequence[Item]], shots: int | None) -> None:
    if empty := [name for name, order in zip(classes, orders, strict=True) if not order]:
        raise UserError(f"no training image of {len(empty)} classes: {few(empty)}; add some or remove the class")
    short = [f"{name} ({len(order)})" for name, order in zip(classes, orders, strict=True) if len(order) < (shots or 0)]
    if short:
        log.warning("%d of %d classes have fewer than %d training images and give all they have: %s",
                    len(short), len(classes), shots, few(short))


def _warn_of_no_validation(classes: Sequence[str], held_out: set[Item]) -> None:
    there = {item.label for item in held_out}
    if bare := [name for label, name in enumerate(classes) if label not in there]:
        log.warning("no image is left over for the validation of %d of %d classes: %s",
                    len(bare), len(classes), few(bare))


def _duplicates(training: Iterable[Mapping[str, str]], test: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"train": [], "test": []})
    for part, entries in (("train", training), ("test", test)):
        for entry in entries:
            seen[entry["sha256"]][part].append(entry["path"])
    return [{"sha256": key, **paths} for key, paths in sorted(seen.items()) if paths["train"] and paths["test"]]


def _is_readable(source: ImageSource, item_id: str) -> bool:
    try:
        decode(source.read(item_id), item_id)
    except UserError:
        return False
    return True
