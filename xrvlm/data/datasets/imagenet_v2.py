"""ImageNet-V2 (Recht et al., ICML 2019, arXiv:1902.10811): a new test part for ImageNet, 10 photos a class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.synsets import variant


def imagenet_v2(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                skip_damaged: bool = False, name: str = "imagenet_v2") -> Dataset:
    """The matched-frequency photos: 10,000 for testing, 1,000 classes, none for training.

    `root` holds imagenetv2-matched-frequency-format-val/, with folders 0 to 999 in ImageNet's order. `class_names`: see
    `image_folder`; null takes the curated names (synsets.py). Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def layout() -> Layout:
    return variant("ImageNet-V2", "https://github.com/modestyachts/ImageNetV2 (imagenetv2-matched-frequency.tar.gz)",
                   images=10000, numbered=True,
                   folders=("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"))
