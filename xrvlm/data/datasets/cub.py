"""CUB-200-2011 (Wah et al., 2011): 200 species of birds, 11,788 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.lists import layout_of_ids
from xrvlm.text.class_text import readable


def layout() -> Layout:
    return layout_of_ids("CUB-200-2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/", classes=200,
                         images={"train": 5994, "test": 5794}, called=_called)


@registered("cub", layout)
def cub_200_2011(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                 skip_damaged: bool = False, name: str = "cub") -> Dataset:
    """The official split, 5,994 for training and 5,794 for testing.

    `root` is the archive's folder CUB_200_2011: images.txt, classes.txt ... and images/. `class_names`: see
    `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def _called(name: str) -> str:
    """`001.Black_footed_Albatross` is the Black footed Albatross."""
    return readable(name.partition(".")[2] or name)
