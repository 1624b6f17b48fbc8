"""How data sets list their images: text lines of an id and a value, MATLAB's .mat, paths or folders by class."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from xrvlm.data.datasets.layout import Listing, below
from xrvlm.errors import UserError
from xrvlm.text.class_text import few, readable
from xrvlm.views import SUFFIXES

FIX = "unpack it again"


def read_lines(path: Path) -> list[str]:
    """The lines with something in them, without the space around it."""
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
    """The variables `names` of a .mat file as flat arrays: of numbers, of texts, or of a struct's fields."""
    try:
        content = loadmat(path, squeeze_me=True)
        return [np.atleast_1d(content[name]) for name in names]
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}; it is not the list of that name: {FIX}") from error
    except Exception as error:    # a damaged file raises whatever its reader stumbles on
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}; {FIX}") from error


def listing_of_ids(root: Path, found: Mapping[str, Path]) -> Listing:
    """The form that CUB and NABirds share: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt.

    The classes are those with images, in the order of their numbers, and are called as classes.txt calls them.
    """
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
    parts = {part: [(paths[key], index[labels[key]]) for key in images if split[key] == flag]
             for part, flag in (("train", "1"), ("test", "0"))}
    return Listing(tuple(names[key] for key in order), parts)


def first_folder(path: str) -> str:
    return path.partition("/")[0]


def listing_of_paths(root: Path, folder: Path, parts: Mapping[str, Sequence[str]], *,
                     class_of: Callable[[str], str] = first_folder, order: Callable[[str], str] = str,
                     called: Callable[[str], str] = readable) -> Listing:
    """The form in which the path of an image, relative to `folder`, tells its class.

    `class_of` a path; the classes stand sorted by `order` of that, under the names that `called` makes of it.
    """
    keys = sorted({class_of(path) for path in chain.from_iterable(parts.values())}, key=order)
    index = {key: label for label, key in enumerate(keys)}
    return Listing(tuple(map(called, keys)), {
        part: list(zip(below(root, folder, paths), (index[class_of(path)] for path in paths), strict=True))
        for part, paths in parts.items()})


def listing_of_folders(root: Path, parts: Mapping[str, Path], *, names: Mapping[str, str] | None = None,
                       called: Callable[[str], str] = readable, left_out: Collection[str] = ()) -> Listing:
    """The form without a list: a folder a class in the folder of each part, with all the images directly in it.

    `names` holds the folders that there may be, in the order of the classes, with their names; None: any folder but
    those `left_out`, sorted, under the names that `called` makes. Raises UserError for others, and where none is there.
    """
    held = {part: _class_folders(folder, left_out) for part, folder in parts.items()}
    there = set(chain.from_iterable(held.values()))
    if names is not None and (strange := sorted(there - names.keys())):
        raise UserError(f"{root} holds {few(strange, 3)}, where folders such as {next(iter(names))} belong; {FIX}")
    if bare := [parts[part] for part, folders in held.items() if not folders]:
        raise UserError(f"{bare[0]} holds no folder of a class: sort the images into folders, one a class"
                        f"{f', such as {next(iter(names))}' if names else ''}")
    keys = sorted(there) if names is None else [key for key in names if key in there]
    index = {key: label for label, key in enumerate(keys)}
    return Listing(tuple(called(key) if names is None else names[key] for key in keys), {
        part: [(path, index[key]) for key in sorted(folders)
               for path in below(root, parts[part] / key, folders[key])] for part, folders in held.items()})


def _class_folders(folder: Path, left_out: Collection[str]) -> dict[str, list[str]]:
    """{folder: its image files} of the folders in `folder`."""
    names = [path.name for path in folder.iterdir()
             if path.is_dir() and path.name not in left_out and not path.name.startswith(".")]
    found = {}
    for name in names:
        with os.scandir(folder / name) as entries:           # a thousand images each: faster than Path
            found[name] = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
    return found
