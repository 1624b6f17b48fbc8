"""Caltech-101 (Fei-Fei et al., 2004): objects of 101 kinds, of which CoOp's benchmark uses 100."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_folders
from xrvlm.text.class_text import readable

LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
SINGULAR = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}


def layout(*, split: SplitName = "official") -> Layout:
    folder = "101_ObjectCategories/"
    paths = {folder: tuple(f"{inner}101_ObjectCategories" for inner in ("", "caltech101/", "caltech-101/"))}
    official = Layout("Caltech-101", "https://data.caltech.edu/records/mzrjq-6wc02", classes=100,
                      images={"train": 8242}, downloader="Caltech101", read=_read, paths=paths)
    return chosen(split, official, file="split_zhou_Caltech101.json", folders=(folder,),
                  images={"train": 4128, "val": 1649, "test": 2465})


@registered("caltech101", layout)
def caltech_101(root: str | Path, *, split: SplitName = "official", download: bool = False,
                class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
                name: str = "caltech101") -> Dataset:
    """There is no official split: without CoOp's, a quarter of each class is the test set.

    8,242 photos of 100 classes: the background class and Faces_easy (crops of Faces) are left out as in CoOp's
    benchmark. The classes are named as their folders, four of them in the singular.

    `root` holds 101_ObjectCategories/, or caltech101/, to which `download` writes. `split`: see coop.py;
    `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    return listing_of_folders(root, {"train": found["101_ObjectCategories/"]}, left_out=LEFT_OUT,
                              called=lambda folder: SINGULAR.get(folder, readable(folder)))
