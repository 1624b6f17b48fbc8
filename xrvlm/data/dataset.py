"""A data set and its subsets, the few labels sampled from them, and the split.json that records both.

The loaders are folder.py, table.py, hub.py and datasets/; each is `registered` and ends in `assemble`.
"""

import inspect
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec

from xrvlm.distributed import seed_of
from xrvlm.errors import UserError, check_fields, check_has, check_types, either, option, typed
from xrvlm.files import digest, user_path, write_json
from xrvlm.text.class_names import is_list, name_classes, names_of_sorted
from xrvlm.text.class_text import check_numbers, check_words, few
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)

SUBSETS = ("train", "val", "test")
MOST_VALIDATION_SHOTS = 4    # a class; as CoOp and most work after it
# ids that begin so are no paths in the data set: then comes the set and the id in it, or a path in extra images
JOINT, EXTRA = "joint:", "extra:"
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image."""

    id: str       # relative POSIX path, or "train/12" in an Arrow set
    label: int    # index into Split.classes


@dataclass(frozen=True)
class Split:
    """Which images are for training, for validation and for testing."""

    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...] = ()
    test: tuple[Item, ...] = ()
    extra: tuple[Item, ...] = ()         # for training alone, not drawn from: see extra.py

    def __post_init__(self) -> None:
        check_types({"classes": self.classes}, {"classes": Sequence[str]})
        for subset in (*SUBSETS, "extra"):
            try:
                strange = {item.label for item in getattr(self, subset)} - {*range(len(self.classes))}
            except (TypeError, AttributeError) as error:
                raise UserError(f"{subset} of a Split must be a list of Items: {error}") from error
            if strange:
                raise UserError(f"{subset} of a Split has the label {min(strange, key=str)!r}, which is the index of "
                                f"none of its {len(self.classes)} classes: labels are 0 ... {len(self.classes) - 1}")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the class names and of the images and labels of each subset."""
        subsets = [[[item.id, item.label] for item in getattr(self, subset)] for subset in SUBSETS]
        return digest([self.classes, *subsets])

    @property
    def summary(self) -> str:
        """What was understood, for the log: `3 classes (ant, bee, wasp); images: 48 to train on ...`."""
        extra = [item for item in self.train if is_extra(item.id)]
        uses = {"train on": self.train[:len(self.train) - len(extra)], "validate on": self.val, "test on": self.test}
        images = [f"{len(items)} to {use}" for use, items in uses.items() if items]
        images += [f"and {len(extra)} extra images to train on"] if extra else []
        return (f"{len(self.classes)} classes ({few(self.classes, 3)}); images: {', '.join(images)}; "
                f"chance {100 / len(self.classes):.1f} %")


@dataclass(frozen=True)
class Dataset:
    """A data set before sampling: every training image is in `train`; val and test are empty where none is given.

    `loader` is {"name": registry name, "options": of the loader}, which `load_dataset` takes to load it again, or None.
    """

    name: str
    source: ImageSource
    split: Split
    world: int | None = None    # the number of a drawn world
    loader: Mapping[str, Any] | None = None
    hierarchy: Mapping[str, str] | None = None       # {node: the one above it}, see evaluation/hierarchy.py
    joint: bool = False                  # whether its topmost nodes are the data sets that it joins, see joint.py

    def __post_init__(self) -> None:
        check_fields(self, but=("source",))
        check_has("source", self.source, "an ImageSource, which has read and sha256", "read", "sha256")


