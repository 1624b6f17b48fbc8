"""The cells of an image column of Hugging Face's `datasets`, as the bytes of image files."""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xrvlm.errors import UserError, option
from xrvlm.files import damaged_fix, file_bytes

CHANNELS = (1, 3, 4)                     # of an array that is an image: grey, RGB, RGBA


def encoded(value: Any, item_id: str, of_255: Callable[[], bool]) -> bytes:
    """The bytes of the image file in a cell; an array is encoded as PNG.

    `of_255` says of the whole column whether an array of fractions in 0..1 is a dark image of 0..255. UserError for a
    cell that holds no image.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise UserError(f"cannot read the image {item_id}: the cell is empty; {damaged_fix()}")
    if isinstance(value, str):
        try:
            return file_bytes(Path(value))
        except OSError as error:
            raise UserError(f"cannot read the image {item_id} at {value[:200]}: {error.strerror}; {damaged_fix()}"
                            ) from error
    try:
        image = _as_image(np.asarray(value), of_255)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read the image {item_id}: {error}; "
                        f"set {option('data.image_column')} to a column of images") from error
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _as_image(values: np.ndarray, of_255: Callable[[], bool]) -> Image.Image:
    """Of (h, w), (h, w, channels) or (channels, h, w); ValueError for other shapes: Pillow would take some of them."""
    given = values.shape
    if values.ndim == 3 and given[2] not in CHANNELS and given[0] in CHANNELS:
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in CHANNELS or not values.size:
        raise ValueError(f"its numbers are {' x '.join(map(str, given)) or 'one'}, not height x width or height x "
                         "width x 1, 3 or 4 channels")
    values = _as_8_bits(values, of_255)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def _as_8_bits(values: np.ndarray, of_255: Callable[[], bool]) -> np.ndarray:
    """Numbers 0..255 as they are, fractions in 0..1 and yes or no times 255; ValueError for others, whose meaning is
    not plain.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 255:
        raise ValueError(f"its numbers are from {low:g} to {high:g}, not in 0..255 or 0..1")
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and high <= 1 and not of_255()):
        values = values * 255
    return np.rint(values).astype(np.uint8)
