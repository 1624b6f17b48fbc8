"""ImageNet (ILSVRC 2012; Russakovsky et al., 2015, arXiv:1409.0575): 1,000 classes, 1.3 million photos."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.synsets import read_synsets

INNER = ("", "images/", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/")


def layout() -> Layout:
    return Layout("ImageNet", "https://image-net.org/download.php (with an account)", classes=1000,
                  images={"train": 1281167, "test": 50000}, read=partial(read_synsets, train="train/", test="val/"),
                  paths={f"{subset}/": tuple(f"{inner}{subset}" for inner in INNER) for subset in ("train", "val")})



@registered("imagenet", layout)
def imagenet_1k(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                skip_damaged: bool = False, name: str = "imagenet") -> Dataset:
    """1,281,167 for training; the 50,000 official validation images are the test set, as in the literature.

    `root` holds train/ and val/ (directly, in images/ or in ILSVRC/Data/CLS-LOC/), each with a folder a synset
    (n01440764). `class_names`: see `image_folder`; None: the curated names of CLIP's authors. Raises UserError, which
    names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)
