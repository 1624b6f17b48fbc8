"""From image files to batches for the tower: read the bytes, decode to upright RGB, make the views, collate.

View 0 is the checkpoint's evaluation transform; the others are augmented. Letters: `b` images of a batch, `v`
augmented views, `s` pixels of a side.
"""

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from multiprocessing import get_all_start_methods, get_start_method
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageCms, ImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from xrvlm.backbones.base import ImageTransform
from xrvlm.distributed import seeded
from xrvlm.errors import UserError, option
from xrvlm.files import damaged_fix, file_bytes, user_path

ASPECT_RATIOS = [3 / 4, 4 / 3]

NARROWEST = 500                          # times as long as wide: resized to a tower's width it still fits in memory
# formats of photos only: Pillow would also run Ghostscript for an EPS file
_WANTED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")

Image.init()
if find_spec("pillow_heif"):             # pip install 'xrvlm[heic]'
    import pillow_heif

    pillow_heif.register_heif_opener()
FORMATS = tuple(name for name in _WANTED_FORMATS if name in Image.OPEN)
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

_ORIENTATION_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0106
_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
            6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}


class ImageSource(Protocol):
    """Where the bytes of the images come from."""

    def read(self, item_id: str, /) -> bytes:
        """The encoded image. Raises UserError if it cannot be read."""
        ...

    def sha256(self, item_id: str, /) -> str:
        """The hash of what `read` returns; features on disk are known by it."""
        ...


def decode(data: bytes, name: str) -> Image.Image:
    """The first frame of an image file as an upright RGB image; transparency becomes white.

    Raises UserError, which says `name`, for data that are empty, truncated, no image, or too large to open safely.
    """
    if not data:
        raise UserError(f"cannot read the image {name}: the file is empty; {damaged_fix()}")
    with _naming(name), Image.open(BytesIO(data), formats=FORMATS) as image:
        image.load()
        return to_rgb(_upright(image), image.format)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """What Pillow raises inside becomes a UserError that says `name`."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise UserError(f"cannot read the image {name}: not an image that Pillow knows; {damaged_fix()}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise UserError(f"cannot read the image {name}: it has too many pixels to be opened safely; "
                        f"make it smaller, {damaged_fix()}") from error
    except Exception as error:    # a codec may raise anything on a damaged file: SyntaxError, zlib.error ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the image {name}: {reason}; {damaged_fix()}") from error


def read_image(image: Image.Image | str | Path) -> Image.Image:
    """A PIL image, or an image file, as upright RGB; an open image gives the same as its file.

    Raises UserError, which names the file, if it cannot be read.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF" and image.tile and not image.tell() \
            and Path(str(image.filename)).is_file():    # not yet read: Pillow does not turn all of them as it reads
        image = Path(str(image.filename))
    if isinstance(image, Image.Image):
        with _naming(getattr(image, "filename", "") or "that was given"):
            image.load()                 # which turns a TIFF upright by itself
            return to_rgb(_upright(image), image.format)
    try:
        return decode(file_bytes(user_path(image)), str(image))
    except OSError as error:
        raise UserError(f"cannot read the image {image}: {error.strerror}; check the path") from error


