"""ImageNet-Sketch (Wang et al., NeurIPS 2019, arXiv:1905.13549): sketches of ImageNet's classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.synsets import variant


def imagenet_sketch(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                    skip_damaged: bool = False, name: str = "imagenet_sketch") -> Dataset:
    """50,889 for testing, 1,000 classes, none for training.

    `root` holds sketch/ (or images/, as CoOp calls it) with a folder a synset. `class_names`: see
    `image_folder`; null takes the curated names (synsets.py). Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def layout() -> Layout:
    return variant("ImageNet-Sketch", "https://github.com/HaohanWang/ImageNet-Sketch", images=50889,
                   folders=("sketch", "images"))
