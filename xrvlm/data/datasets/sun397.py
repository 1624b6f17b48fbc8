"""SUN397 (Xiao et al., CVPR 2010): 397 kinds of scene, 108,754 photos, of which a split uses 100 a class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_paths, read_lines
from xrvlm.text.class_text import readable

LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def layout(*, split: SplitName = "official") -> Layout:
    paths = {file: (file, f"Partitions/{file}", f"SUN397/{file}") for file in LISTS.values()}
    official = Layout("SUN397", "https://vision.princeton.edu/projects/2010/SUN/ (SUN397.tar.gz and Partitions.zip)",
                      classes=397, images={"train": 19850, "test": 19850}, downloader="SUN397", read=_read,
                      paths=paths | {"SUN397/": ("SUN397/SUN397", "SUN397")})
    return chosen(split, official, file="split_zhou_SUN397.json", folders=("SUN397/",),
                  images={"train": 15880, "val": 3970, "test": 19850})


@registered("sun397", layout)
def sun_397(root: str | Path, *, split: SplitName = "official", download: bool = False,
            class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
            name: str = "sun397") -> Dataset:
    """The first of the ten official splits, 19,850 each for training and testing; or CoOp's, with the same test set.

    `root` holds SUN397/, to which `download` writes, and what Partitions.zip holds (or its folder Partitions/), which
    `download` does not fetch and CoOp's split does not need. `split`: see coop.py; `class_names`: see `image_folder`.
    Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    # /a/apartment_building/outdoor/sun_aafxvkmrbxxiscdl.jpg, in the order of ClassName.txt: sorted
    subsets = {subset: [line.lstrip("/") for line in read_lines(found[file])] for subset, file in LISTS.items()}
    return listing_of_paths(root, found["SUN397/"], subsets, class_of=lambda path: path.rpartition("/")[0],
                            called=_called)


def _called(folder: str) -> str:
    """`a/apartment_building/outdoor` is an outdoor apartment building."""
    return readable(" ".join(reversed(folder.split("/")[1:])))
