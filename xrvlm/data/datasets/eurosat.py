"""EuroSAT (Helber et al., 2019, arXiv:1709.00029): 10 kinds of land, 27,000 satellite pictures of 64 pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_folders
from xrvlm.text.class_names import name_classes


def layout(*, split: SplitName = "official") -> Layout:
    official = Layout("EuroSAT", "https://github.com/phelber/EuroSAT", classes=10, images={"train": 27000},
                      downloader="EuroSAT", read=_read, paths={"2750/": ("2750", "eurosat/2750", "EuroSAT/2750")})
    return chosen(split, official, file="split_zhou_EuroSAT.json", folders=("2750/",),
                  images={"train": 13500, "val": 5400, "test": 8100})


@registered("eurosat", layout)
def euro_sat(root: str | Path, *, split: SplitName = "official", download: bool = False,
             class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
             name: str = "eurosat") -> Dataset:
    """There is no official split: without CoOp's, a quarter of each class is the test set.

    The class names are those in prompts/class_names/eurosat.txt, since the folders' are no words, or those of CoOp's
    split. The choice of names changes zero-shot accuracy by several points.

    `root` holds 2750/, the RGB pictures, or eurosat/, to which `download` writes. `split`: see coop.py;
    `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, download=download, class_names=class_names, skip_damaged=skip_damaged,
                name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    listing = listing_of_folders(root, {"train": found["2750/"]})
    return Listing(name_classes(listing.classes, "eurosat"), listing.subsets)
