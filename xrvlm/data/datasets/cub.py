"""CUB-200-2011 (Wah et al., 2011): 200 species of birds, 11,788 photos."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_ids
from xrvlm.text.class_text import readable

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def cub_200_2011(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                 skip_damaged: bool = False, name: str = "cub") -> Dataset:
    """The official split, 5,994 for training and 5,794 for testing.

    `root` is the archive's folder CUB_200_2011: images.txt, classes.txt ... and images/. `class_names`: see
    `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def layout() -> Layout:
    return Layout("CUB-200-2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/", classes=200,
                  images={"train": 5994, "test": 5794},
                  places={file: (file,) for file in FILES} | {"images/": ("images",)}, read=_read)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    listing = listing_of_ids(root, found)
    # 001.Black_footed_Albatross
    return replace(listing, classes=tuple(readable(name.partition(".")[2] or name) for name in listing.classes))
