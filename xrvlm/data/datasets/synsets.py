"""What ImageNet and its variants share: a folder a synset, and names for the 1,000 synsets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_folders


def read_synsets(root: Path, found: Mapping[str, Path], *, test: str, train: str | None = None,
                 numbered: bool = False) -> Listing:
    """The classes that have a folder, in the order of ImageNet's 1,000, with the curated names of CLIP's authors.

    Args:
        test: the folder of the test images, as the layout names it.
        train: the same of the training images; None: there are none.
        numbered: the folders are named 0 to 999 instead of by synset.
    """
    from xrvlm.backbones.openclip_load import imagenet_classes

    classes = imagenet_classes()
    names = dict(zip(map(str, range(len(classes))), classes.values(), strict=True)) if numbered else classes
    folders = {"train": found[train]} if train else {}
    return listing_of_folders(root, folders | {"test": found[test]}, names=names)


def variant(registry_name: str, title: str, address: str, *, images: int, folders: tuple[str, ...],
            classes: int = 1000, numbered: bool = False) -> Callable[..., Dataset]:
    """The loader of a variant of ImageNet that has only test images, in the first of `folders` that exists."""
    official = f"{folders[0]}/"

    def layout() -> Layout:
        return Layout(title, address, classes, {"test": images}, paths={official: folders}, read=read)

    def read(root: Path, found: Mapping[str, Path]) -> Listing:
        return read_synsets(root, found, test=official, numbered=numbered)

    @registered(registry_name, layout)
    def loader(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
               skip_damaged: bool = False, name: str = registry_name) -> Dataset:
        """Load the test images in `root`. `class_names`: see `image_folder`; None: the curated names of CLIP's authors.

        Raises UserError, which names the fix.
        """
        return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)

    return loader
