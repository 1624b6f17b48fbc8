"""Oxford Flowers-102 (Nilsback and Zisserman, ICVGIP 2008): 102 flowers, 8,189 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_mat
from xrvlm.errors import UserError
from xrvlm.text.class_names import read_list as shipped_names

VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}          # of setid.mat


def layout(*, split: SplitName = "official") -> Layout:
    paths = {file: (file, f"flowers-102/{file}") for file in ("imagelabels.mat", "setid.mat", "jpg/")}
    official = Layout("Oxford Flowers-102", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", classes=102,
                      images={"train": 1020, "val": 1020, "test": 6149}, downloader="Flowers102", read=_read,
                      paths=paths)
    return chosen(split, official, file="split_zhou_OxfordFlowers.json", folders=("jpg/",),
                  images={"train": 4093, "val": 1633, "test": 2463})


@registered("flowers102", layout)
def oxford_flowers(root: str | Path, *, split: SplitName = "official", download: bool = False,
                   class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
                   name: str = "flowers102") -> Dataset:
    """The official split, 1,020 for training, 1,020 for validation and 6,149 for testing; or CoOp's.

    `root` holds imagelabels.mat, setid.mat and jpg/, or flowers-102/, to which `download` writes. The class
    names are those in prompts/class_names/flowers102.txt: the official files have numbers only. `split`: see coop.py;
    `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    (labels,) = read_mat(found["imagelabels.mat"], "labels")                 # of image 1, 2 ... , from 1
    names = shipped_names("flowers102")
    used = sorted({int(label) for label in labels})
    if used[0] < 1 or used[-1] > len(names):
        raise UserError(f"{found['imagelabels.mat']} has classes {used[0]} to {used[-1]}, not 1 to {len(names)}; {FIX}")
    index = {number: label for label, number in enumerate(used)}
    subsets = {}
    for subset, numbers in zip(VARIABLES, read_mat(found["setid.mat"], *VARIABLES.values()), strict=True):
        if lost := [int(number) for number in numbers if not 1 <= number <= len(labels)]:
            raise UserError(f"{found['setid.mat']} names image {lost[0]}, and imagelabels.mat has {len(labels)}; {FIX}")
        files = below(root, found["jpg/"], (f"image_{int(number):05}.jpg" for number in numbers))
        subsets[subset] = list(zip(files, (index[int(labels[number - 1])] for number in numbers), strict=True))
    return Listing(tuple(names[label - 1] for label in used), subsets)
