"""Food-101 (Bossard et al., ECCV 2014): 101 dishes, 101,000 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_lines
from xrvlm.errors import UserError
from xrvlm.text.class_text import readable

LISTS = {"train": "meta/train.txt", "test": "meta/test.txt"}
PATHS = {file: (file, f"food-101/{file}") for file in ("meta/classes.txt", *LISTS.values())}


def layout(*, split: SplitName = "official") -> Layout:
    official = Layout("Food-101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", classes=101,
                      images={"train": 75750, "test": 25250}, downloader="Food101", read=_read,
                      paths=PATHS | {"images/": ("images", "food-101/images")})
    return chosen(split, official, file="split_zhou_Food101.json", folders=("images/",),
                  images={"train": 50500, "val": 20200, "test": 30300})


@registered("food101", layout)
def food_101(root: str | Path, *, split: SplitName = "official", download: bool = False,
             class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
             name: str = "food101") -> Dataset:
    """The official split, 75,750 for training (not cleaned of wrong labels) and 25,250 for testing; or CoOp's.

    `root` is the archive's folder food-101, with meta/ and images/, or the folder that contains it, to which
    `download` writes. `split`: see coop.py; `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    names = read_lines(found["meta/classes.txt"])
    index = {name: label for label, name in enumerate(names)}
    subsets = {}
    for subset, file in LISTS.items():
        lines = read_lines(found[file])                      # apple_pie/1005649
        labels = [index.get(line.partition("/")[0], -1) for line in lines]
        if -1 in labels:
            raise UserError(f"{found[file]} names {lines[labels.index(-1)]!r}, whose class is not in meta/classes.txt; "
                            f"{FIX}")
        files = below(root, found["images/"], (f"{line}.jpg" for line in lines))
        subsets[subset] = list(zip(files, labels, strict=True))
    return Listing(tuple(map(readable, names)), subsets)