def registered(name: str, layout: Callable[..., Any] | None = None,
               ) -> Callable[[Callable[P, Dataset]], Callable[P, Dataset]]:
    """Decorate the loader that conf/data/`name`.yaml registers, so that its data sets remember how they were loaded.

    Each takes `extra` beside its own options: a folder of images for training alone, see extra.py.
    `layout`, of a published data set, returns its official Layout for those options of the loader that it takes.
    """
    def decorate(load: Callable[P, Dataset]) -> Callable[P, Dataset]:
        signature, checked = inspect.signature(load), typed(load)

        @wraps(load)
        def loader(*args: Any, extra: str | Path | None = None, **kwargs: Any) -> Dataset:
            dataset = checked(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            if dataset.loader is None or dataset.loader["name"] != name:       # else the loader knows better
                dataset = replace(dataset, loader=_remembered(name, {**given.arguments, "extra": None}))
            return dataset if extra is None else import_module("xrvlm.data.extra").with_extra(dataset, extra)

        return _taking_extra(loader, signature, layout)
    return decorate


def _taking_extra(loader: Any, signature: inspect.Signature, layout: Any) -> Any:
    """Say of the loader what `registered` adds to it: the option `extra`, and the layout."""
    extra = inspect.Parameter("extra", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | Path | None)
    loader.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])
    loader.__annotations__ = {**loader.__annotations__, "extra": extra.annotation}
    loader.__dict__["layout"] = layout
    return loader


