"""ImageNet-R (Hendrycks et al., ICCV 2021, arXiv:2006.16241): art, cartoons, toys and other renditions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.synsets import variant


def imagenet_r(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
               skip_damaged: bool = False, name: str = "imagenet_r") -> Dataset:
    """30,000 for testing, 200 of ImageNet's classes, none for training.

    `root` holds imagenet-r/ with a folder a synset. A run on ImageNet is scored among these 200 with `among=data`.
    `class_names`: see `image_folder`; null takes the curated names (synsets.py). Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def layout() -> Layout:
    return variant("ImageNet-R", "https://github.com/hendrycks/imagenet-r", images=30000, classes=200,
                   folders=("imagenet-r",))
