"""Where the features of a data set come from: a bank on disk (`cached`) or the tower itself, every epoch (`online`)."""

import logging
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.data.dataset import Item
from xrvlm.distributed import Bar, Group, active_group, generator
from xrvlm.errors import UserError, WriteError, check_fields, option
from xrvlm.features.bank import FEATURES_REVISION, IN_FULL, FeatureBank, Store, encoded, open_bank
from xrvlm.features.cache import for_this_process, of_this_process
from xrvlm.files import cache_folder, digest, make_folder
from xrvlm.views import Augmentation, AugmentedViews, BankViews, EvaluationViews, ImageSource, load_images

log = logging.getLogger(__name__)
EXTRACTION_BATCH = 64                    # views encoded at once; fixed, since rounding depends on it
CPU_BATCH = 32                           # more is not faster there
GPU_SHARE = 0.2                          # of a GPU's memory for one bank; a run has up to three


@dataclass(frozen=True)
class FeatureSettings:
    """How features are made.

    Args:
        mode: `cached` reads `views` augmented views beside the evaluation view from disk; `online` draws new
            augmentations and runs the tower in every epoch, as papers do.
        views: augmented views an image in the bank; 0 trains on the evaluation view.
        crop_scale, flip: see `Augmentation`.
        dtype: of positions on disk (one vector a view, as the pooled one, is always float32).
        budget_gb: a bank larger than this is not written: training goes online, evaluation is streamed.
        cache: folder of the banks; None: $XRVLM_CACHE, or the folder of caches of the system.
        gpu_gb: a bank up to this size stays in the memory of the GPU, a larger one is read from disk batch by batch.
            None: a fifth of that memory.
    """

    mode: Literal["cached", "online"] = "cached"
    views: int = 8
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    budget_gb: float = 20.0
    cache: str | Path | None = None
    gpu_gb: float | None = None

    def __post_init__(self):
        check_fields(self, "features")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"{option('features.crop_scale')} must be two shares of the area with "
                            f"0 < low <= high <= 1, found {tuple(self.crop_scale)}")
        if self.views < 0:
            raise UserError(f"{option('features.views')} must be a whole number of at least 0, found {self.views}")
        if not self.budget_gb >= 0:
            raise UserError(f"{option('features.budget_gb')} must be at least 0, found {self.budget_gb}")
        if self.gpu_gb is not None and not self.gpu_gb >= 0:
            raise UserError(f"{option('features.gpu_gb')} must be at least 0, or "
                            f"{option('features.gpu_gb', None)} for a fifth of the GPU; found {self.gpu_gb}")
        object.__setattr__(self, "crop_scale", (float(low), float(high)))    # a YAML list becomes a tuple
        object.__setattr__(self, "cache", None if self.cache is None else str(self.cache))

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.crop_scale, self.flip)

    @property
    def identity(self) -> "FeatureSettings":
        """What numbers depend on: these settings wherever the features lie."""
        return replace(self, cache=None, gpu_gb=None)

    @property
    def folder(self) -> Path:
        return cache_folder(self.cache) / "features"


class FeatureSource(Protocol):
    """Features with labels, in a training order or one by one."""

    ids: tuple[str, ...]
    labels: Tensor                       # (n,) int64
    @property
    def pooled(self) -> Tensor | None: ...     # (n, d) as the evaluation transform shows them; None: not at hand

    def batches(self, order: Sequence[Tensor], epoch: int) -> Iterator[tuple[Features, Tensor]]:
        """Augmented features and labels of each batch of `order` (rows of the source)."""
        ...

    def in_order(self, batch_size: int = 256) -> Iterator[tuple[Features, Tensor]]:
        """Every item once, as the evaluation transform shows it."""
        ...


