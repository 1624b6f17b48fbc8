"""Many data sets as one: their classes side by side in one label space, each set a domain above its classes.

One model for many fine-grained sets is the setting of Pro-NeXt.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from xrvlm.data.dataset import JOINT, SUBSETS, Dataset, Item, Split, own_id, registered, with_test_set
from xrvlm.data.hierarchy import with_parents
from xrvlm.data.images import ManySources, joint_id
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError, check_types, odd_sign, option, plain_text
from xrvlm.evaluation.hierarchy import ROOT, Hierarchy
from xrvlm.files import file_text, shipped, user_path
from xrvlm.text.class_text import check_unique, few, readable
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)
EXAMPLE = "[{name: flowers, root: DIR}, {data: drawn_birds, world: 2}]"
OF_ALL = {"data": str, "name": str | None, "root": str | Path | None}      # options that are read here
Sets = str | Path | Sequence[Any]        # each a data set, a mapping, a registry name or a folder


@dataclass(frozen=True)
class Sources(ManySources):
    """The images of many sets, by the names of the sets."""

    sets: Mapping[str, ImageSource]

    def _of(self, item_id: str) -> tuple[ImageSource, str]:
        return self.sets[item_id.removeprefix(JOINT).partition("/")[0]], own_id(item_id)


@registered("joint")
def joint(sets: Sets, *, name: str | None = None) -> Dataset:
    """Join data sets: the classes of the first, then those of the second ...; a test set stays what it was.

    A class keeps its name. Where sets share one, each is called with its set behind it: "rose (flowers)". The sets are
    the topmost nodes of the hierarchy, above the nodes of their own. Few shots draw the images that they draw of each
    set alone.

    Args:
        sets: data sets; or what loads each: a mapping of `data`, the registry name of a loader, `name`, and options of
            the loader; the registry name alone; or a folder. Without `data`, a folder with a split.csv is a table, any
            other one holds class folders. Or a .yaml file with the list, whose folders may be relative to it.
        name: of the data set; None: the names of the sets, joined by "+".

    Raises:
        UserError: fewer than two sets, two of one name, a set that cannot be loaded, is joint itself or leaves no image
            to test on, a set that is called as a class.
    """
    found = [each if isinstance(each, Dataset) else _loaded(each) for each in _listed(sets)]
    _check(found)
    if any(each.split.test for each in found):           # else the run draws a quarter of each class
        found = [replace(each, split=with_test_set(each.split)) for each in found]
    names = _class_names(found)
    loaders = [each.loader and {"data": each.loader["name"], **each.loader["options"], "name": each.name}
               for each in found]
    dataset = Dataset(
        name or "+".join(each.name for each in found), Sources({each.name: each.source for each in found}),
        _split(found, tuple(each for classes in names for each in classes)), joint=True,
        loader={"name": "joint", "options": {"sets": loaders, "name": name, "extra": None}} if all(loaders) else None)
    return with_parents(dataset, _parents(found, names))


def _listed(sets: Any) -> list[Any]:
    """Each entry of `sets`: a data set, or how to load it."""
    beside = None
    if isinstance(sets, str | Path):
        path = user_path(sets)
        if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
            raise UserError(f"{option('data.sets')} is a list such as {EXAMPLE}, or a .yaml file of one; found {sets}")
        try:
            sets, beside = plain_text(yaml.safe_load(file_text(path))), path.parent
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no YAML ({reason}); it holds a list such as {EXAMPLE}") from error
    if not isinstance(sets, Sequence) or isinstance(sets, str):
        raise UserError(f"{option('data.sets')} must be a list such as {EXAMPLE}")
    if len(sets) < 2:
        raise UserError(f"{option('data.sets')} names {len(sets)} data set{'s' * (not sets)}: a joint one has two at "
                        "least; of one alone name the data set itself")
    return [each if isinstance(each, Dataset) else _spelled(each, beside) for each in sets]


def _spelled(each: Any, beside: Path | None) -> dict[str, Any]:
    """How to load a set, in full: {"data": the name of a loader, ...}. A root may be relative to `beside`."""
    if isinstance(each, str | Path) and str(each).strip():
        each = {"data": each} if str(each) in shipped("data") else {"root": str(each)}
    if not isinstance(each, Mapping) or not ("data" in each or "root" in each):
        raise UserError(f"{each!r} in {option('data.sets')} is no data set: write a folder, or data or root with other "
                        f"options as in {EXAMPLE}")
    given = dict(each)
    check_types({key: given[key] for key in OF_ALL if key in given}, OF_ALL, "data.sets")
    if given.get("root") is not None:
        near = None if beside is None else beside / given["root"]
        given["root"] = str(near if near is not None and near.exists() else user_path(given["root"]))
    if "data" not in given:
        given["data"] = "table" if (Path(given["root"]) / "split.csv").is_file() else "folder"
    return given


def _loaded(given: Mapping[str, Any]) -> Dataset:
    options = {key: value for key, value in given.items() if key not in ("data", "name")}
    named = given.get("name") or given.get("root") or given["data"]
    if given["data"] == "joint":
        raise UserError(f"{named} in {option('data.sets')} is joint itself: list its sets instead")
    try:
        dataset = load_dataset(given["data"], **options)
    except UserError as error:
        raise UserError(f"{named} in {option('data.sets')}: {error}") from error
    return replace(dataset, name=dataset.name if given.get("name") is None else given["name"])


def _check(sets: Sequence[Dataset]) -> None:
    for index, each in enumerate(sets):
        same = next((other for other in sets[:index] if (other.source, other.split) == (each.source, each.split)), None)
        if same is not None:
            raise UserError(f"{same.name} and {each.name} in {option('data.sets')} are the same images: name each set "
                            "once")
    names = Counter(each.name.casefold() for each in sets)
    for each in sets:
        if odd := "a /" if "/" in each.name else odd_sign(each.name) or ("no letter" if not each.name.strip() else ""):
            raise UserError(f"the set {each.name!r} has {odd} in its name: give it another one, as in {EXAMPLE}")
        if each.joint:
            raise UserError(f"{each.name} is joint itself: list its sets instead")
        if names[each.name.casefold()] > 1:
            raise UserError(f"two sets in {option('data.sets')} are called {each.name.casefold()!r}: give each its own "
                            f"name, as in {EXAMPLE}")
        if not with_test_set(each.split).test:
            raise UserError(f"{each.name} in {option('data.sets')} has no image left to test on: give a class two "
                            "images, or a test set")


def _class_names(sets: Sequence[Dataset]) -> list[tuple[str, ...]]:
    """The classes of each set under names that no other set has."""
    count = Counter(name for each in sets for name in {_letters(name) for name in each.split.classes})
    names = [tuple(f"{name} ({each.name})" if count[_letters(name)] > 1 else name for name in each.split.classes)
             for each in sets]
    check_unique([name for classes in names for name in classes], "classes of the sets")
    if called := [each.name for each in sets if any(each.name in classes for classes in names)]:
        raise UserError(f"the set {called[0]!r} is called as a class: give the set another name, as in {EXAMPLE}")
    return names


def _parents(sets: Sequence[Dataset], names: Sequence[Sequence[str]]) -> dict[str, str]:
    """{node: the one above it}: each set stands above its classes, or above the tree of its own."""
    trees = [None if each.hierarchy is None else Hierarchy(each.split.classes, each.hierarchy) for each in sets]
    inner = [[] if tree is None else tree.nodes[len(tree.classes):] for tree in trees]
    count = Counter(node for group in (*inner, *names, [each.name for each in sets]) for node in group)
    found: dict[str, str] = {}
    for each, tree, nodes, classes in zip(sets, trees, inner, names, strict=True):
        called = dict(zip(each.split.classes, classes, strict=True))
        called |= {node: f"{node} ({each.name})" if count[node] > 1 else node for node in nodes}
        found[each.name] = ROOT
        for node, name in called.items():
            above = ROOT if tree is None else tree.parents[node]
            found[name] = each.name if above == ROOT else called[above]
    return found


def _split(sets: Sequence[Dataset], classes: tuple[str, ...]) -> Split:
    with_val = [each.name for each in sets if each.split.val]
    if with_val and len(with_val) < len(sets):
        log.info("the validation sets of %s are left out, since other sets have none: validation images are drawn from "
                 "the training images", few(with_val))
    parts: dict[str, list[Item]] = {part: [] for part in (*SUBSETS, "extra")}
    first = 0
    for each in sets:
        for part, items in parts.items():
            if part != "val" or len(with_val) == len(sets):
                items += [Item(joint_id(each.name, item.id), first + item.label)
                          for item in getattr(each.split, part)]
        first += len(each.split.classes)
    return Split(classes, **{part: tuple(items) for part, items in parts.items()})


def _letters(name: str) -> str:
    return " ".join(readable(name).casefold().split())
