"""The forms in which data sets list their images: lines of an id and a value, MATLAB's .mat, paths, class folders."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from xrvlm.data.datasets.layout import Layout, Listing, below
from xrvlm.errors import UserError
from xrvlm.text.class_text import few, readable
from xrvlm.views import SUFFIXES

FIX = "unpack it again"
ID_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read_lines(path: Path) -> list[str]:
    """The lines that are not blank, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; {FIX}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_pairs(path: Path) -> dict[str, str]:
    """{id: value} of lines such as `17 001.Black_footed_Albatross/x.jpg`; a value may hold spaces."""
    pairs: dict[str, str] = {}
    for line in read_lines(path):
        key, space, value = line.partition(" ")
        if not space or key in pairs:
            raise UserError(f"{path} is damaged: {'no value in' if not space else 'a second line for'} {line!r}; {FIX}")
        pairs[key] = value.strip()
    return pairs


def read_mat(path: Path, *names: str) -> list[Any]:
    """The variables `names` of a .mat file as flat arrays: of numbers, of strings, or of structs."""
    try:
        content = loadmat(path, squeeze_me=True)
        return [np.atleast_1d(content[name]) for name in names]
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}; it is another file under that name: {FIX}") from error
    except Exception as error:    # loadmat may raise anything on a damaged file
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}; {FIX}") from error


def layout_of_ids(title: str, address: str, *, classes: int, images: Mapping[str, int],
                  called: Callable[[str], str]) -> Layout:
    """The layout of CUB and NABirds: `ID_FILES` and images/. `called` edits the class names of classes.txt."""
    def read(root: Path, found: Mapping[str, Path]) -> Listing:
        listing = listing_of_ids(root, found)
        return replace(listing, classes=tuple(map(called, listing.classes)))

    return Layout(title, address, classes, images, read=read,
                  paths={file: (file,) for file in ID_FILES} | {"images/": ("images",)})


def listing_of_ids(root: Path, found: Mapping[str, Path]) -> Listing:
    """What `ID_FILES` list: the classes that have images, in the order of their numbers, named as in classes.txt."""
    images, labels = read_pairs(found["images.txt"]), read_pairs(found["image_class_labels.txt"])
    split, names = read_pairs(found["train_test_split.txt"]), read_pairs(found["classes.txt"])
    for file, pairs in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        if lost := next((key for key in images if key not in pairs), None):
            raise UserError(f"{found[file]} has no line for image {lost} of images.txt; {FIX}")
    used = {labels[key] for key in images}
    if lost := next((key for key in used if key not in names or not key.isdecimal()), None):
        raise UserError(f"{found['classes.txt']} has no class {lost}, which image_class_labels.txt names; {FIX}")
    if lost := next((key for key in images if split[key] not in ("0", "1")), None):
        raise UserError(f"{found['train_test_split.txt']} has {split[lost]!r} for image {lost}, not 0 or 1; {FIX}")
    order = sorted(used, key=int)
    index = {key: label for label, key in enumerate(order)}
    paths = dict(zip(images, below(root, found["images/"], images.values()), strict=True))
    subsets = {subset: [(paths[key], index[labels[key]]) for key in images if split[key] == flag]
             for subset, flag in (("train", "1"), ("test", "0"))}
    return Listing(tuple(names[key] for key in order), subsets)


def first_folder(path: str) -> str:
    return path.partition("/")[0]


def listing_of_paths(root: Path, folder: Path, subsets: Mapping[str, Sequence[str]], *,
                     class_of: Callable[[str], str] = first_folder, order: Callable[[str], str] = str,
                     called: Callable[[str], str] = readable) -> Listing:
    """The form in which the path of an image, relative to `folder`, contains its class.

    Args:
        subsets: {subset: paths of its images}.
        class_of: the key of the class in a path.
        order: by which the keys are sorted, as a sort key.
        called: the class name of a key.
    """
    keys = sorted({class_of(path) for path in chain.from_iterable(subsets.values())}, key=order)
    index = {key: label for label, key in enumerate(keys)}
    return Listing(tuple(map(called, keys)), {
        subset: list(zip(below(root, folder, paths), (index[class_of(path)] for path in paths), strict=True))
        for subset, paths in subsets.items()})


def listing_of_folders(root: Path, folders: Mapping[str, Path], *, names: Mapping[str, str] | None = None,
                       called: Callable[[str], str] = readable, left_out: Collection[str] = ()) -> Listing:
    """The form without a list: class folders with the images directly in them.

    Args:
        folders: {subset: the folder that holds its class folders}.
        names: {class folder: class name} in the order of the classes; None: any folder, sorted.
        called: the class name of a folder, where `names` is None.
        left_out: class folders to ignore.

    Raises:
        UserError: there is a folder that `names` lacks, or no class folder.
    """
    held = {subset: _class_folders(folder, left_out) for subset, folder in folders.items()}
    there = set(chain.from_iterable(held.values()))
    if names is not None and (strange := sorted(there - names.keys())):
        raise UserError(f"{root} holds {few(strange, 3)}, where folders such as {next(iter(names))} belong; {FIX}")
    if bare := [folders[subset] for subset, classes in held.items() if not classes]:
        raise UserError(f"{bare[0]} holds no folder of a class: sort the images into folders, one a class"
                        f"{f', such as {next(iter(names))}' if names else ''}")
    keys = sorted(there) if names is None else [key for key in names if key in there]
    index = {key: label for label, key in enumerate(keys)}
    return Listing(tuple(called(key) if names is None else names[key] for key in keys), {
        subset: [(path, index[key]) for key in sorted(classes)
                 for path in below(root, folders[subset] / key, classes[key])] for subset, classes in held.items()})


def _class_folders(folder: Path, left_out: Collection[str]) -> dict[str, list[str]]:
    """{class folder: its image files} of the folders in `folder`."""
    names = [path.name for path in folder.iterdir()
             if path.is_dir() and path.name not in left_out and not path.name.startswith(".")]
    found = {}
    for name in names:
        with os.scandir(folder / name) as entries:           # a thousand images each: faster than Path
            found[name] = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
    return found
