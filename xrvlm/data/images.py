"""Images by their ids: which set of a joint data set each is of, which are extra ones, and which are there twice."""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from xrvlm.data.dataset import EXTRA, JOINT, SUBSETS, Dataset, Item, Split, hash_images, is_extra, own_id
from xrvlm.distributed import Bar
from xrvlm.errors import UserError, option
from xrvlm.text.class_text import few
from xrvlm.views import FORMATS, ImageSource, decode, read_image

log = logging.getLogger(__name__)

SIDE, SAVED_ANEW = 32, 5.0               # pixels, and levels of 255 by which a photo differs from itself saved anew
FIRST = 200                              # pairs that are looked at in any case
_SMALL: dict[str, np.ndarray] = {}       # by hash: the images of a sweep are looked at once
Entries = Iterable[Mapping[str, str]]    # {"path", "class", "sha256"} of images, as in split.json


class ManySources(ABC):
    """An ImageSource of images that lie in several: `_of` says in which, and what each is called there."""

    @abstractmethod
    def _of(self, item_id: str) -> tuple[ImageSource, str]: ...

    def read(self, item_id: str, /) -> bytes:
        source, name = self._of(item_id)
        return source.read(name)

    def sha256(self, item_id: str, /) -> str:
        source, name = self._of(item_id)
        return source.sha256(name)


def joint_id(name: str, item_id: str) -> str:
    """The id in a joint data set of an image of the set `name`, whose id there is `item_id`."""
    return f"{JOINT}{name}/{item_id}"


def duplicates(training: Entries, test: Entries) -> list[dict[str, Any]]:
    """{sha256, train: ids, test: ids} of the bytes that are in both."""
    seen: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"train": [], "test": []})
    for subset, entries in (("train", training), ("test", test)):
        for entry in entries:
            seen[entry["sha256"]][subset].append(entry["path"])
    return [{"sha256": key, **paths} for key, paths in sorted(seen.items()) if paths["train"] and paths["test"]]


def _again(entries: Entries) -> list[tuple[Mapping[str, str], Mapping[str, str]]]:
    """(the first image of its bytes, another of the same)."""
    first: dict[str, Mapping[str, str]] = {}
    return [(first[entry["sha256"]], entry) for entry in entries
            if first.setdefault(entry["sha256"], entry) is not entry]


def warn_of_two_classes(entries: Entries) -> None:
    if twice := [(one, two) for one, two in _again(entries) if one["class"] != two["class"]]:
        log.warning("%d images are in two classes (byte-identical): %s; leave each in one class", len(twice),
                    few(f"{one['path']} ({one['class']}) = {two['path']} ({two['class']})" for one, two in twice))


def copies_in(subsets: Mapping[str, Sequence[Mapping[str, str]]]) -> list[dict[str, Any]]:
    """`duplicates` of the training and validation images and the test images; warns of all bytes that are there twice,
    but of those within the test set only where they are in two classes."""
    copies = duplicates([*subsets["train"], *subsets["val"]], subsets["test"])
    warn_of_two_classes([entry for entries in subsets.values() for entry in entries])
    if twice := _again(subsets["train"]):
        log.warning("%d training images are copies of others (byte-identical): %s; a method learns from each of them, "
                    "and what it chooses on a part of them may be flattered", len(twice),
                    few(f"{one['path']} = {two['path']}" for one, two in twice))
    if chosen_by := duplicates(subsets["train"], subsets["val"]):
        log.warning("%d validation images are also training images (byte-identical): %s; what is chosen or calibrated "
                    "by them is flattered", sum(len(pair["test"]) for pair in chosen_by),
                    few(f"{pair['train'][0]} = {pair['test'][0]}" for pair in chosen_by))
    if copies:
        log.warning("%d test images are also training images (byte-identical): %s; the test score counts them",
                    sum(len(pair["test"]) for pair in copies),
                    few(f"{pair['train'][0]} = {pair['test'][0]}" for pair in copies))
    return copies