def to_rgb(image: Image.Image, kind: str | None = None) -> Image.Image:
    """Any mode of Pillow as RGB: 16 bits and floats are scaled (not clipped), transparency becomes white.

    `kind` is the format of the file that it is from: Pillow reads 16 bits of PGM, and earlier of PNG, as mode I.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        image = _to_8_bits(image, "I;16" if image.mode == "I" and kind in ("PPM", "PNG") else image.mode)
    if image.mode in ("La", "RGBa"):    # premultiplied alpha, which converts only to its plain form
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, mode: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    top = _white(mode, values[np.isfinite(values)].max(initial=0.0))
    values = np.nan_to_num(values, nan=0, posinf=top).clip(min=0)
    clear = image.info.get("transparency")           # of a grey PNG of 16 bits: the level that shows what is behind
    if isinstance(clear, int):
        values[values == clear] = top
    return Image.fromarray(np.rint(values * (255 / top)).clip(max=255).astype(np.uint8))


def _white(mode: str, largest: float) -> float:
    """The value of white: the maximum of a usual range rather than of the image, so that a dark photo stays dark."""
    ranges = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(mode, (65535.0,))
    return next((top for top in ranges if largest <= top), largest)


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation means it, and 0 as black: Pillow leaves a TIFF of 16 bits whose 0 is white as it is.

    ValueError for an image without pixels, or too narrow to be resized.
    """
    if not 0 < max(image.size) <= NARROWEST * min(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels, one side over {NARROWEST} times the other")
    orientation, of_tiff = None, getattr(image, "tag_v2", {})
    with contextlib.suppress(Exception):    # with broken metadata the photo is still usable
        orientation = image.getexif().get(_ORIENTATION_TAG)
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if image.mode.startswith("I;16") and of_tiff.get(_PHOTOMETRIC_TAG) == 0:
        image = Image.fromarray(65535 - np.asarray(image))
    return image if turn is None else image.transpose(turn)


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, of a fraction of the area within `crop_scale`, and random horizontal flip."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True


def evaluation_view(image: Image.Image, transform: ImageTransform) -> Tensor:
    """(3, s, s): the checkpoint's evaluation transform."""
    size, interpolation = transform.image_size, InterpolationMode(transform.interpolation)
    if transform.resize == "squash":
        return _normalise(TF.resize(image, [size, size], interpolation), transform)    # pyright: ignore[reportArgumentType]
    resized = TF.resize(image, [transform.resize_to or size], interpolation)           # pyright: ignore[reportArgumentType]
    return _normalise(TF.center_crop(resized, [size, size]), transform)


def augmented_view(image: Image.Image, transform: ImageTransform, augmentation: Augmentation, *key: object) -> Tensor:
    """(3, s, s): a random crop and flip, seeded with `key`."""
    size, interpolation = transform.image_size, InterpolationMode(transform.interpolation)
    with seeded(*key):
        box = RandomResizedCrop.get_params(image, list(augmentation.crop_scale), ASPECT_RATIOS)  # pyright: ignore[reportArgumentType]
        flipped = augmentation.flip and torch.rand(()).item() < 0.5
    view = TF.resized_crop(image, *box, [size, size], interpolation)                   # pyright: ignore[reportArgumentType]
    return _normalise(TF.hflip(view) if flipped else view, transform)


def _normalise(image: Any, transform: ImageTransform) -> Tensor:
    return TF.normalize(TF.to_tensor(image), list(transform.mean), list(transform.std))


@dataclass(frozen=True)
class EvaluationViews:
    """The evaluation view of an image."""

    transform: ImageTransform

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        return evaluation_view(image, self.transform)                                      # (3, s, s)


@dataclass(frozen=True)
class AugmentedViews:
    """One augmented view of an image, another one each epoch."""

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
    """The evaluation view of an image, then `views` augmented ones."""

    transform: ImageTransform
    augmentation: Augmentation
    ids: tuple[str, ...]
    seed: int
    views: int

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        augmented = [augmented_view(image, self.transform, self.augmentation, self.seed, "view", view, self.ids[index])
                     for view in range(self.views)]
        return torch.stack([evaluation_view(image, self.transform), *augmented])           # (v + 1, 3, s, s)


class ImageDataset(Dataset):
    """For torch's DataLoader: `(index, view(image, index))` of each image in `ids`, decoded to RGB."""

    def __init__(self, ids: Sequence[str], source: ImageSource, view: Callable[[Image.Image, int], Any]):
        self.ids, self.source, self.view = ids, source, view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        name = self.ids[index]
        return index, self.view(decode(self.source.read(name), name), index)


class _Guarded(ImageDataset):
    """Returns a UserError instead of raising it, so that it reaches the main process without a worker's traceback."""

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return super().__getitem__(index)
        except UserError as error:
            return index, error


def load_images(ids: Sequence[str], source: ImageSource, view: Callable, order: Iterable[Tensor], workers: int,
                device: torch.device, problems: dict[int, str] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows, images) of each batch of rows in `order`: (b,) and what `view` makes, stacked, on `device`.

    An image that cannot be read raises its UserError. With `problems` it is left out of its batch, which may then be
    empty, and `problems` gets its row and what is wrong.
    """
    pinned = device.type == "cuda"       # then the copy overlaps with the tower
    # inside a joblib process the start method is joblib's, which torch's workers cannot use
    context = "fork" if workers and get_start_method() not in get_all_start_methods() else None
    loader = DataLoader(_Guarded(ids, source, view), batch_sampler=[batch.tolist() for batch in order],
                        num_workers=workers, collate_fn=_collate, pin_memory=pinned, multiprocessing_context=context)
    for (rows, images), errors in _surviving(loader, workers):
        if errors and problems is None:
            raise errors[0][1]
        if problems is not None:
            problems.update((row, str(error)) for row, error in errors)
        yield rows, images.to(device, non_blocking=pinned)


def _surviving(loader: DataLoader, workers: int) -> Iterator[Any]:
    """The batches of `loader`; UserError where the system killed a process of it, or opens no more files."""
    fewer = f"; fewer processes decode images with {option('workers', workers // 2)}" if workers else ""
    try:
        yield from loader
    except (RuntimeError, OSError) as error:
        if getattr(error, "errno", 0) == errno.EMFILE or "Too many open files" in str(error):
            raise UserError(f"the system opens no more files for this process: raise the limit (ulimit -n){fewer}"
                            ) from error
        if "DataLoader worker (pid" in str(error):       # torch's words for a process that ended by a signal
            raise UserError(f"the system ended a process that decodes images, perhaps for want of memory{fewer}"
                            ) from error
        raise


def _collate(batch: list[tuple[int, Any]]) -> tuple[Any, list[tuple[int, UserError]]]:
    """The batch without the images that cannot be read, and these."""
    errors = [entry for entry in batch if isinstance(entry[1], UserError)]
    good = [entry for entry in batch if not isinstance(entry[1], UserError)]
    return default_collate(good) if good else (torch.empty(0, dtype=torch.long), torch.empty(0)), errors
