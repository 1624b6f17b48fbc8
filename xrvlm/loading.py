"""Images on their way to the tower: decoded by worker processes, in the views that are asked for, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_start_method
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from xrvlm.backbone import ImageTransform
from xrvlm.data import ImageDataset, ImageSource, Item
from xrvlm.errors import UserError
from xrvlm.views import Augmentation, augmented_view, evaluation_view


@dataclass(frozen=True)
class EvaluationViews:
    transform: ImageTransform

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        return evaluation_view(image, self.transform)                                      # (3, s, s)


@dataclass(frozen=True)
class AugmentedViews:
    transform: ImageTransform
    augmentation: Augmentation
    ids: tuple[str, ...]
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        key = self.seed, "online", self.epoch, self.ids[index]
        return augmented_view(image, self.transform, self.augmentation, *key)          # (3, s, s)


@dataclass(frozen=True)
class BankViews:
    transform: ImageTransform
    augmentation: Augmentation
    ids: tuple[str, ...]
    seed: int
    views: int

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        augmented = [augmented_view(image, self.transform, self.augmentation, self.seed, "view", view, self.ids[index])
                     for view in range(self.views)]
        return torch.stack([evaluation_view(image, self.transform), *augmented])           # (v + 1, 3, s, s)


class _Guarded(ImageDataset):
    """Hands a mistake over to the main process, where it is told in one line."""

    def __getitem__(self, index: int) -> Any:
        try:
            return super().__getitem__(index)
        except UserError as error:
            return error


def load_images(items: Sequence[Item], source: ImageSource, view: Callable, order: Iterable[Tensor],
          workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(b,) rows and their images on `device`, batch by batch of `order`."""
    pinned = device.type == "cuda"       # then the copy runs beside the tower
    # within a process of joblib its own way to start one would be taken, which torch's workers cannot be started in
    context = "fork" if workers and get_start_method() not in get_all_start_methods() else None
    loader = DataLoader(_Guarded(items, source, view), batch_sampler=[batch.tolist() for batch in order],
                        num_workers=workers, collate_fn=_collate, pin_memory=pinned, multiprocessing_context=context)
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        rows, images = loaded
        yield rows, images.to(device, non_blocking=pinned)


def _collate(batch: list[Any]) -> Any:
    return next((entry for entry in batch if isinstance(entry, UserError)), None) or default_collate(batch)