def with_test_set(split: Split) -> Split:
    """`split` itself if it has a test set, else with a quarter of each class, by the hash of its paths, as test set.

    A class of two or more images gives at least one and never all. Neither seed nor shots change the test set.
    """
    if split.test:
        return split
    test: set[Item] = set()
    for order in _drawn(split.train, len(split.classes), "test"):
        test.update(order[:(len(order) + 2) // 4])    # a quarter, rounded half up: one of two images, none of one
    return replace(split, train=_only(split.train, test, there=False), test=_only(split.train, test))


def own_id(item_id: str) -> str:
    """The id of an image in its own set: what is drawn by it is drawn alike in a joint data set."""
    return item_id.partition("/")[2] if item_id.startswith(JOINT) else item_id


def is_extra(item_id: str) -> bool:
    """Whether the image is for training alone, beside those that are drawn."""
    return own_id(item_id).startswith(EXTRA)


def sample_shots(split: Split, shots: int | None, seed: int, val: bool = False) -> Split:
    """Sample `shots` training images of each class (None: all) and, with `val`, validation images.

    The sample depends on the seed and on the path of each image, not on the order of files and classes; the images of
    4 shots are among those of 8. With `val`, min(shots, 4) more images a class are for validation (for all shots: 10 %
    of the class): from the validation set of the data set (for all shots: all of it), else from the training images
    that are left. Raises UserError for a class without a training image.
    """
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 1):
        raise UserError(f"{option('shots', shots)} must be a whole number of images a class, at least 1, or "
                        f"{either('None for all', 'all')}")
    if seed < 0:
        raise UserError(f"{option('seed', seed)} must be at least 0: each number draws other images, always the same")
    count = len(split.classes)
    orders = _drawn(split.train, count, seed, "shots")
    _check_enough(split.classes, orders, shots)
    held_out: set[Item] = set()
    if val and split.val:
        most = len(split.val) if shots is None else min(shots, MOST_VALIDATION_SHOTS)
        held_out.update(item for order in _drawn(split.val, count, seed, "val") for item in order[:most])
    elif val:    # from the end of the order, so that few shots and many have the same validation images
        held_out.update(item for order in orders for item in order[len(order) - _held_out(len(order), shots):])
    train = {item for order in orders for item in order[:shots] if item not in held_out}
    if val:
        _warn_of_no_validation(split.classes, held_out)
    return replace(split, train=_only(split.train, train), val=_only((*split.train, *split.val), held_out))


def label_budget(split: Split) -> int:
    """The number of labels that a run uses, those of validation images included and those of extra images not."""
    return sum(not is_extra(item.id) for item in (*split.train, *split.val))


def hash_images(split: Split, source: ImageSource) -> dict[str, str]:
    """{id: sha256 of the image file's bytes} of all subsets. UserError where an extra image is one of the others."""
    hashes = {item.id: source.sha256(item.id) for subset in SUBSETS for item in getattr(split, subset)}
    if split.extra:
        from xrvlm.data.images import check_extra
        check_extra(hashes, split)
    return hashes


def write_split(path: Path, split: Split, source: ImageSource, *, seed: int, shots: int | str | None,
                hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write split.json, the images of each subset with their hashes, and return its content.

    `duplicates` lists images of the test set that are byte-identical to a training or validation image. Warns of them,
    and of bytes that are images of two classes.
    """
    hashes = hashes or hash_images(split, source)
    subsets = {subset: [{"path": item.id, "class": split.classes[item.label], "sha256": hashes[item.id]}
                    for item in getattr(split, subset)] for subset in SUBSETS}
    copies: list[dict[str, Any]] = []
    if len({entry["sha256"] for entries in subsets.values() for entry in entries}) < sum(map(len, subsets.values())):
        from xrvlm.data.images import copies_in
        copies = copies_in(subsets)
    record = {"classes": list(split.classes), "seed": seed, "shots": shots, "fingerprint": split.fingerprint,
              **subsets, "duplicates": copies}
    write_json(path, record)
    return record


def assemble(name: str, source: ImageSource, found: Mapping[str, Sequence[tuple[str, str]]], *,
             classes: Sequence[str] | None = None, class_names: Any = None, skip_damaged: bool = False,
             test_only: bool = False) -> Dataset:
    """The data set that every loader returns.

    `found` is {subset: (id, class) of its images}, in any order; `classes` are in the order of their labels (None:
    sorted; a list of `class_names` for classes that are numbers is in the order 1, 2 ... 10); `test_only`: the data set
    has no training images. Raises UserError for fewer than two classes, for a class without a training image and for
    `class_names` that do not fit.
    """
    known = sorted({key for pairs in found.values() for _, key in pairs}) if classes is None else list(classes)
    if len(known) < 2:
        raise UserError(f"found only one class in {name} ({few(known) or 'none'}); recognition needs two at least: "
                        "give each class its own folder or label")
    trained = {key for _, key in found.get("train", ())}
    if missing := [key for key in known if key not in trained and not test_only]:
        raise UserError(f"{name} has no training image of {len(missing)} classes: {few(missing)}; "
                        "add some to its training set or remove the class")
    if class_names is None or is_list(class_names):
        check_numbers(known)
    if class_names is None:
        check_words(known, "classes")
    by_name = names_of_sorted if classes is None else name_classes
    names = tuple(known) if class_names is None else by_name(known, class_names)
    labels = {key: label for label, key in enumerate(known)}
    subsets = {subset: tuple(Item(item_id, labels[key]) for item_id, key in sorted(found.get(subset, ())))
               for subset in SUBSETS}
    dataset = Dataset(name, source, Split(names, **subsets))
    if not skip_damaged:
        return dataset
    from xrvlm.data.images import drop_damaged
    return drop_damaged(dataset, workers=min(8, os.cpu_count() or 1))


def _remembered(name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `Dataset.loader` holds, paths absolute; None where an option, such as a data set in memory, is not JSON."""
    kept = dict(options)
    for key in ("root", "path", "class_names", "hierarchy"):
        if isinstance(value := kept.get(key), str | Path) and (path := user_path(value)).exists():
            kept[key] = value if key == "class_names" and path.is_dir() else str(path.resolve())
    if "file" in kept:
        kept["file"] = str(Path(kept["root"]) / user_path(kept["file"]))
    try:
        return json.loads(json.dumps({"name": name, "options": kept}))
    except TypeError:
        return None


def _drawn(items: Iterable[Item], classes: int, *key: object) -> list[list[Item]]:
    """The items of each class in an order that depends only on `key` and on the path of each."""
    groups: list[list[Item]] = [[] for _ in range(classes)]
    for item in items:
        groups[item.label].append(item)
    # NFC: macOS gives the same file names with accents as separate characters
    return [sorted(group, key=lambda item: (seed_of(*key, unicodedata.normalize("NFC", own_id(item.id))), item.id))
            for group in groups]


def _held_out(size: int, shots: int | None) -> int:
    """How many of the `size` training images of a class are for validation, after the shots are taken."""
    if shots is None:
        return min(max(1, (size + 5) // 10), size - 1)
    return max(0, min(shots, MOST_VALIDATION_SHOTS, size - shots))


def _only(items: Iterable[Item], chosen: set[Item], there: bool = True) -> tuple[Item, ...]:
    return tuple(item for item in items if (item in chosen) == there)


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
