"""NABirds (Van Horn et al., CVPR 2015): 555 kinds of North American birds, 48,562 photos."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_ids

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def nabirds_v1(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
               skip_damaged: bool = False, name: str = "nabirds") -> Dataset:
    """The official split, 23,929 for training and 24,633 for testing.

    classes.txt also names the inner nodes of a tree (hierarchy.txt, which is not read); the classes are the 555 that
    have images, called by their whole name, since sexes, ages and morphs of a species are classes of their own:
    `Common Eider (Adult male)`.

    `root` is the archive's folder nabirds: images.txt, classes.txt ... and images/. `class_names`: see
    `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def layout() -> Layout:
    return Layout("NABirds", "https://dl.allaboutbirds.org/nabirds", classes=555,
                  images={"train": 23929, "test": 24633},
                  places={file: (file,) for file in FILES} | {"images/": ("images",)}, read=_read)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    listing = listing_of_ids(root, found)
    names = tuple(name.replace(" )", ")") for name in listing.classes)           # "Swainson's Hawk (Dark morph )"
    return replace(listing, classes=names)