def pooled_features(source: FeatureSource, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, d) of unit norm, as the evaluation transform shows the images of `source`, and their labels (n,)."""
    batches = [(x.pooled, y) for x, y in source.in_order()]
    features, labels = (torch.cat(column).to(device) for column in zip(*batches, strict=True))
    return features, labels


def training_order(labels: Tensor, seed: int, epoch: int, batch_size: int, *, balanced: bool = False) -> list[Tensor]:
    """The batches of an epoch as rows. Only a last batch of one is dropped: BatchNorm has no variance there."""
    draws = generator(seed, "order", epoch)
    if balanced:
        share = 1.0 / labels.bincount()[labels]                                            # (n,)
        rows = torch.multinomial(share, len(labels), replacement=True, generator=draws)    # (n,)
    else:
        rows = torch.randperm(len(labels), generator=draws)                                # (n,)
    batches = [batch for batch in rows.split(batch_size) if len(batch) > 1]
    if not batches:
        raise UserError("there is one training image in all: batch statistics need two; use more shots or classes, "
                        f"or {option('method', 'zero_shot')}, which needs none")
    return batches


@dataclass
class OnlineFeatures:
    """The tower itself as a source: images are decoded, augmented and encoded whenever they are asked for."""

    clip: FrozenCLIP
    source: ImageSource
    items: tuple[Item, ...]
    needs: frozenset[Need]
    augmentation: Augmentation
    seed: int
    workers: int = 0
    pooled = None

    def __post_init__(self):
        self.ids = tuple(item.id for item in self.items)
        self.labels = torch.tensor([item.label for item in self.items])                    # (n,)

    def batches(self, order: Sequence[Tensor], epoch: int) -> Iterator[tuple[Features, Tensor]]:
        view = AugmentedViews(self.clip.transform, self.augmentation, self.ids, self.seed, epoch)
        return self._encode(order, view)

    def in_order(self, batch_size: int = 256) -> Iterator[tuple[Features, Tensor]]:
        batches = torch.arange(len(self.items)).split(min(batch_size, EXTRACTION_BATCH))
        return self._encode(batches, EvaluationViews(self.clip.transform))

    def _encode(self, order: Sequence[Tensor], view: Callable) -> Iterator[tuple[Features, Tensor]]:
        device = self.clip.device
        loaded = load_images(self.ids, self.source, view, order, self.workers, device)
        for rows, images in loaded:                                                        # (b,), (b, 3, s, s)
            yield self.clip.encode_image(images, self.needs), self.labels[rows]


def extract(clip: FrozenCLIP, source: ImageSource, items: Sequence[Item], settings: FeatureSettings, *,
            needs: Collection[Need] = ("pooled",), views: int = 0, seed: int = 0, workers: int = 0) -> FeatureBank:
    """The bank of `items`: read from the store of features, whose missing images are encoded first.

    The store's key and an image's stamp hold everything that the numbers depend on, so nothing stale is ever read.
    """
    ids = tuple(item.id for item in items)
    view = BankViews(clip.transform, settings.augmentation, ids, seed, views)
    store, stamps = _store(clip, settings, needs, views, seed), _stamps(source, items)
    alone = active_group().world == 1
    if alone and not _can_write(store.root) and len(store.find(stamps)) < len(set(stamps)):
        store = for_this_process(store, "it cannot be written")

    def encode(shards: Sequence[Sequence[int]]) -> Generator[dict[str, Tensor]]:
        batches = [batch for rows in shards for batch in torch.tensor(rows).split(store.batch)]
        return encoded(clip, needs, store, load_images(ids, source, view, batches, workers, clip.device))

    def bank() -> FeatureBank:
        with Bar(total=len(items), unit="image", desc="features") as progress:
            return open_bank(store, stamps, encode, ids=ids,
                             labels=torch.tensor([item.label for item in items]), seed=seed, lock=_lock_name(source),
                             progress=progress.update)

    while True:
        try:
            return bank()
        except WriteError as error:      # such as of a full disk
            if not alone or store.root == of_this_process():
                raise WriteError(f"{error}; another folder of features: {option('features.cache', 'DIR')} or "
                                 "$XRVLM_CACHE") from error
            store = for_this_process(store, str(error))


def images_to_encode(clip: FrozenCLIP, source: ImageSource, items: Sequence[Item], settings: FeatureSettings, *,
                     needs: Collection[Need], views: int, seed: int) -> int:
    """How many images `extract` would run the tower on."""
    return len(_store(clip, settings, needs, views, seed).missing(_stamps(source, items)))


def evaluation_batches(clip: FrozenCLIP, source: ImageSource, items: Sequence[Item], *,
                       workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(b,) rows of `items` and (b, 3, s, s) their images as the evaluation transform shows them, in order."""
    order = torch.arange(len(items)).split(EXTRACTION_BATCH)
    ids = [item.id for item in items]
    return load_images(ids, source, EvaluationViews(clip.transform), order, workers, clip.device)


def bank_bytes(clip: FrozenCLIP, count: int, settings: FeatureSettings, needs: Collection[Need], views: int) -> int:
    """How large the bank of `count` images would be on disk."""
    width = torch.finfo(getattr(torch, settings.dtype)).bits // 8
    shapes = _row_shapes(clip, needs, views)
    return count * sum(shape.numel() * (4 if name in IN_FULL else width) for name, shape in shapes.items())


