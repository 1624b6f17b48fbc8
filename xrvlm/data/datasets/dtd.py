"""Describable Textures (Cimpoi et al., CVPR 2014, arXiv:1311.3618): 47 kinds of texture, 5,640 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_paths, read_lines

LISTS = {"train": "labels/train1.txt", "val": "labels/val1.txt", "test": "labels/test1.txt"}
INNER = ("", "dtd/", "dtd/dtd/")         # torchvision unpacks the archive's folder dtd into a folder dtd


def layout(*, split: SplitName = "official") -> Layout:
    paths = {file: tuple(f"{inner}{file}" for inner in INNER) for file in (*LISTS.values(), "images/")}
    official = Layout("DTD", "https://www.robots.ox.ac.uk/~vgg/data/dtd/", classes=47,
                      images={"train": 1880, "val": 1880, "test": 1880}, downloader="DTD", read=_read, paths=paths)
    return chosen(split, official, file="split_zhou_DescribableTextures.json", folders=("images/",),
                  images={"train": 2820, "val": 1128, "test": 1692})


@registered("dtd", layout)
def describable_textures(root: str | Path, *, split: SplitName = "official", download: bool = False,
                         class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                         skip_damaged: bool = False, name: str = "dtd") -> Dataset:
    """The first of the ten official splits, 1,880 each for training, validation and testing; or CoOp's.

    `root` is the archive's folder dtd, with labels/ and images/, or the folder that contains it, to which
    `download` writes. `split`: see coop.py; `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    # banded/banded_0002.jpg
    return listing_of_paths(root, found["images/"], {subset: read_lines(found[file]) for subset, file in LISTS.items()})
