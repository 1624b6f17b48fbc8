"""NABirds (Van Horn et al., CVPR 2015): 555 kinds of North American birds, 48,562 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.lists import layout_of_ids


def layout() -> Layout:
    return layout_of_ids("NABirds", "https://dl.allaboutbirds.org/nabirds", classes=555,
                         images={"train": 23929, "test": 24633}, called=_called)


@registered("nabirds", layout)
def nabirds_v1(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
               skip_damaged: bool = False, name: str = "nabirds") -> Dataset:
    """The official split, 23,929 for training and 24,633 for testing.

    classes.txt also names the inner nodes of a tree (hierarchy.txt, which is not read); the classes are the 555 that
    have images. Their names are used in full, since sexes, ages and morphs of a species are separate classes:
    `Common Eider (Adult male)`.

    `root` is the archive's folder nabirds: images.txt, classes.txt ... and images/. `class_names`: see
    `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def _called(name: str) -> str:
    return name.replace(" )", ")")       # "Swainson's Hawk (Dark morph )"