def warn_of_near_copies(nearest: Sequence[tuple[float, float, str, str]], source: ImageSource) -> None:
    """Warn of test images that are the same picture as the training image that is nearest to them, saved anew.

    `nearest` is as `write_nearest` returns it. Towers move a photo that was saved anew by more or less: the most
    alike `FIRST` pairs are looked at; where there is a copy among them, all. Those of equal bytes are told elsewhere.
    """
    pairs = [(test, train) for *_, test, train in sorted(nearest, reverse=True)]
    if near := [pair for pair in pairs[:FIRST] if _saved_anew(pair, source)]:
        near += [pair for pair in pairs[FIRST:] if _saved_anew(pair, source)]
        log.warning("%d test images look the same as a training image (saved anew, in other sizes or formats): %s; the "
                    "test score counts them", len(near), few(f"{train} = {test}" for test, train in near))


def _saved_anew(pair: tuple[str, str], source: ImageSource) -> bool:
    try:
        hashes = [source.sha256(name) for name in pair]
        one, two = (_small(name, key, source).astype(np.float32) for name, key in zip(pair, hashes, strict=True))
    except Exception:                    # a photo that is gone since it was encoded stops no run that is trained
        log.debug("not looked at: %s", pair, exc_info=True)
        return False
    return hashes[0] != hashes[1] and float(np.abs(one - two).mean()) < SAVED_ANEW


def _small(name: str, key: str, source: ImageSource) -> np.ndarray:
    if key not in _SMALL:
        with Image.open(BytesIO(source.read(name)), formats=FORMATS) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))               # a JPEG is decoded no larger than that
            _SMALL[key] = np.asarray(read_image(image).resize((SIDE, SIDE)), np.uint8)
    return _SMALL[key]


def check_extra(hashes: Mapping[str, str], split: Split) -> None:
    """UserError where an extra image is byte for byte an image of the data set; `hashes` are of all ids.

    One that is a test image would be trained on and tested with; one that is a labelled image would be trained on while
    folds or validation hold it out.
    """
    extra = [image for image in hashes if is_extra(image)]
    for subset, words in (("test", "test"), ("val", "validation"), ("train", "training")):
        own = {hashes[item.id]: item.id for item in getattr(split, subset) if not is_extra(item.id)}
        if same := [(image, own[hashes[image]]) for image in extra if hashes[image] in own]:
            raise UserError(f"{len(same)} of {len(extra)} extra images are {words} images: "
                            f"{few(f'{own_id(image).removeprefix(EXTRA)} is {other}' for image, other in same)}; "
                            f"remove them from {option('data.extra')}")


def learned_from(split: Split, source: ImageSource) -> tuple[Item, ...]:
    """The training images and the extra ones. UserError where they share an image; the test images are not read."""
    if split.extra:
        hash_images(replace(split, train=(*split.train, *split.extra), test=()), source)
    return *split.train, *split.extra


def unreadable_images(ids: Sequence[str], source: ImageSource, workers: int) -> set[str]:
    """The ids of the images that cannot be decoded. Decodes every image once, in `workers` threads."""
    def is_readable(item_id: str) -> bool:
        with contextlib.suppress(UserError):
            decode(source.read(item_id), item_id)
            return True
        return False

    with ThreadPoolExecutor(max(1, workers)) as pool:
        checks = pool.map(is_readable, ids)
        good = list(Bar(checks, total=len(ids), desc="checking images", unit="image"))
    return {item_id for item_id, readable in zip(ids, good, strict=True) if not readable}


def drop_damaged(dataset: Dataset, workers: int) -> Dataset:
    """The data set without the images that cannot be decoded; a warning names them. Decodes every image once."""
    subsets = (*SUBSETS, "extra")
    items = [item for subset in subsets for item in getattr(dataset.split, subset)]
    unreadable = unreadable_images([item.id for item in items], dataset.source, workers)
    if not (damaged := {item for item in items if item.id in unreadable}):
        return dataset
    log.warning("skipped %d of %d images, which cannot be read: %s", len(damaged), len(items),
                few(sorted(item.id for item in damaged), 20))
    kept = {subset: tuple(item for item in getattr(dataset.split, subset) if item not in damaged) for subset in subsets}
    return replace(dataset, split=replace(dataset.split, **kept))
