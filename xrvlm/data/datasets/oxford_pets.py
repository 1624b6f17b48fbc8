"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds of cats and dogs, 7,349 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_paths, read_pairs

LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


def oxford_iiit_pets(root: str | Path, *, split: SplitName = "official", download: bool = False,
                     class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
                     name: str = "oxford_pets") -> Dataset:
    """The official split, 3,680 for training and 3,669 for testing; or CoOp's, which has the same test part.

    `root` holds images/ and annotations/, or oxford-iiit-pet/, where `download` puts them. The classes are called as
    the image files are. `split`: see coop.py; `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def layout(*, split: SplitName = "official") -> Layout:
    places = {file: (file, f"oxford-iiit-pet/{file}") for file in (*LISTS.values(), "images/")}
    official = Layout("Oxford-IIIT Pets", "https://www.robots.ox.ac.uk/~vgg/data/pets/", classes=37,
                      images={"train": 3680, "test": 3669}, downloader="OxfordIIITPet", read=_read, places=places)
    return chosen(split, official, file="split_zhou_OxfordPets.json", folders=("images/",),
                  images={"train": 2944, "val": 736, "test": 3669})


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    parts = {part: [f"{image}.jpg" for image in read_pairs(found[file])] for part, file in LISTS.items()}
    # american_pit_bull_terrier_12.jpg; the official ids follow the breeds' names, whatever their capitals
    return listing_of_paths(root, found["images/"], parts, class_of=lambda path: path.rpartition("_")[0],
                            order=str.casefold)