def feature_source(clip: FrozenCLIP, source: ImageSource, items: Sequence[Item], settings: FeatureSettings, *,
                   needs: Collection[Need], views: int, seed: int, workers: int) -> FeatureSource:
    """A bank where `settings` and the budget allow it, else the tower itself; says which, and how large."""
    needs = frozenset(needs)
    if settings.mode == "cached":
        size = bank_bytes(clip, len(items), settings, needs, views) / 1e9
        if size <= settings.budget_gb:
            log.info("features: %d images x %d views, %.2f GB in %s", len(items), views + 1, size, settings.folder)
            bank = extract(clip, source, items, settings, needs=needs, views=views, seed=seed, workers=workers)
            return bank.resident(clip.device) if stays_on(clip.device, bank.nbytes, settings) else bank
        log.warning("a bank of %.1f GB is over %s: going online, the tower runs in every epoch", size,
                    option("features.budget_gb", settings.budget_gb))
    return OnlineFeatures(clip, source, tuple(items), needs, settings.augmentation, seed, workers)


def without_labels(source: FeatureSource) -> Features:
    """All of `source` as the evaluation transform shows it, in a drawn order: its own goes by class, more often than
    not, and would tell labels.
    """
    batches = [vars(x) for x, _ in source.in_order()]
    order = torch.randperm(len(source.labels), generator=generator(0, "without labels"))
    return Features(**{name: torch.cat([batch[name] for batch in batches])[order]
                       for name, value in batches[0].items() if value is not None})


def stays_on(device: torch.device, size: int, settings: FeatureSettings) -> bool:
    """Whether a bank of `size` bytes is kept in the memory of `device`, a GPU, while it is used."""
    if device.type != "cuda":
        return False
    room = settings.gpu_gb * 1e9 if settings.gpu_gb is not None else (
        GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return size <= room


def _row_shapes(clip: FrozenCLIP, needs: Collection[Need], views: int) -> dict[str, torch.Size]:
    """The shape of one image in the bank, found with one empty image."""
    size = clip.transform.image_size
    example = clip.encode_image(torch.zeros(1, 3, size, size, device=clip.device), needs)
    return {name: torch.Size((views + 1, *value.shape[1:])) for name, value in vars(example).items()
            if value is not None}


def _can_write(folder: Path) -> bool:
    try:
        make_folder(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _lock_name(source: ImageSource) -> str:
    """Sweeps over other folders of images do not wait for each other."""
    return f".lock-{digest(str(getattr(source, 'root', '')))[:12]}"


def _stamps(source: ImageSource, items: Sequence[Item]) -> list[str]:
    # with the id, which decides the augmented views
    return [digest([item.id, source.sha256(item.id)]) for item in items]


def _store(clip: FrozenCLIP, settings: FeatureSettings, needs: Collection[Need], views: int, seed: int) -> Store:
    key = {
        "backbone": clip.fingerprint, "precision": clip.precision, "transform": asdict(clip.transform),
        "dtype": settings.dtype, "views": views,
        "augmentation": asdict(settings.augmentation) | {"seed": seed} if views else None,
        "format": FEATURES_REVISION,
    }
    most = EXTRACTION_BATCH if clip.device.type == "cuda" else CPU_BATCH
    return Store(settings.folder, key, _row_shapes(clip, needs, views), getattr(torch, settings.dtype),
                 max(1, most // (views + 1)))


def sharded_batches(source: FeatureSource, order: Sequence[Tensor], epoch: int, group: Group,
                    device: torch.device) -> Iterator[tuple[int, Features, Tensor]]:
    """Of each batch of `order`: its number of rows, and the features and labels of this rank's shard.

    A rank with an empty shard still loads one image, then drops it, so that it takes part in the collectives.
    """
    shards = [batch[group.share(len(batch))] for batch in order]
    read = [shard if len(shard) else batch[:1] for shard, batch in zip(shards, order, strict=True)]
    for batch, shard, (x, y) in zip(order, shards, source.batches(read, epoch), strict=True):
        if not len(shard):
            x, y = x.map(lambda value: value[:0]), y[:0]
        if x.pooled.device != device:
            x = x.map(lambda value: _moved(value, device))
        yield len(batch), x, _moved(y, device)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`. A copy to a GPU goes through pinned memory, so that the host does not wait for it."""
    if value.device == device:
        return value
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
