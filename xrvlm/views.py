"""Views of an image: view 0 is the checkpoint's own evaluation transform, the others are augmented."""

from dataclasses import dataclass
from typing import Any

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from xrvlm.backbone import ImageTransform
from xrvlm.draws import seeded

ASPECT_RATIOS = [3 / 4, 4 / 3]


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (share of the area between `crop_scale[0]` and `crop_scale[1]`) and horizontal flip."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True


def evaluation_view(image: Image.Image, transform: ImageTransform) -> Tensor:
    """(3, s, s) as the checkpoint wants to be evaluated."""
    size, interpolation = transform.image_size, InterpolationMode(transform.interpolation)
    if transform.resize == "squash":
        return _normalise(TF.resize(image, [size, size], interpolation), transform)    # pyright: ignore[reportArgumentType]
    resized = TF.resize(image, [transform.resize_to or size], interpolation)           # pyright: ignore[reportArgumentType]
    return _normalise(TF.center_crop(resized, [size, size]), transform)


def augmented_view(image: Image.Image, transform: ImageTransform, augmentation: Augmentation, *key: object) -> Tensor:
    """(3, s, s), drawn from `key` alone."""
    size, interpolation = transform.image_size, InterpolationMode(transform.interpolation)
    with seeded(*key):
        box = RandomResizedCrop.get_params(image, list(augmentation.crop_scale), ASPECT_RATIOS)  # pyright: ignore[reportArgumentType]
        flipped = augmentation.flip and torch.rand(()).item() < 0.5
    view = TF.resized_crop(image, *box, [size, size], interpolation)                   # pyright: ignore[reportArgumentType]
    return _normalise(TF.hflip(view) if flipped else view, transform)


def _normalise(image: Any, transform: ImageTransform) -> Tensor:
    return TF.normalize(TF.to_tensor(image), list(transform.mean), list(transform.std))
