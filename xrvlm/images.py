"""From the bytes of an image file to an upright RGB image, or to an error that names the file and the fix."""

import contextlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from xrvlm.errors import UserError
from xrvlm.files import user_path

DAMAGED_FIX = "remove or replace it (of a data set, data.skip_damaged=true leaves such files out)"

# only what photos come in: Pillow would also run Ghostscript for an EPS file
_WANTED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")

Image.init()
FORMATS = tuple(name for name in _WANTED_FORMATS if name in Image.OPEN)
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, name: str) -> Image.Image:
    """The first frame of an image file as an upright RGB image; transparent parts become white.

    Raises UserError that says `name` for what is empty, cut short, no image, or too large to be opened safely.
    """
    if not data:
        raise UserError(f"cannot read the image {name}: the file is empty; {DAMAGED_FIX}")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            image.load()
            return to_rgb(_upright(image))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"cannot read the image {name}: not an image that Pillow knows; {DAMAGED_FIX}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise UserError(f"cannot read the image {name}: it has too many pixels to be opened safely; "
                        f"make it smaller, {DAMAGED_FIX}") from error
    except Exception as error:    # a damaged file raises whatever its codec stumbles on: SyntaxError, zlib.error ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the image {name}: {reason}; {DAMAGED_FIX}") from error


def read_image(image: Image.Image | str | Path) -> Image.Image:
    """A PIL image, or an image file, as RGB. UserError that names a file which cannot be read."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode(user_path(image).read_bytes(), str(image))
    except OSError as error:
        raise UserError(f"cannot read the image {image}: {error.strerror}; check the path") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB: 16 bits and floats are scaled (not clipped), transparency is laid on white."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in ("La", "RGBa"):    # premultiplied alpha, which converts only to its plain form
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64)).clip(min=0)
    top = _white(image.mode, values.max(initial=0.0))
    return Image.fromarray(np.rint(values * (255 / top)).clip(max=255).astype(np.uint8))


def _white(mode: str, largest: float) -> float:
    """The value that means white. A fixed one wherever possible, so that a dark photo stays dark."""
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)    # Pillow reads 16-bit PGM as I in 0..65535
    return next((top for top in ranges if largest <= top), largest)


def _upright(image: Image.Image) -> Image.Image:
    orientation = None
    with contextlib.suppress(Exception):    # broken metadata is no reason to lose the photo
        orientation = image.getexif().get(_ORIENTATION_TAG)
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)
