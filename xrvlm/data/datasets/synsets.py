"""What ImageNet and its variants share: a folder a synset, and names for the 1,000 synsets."""

from collections.abc import Mapping
from pathlib import Path

from xrvlm.data.datasets.layout import Layout, Listing
from xrvlm.data.datasets.lists import listing_of_folders


def read_synsets(root: Path, found: Mapping[str, Path], *, test: str, train: str | None = None,
                 numbered: bool = False) -> Listing:
    """The classes whose folders are there, in the order of all 1,000, by their curated names.

    `train` and `test` are places of the layout. `numbered`: the folders are called 0 to 999, not by synset.
    """
    from xrvlm.backbones.imagenet import imagenet_classes

    classes = imagenet_classes()
    names = dict(zip(map(str, range(len(classes))), classes.values(), strict=True)) if numbered else classes
    folders = {"train": found[train]} if train else {}
    return listing_of_folders(root, folders | {"test": found[test]}, names=names)


def variant(title: str, address: str, *, images: int, folders: tuple[str, ...], classes: int = 1000,
            numbered: bool = False) -> Layout:
    """A variant of ImageNet, which has a test part alone, in the first of `folders` that exists."""
    official = f"{folders[0]}/"

    def read(root: Path, found: Mapping[str, Path]) -> Listing:
        return read_synsets(root, found, test=official, numbered=numbered)

    return Layout(title, address, classes, {"test": images}, places={official: folders}, read=read)
