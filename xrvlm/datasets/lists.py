"""The kinds of files in which data sets list their images: text lines of an id and a value, and MATLAB's .mat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from xrvlm.datasets.layout import Listing, below
from xrvlm.errors import UserError

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
