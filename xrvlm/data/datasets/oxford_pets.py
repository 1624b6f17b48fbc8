"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds of cats and dogs, 7,349 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_paths, read_pairs

LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


def layout(*, split: SplitName = "official") -> Layout:
    paths = {file: (file, f"oxford-iiit-pet/{file}") for file in (*LISTS.values(), "images/")}
    official = Layout("Oxford-IIIT Pets", "https://www.robots.ox.ac.uk/~vgg/data/pets/", classes=37,
                      images={"train": 3680, "test": 3669}, downloader="OxfordIIITPet", read=_read, paths=paths)
    return chosen(split, official, file="split_zhou_OxfordPets.json", folders=("images/",),
                  images={"train": 2944, "val": 736, "test": 3669})


@registered("oxford_pets", layout)
def oxford_iiit_pets(root: str | Path, *, split: SplitName = "official", download: bool = False,
                     class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
                     name: str = "oxford_pets") -> Dataset:
    """The official split, 3,680 for training and 3,669 for testing; or CoOp's, which has the same test set.

    `root` holds images/ and annotations/, or oxford-iiit-pet/, to which `download` writes. The class names are those in
    the names of the image files. `split`: see coop.py; `class_names`: see `image_folder`. Raises UserError, which names
    the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    subsets = {subset: [f"{image}.jpg" for image in read_pairs(found[file])] for subset, file in LISTS.items()}
    # american_pit_bull_terrier_12.jpg; the official ids are in the order of the breeds' names, ignoring case
    return listing_of_paths(root, found["images/"], subsets, class_of=lambda path: path.rpartition("_")[0],
                            order=str.casefold)
