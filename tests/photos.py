"""Small data sets of real image files, drawn for a test."""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue tit", "Sarkel's finch", "wren")


@dataclass
class Files:
    """An image source whose files differ, but for those that `same` gives the bytes of."""

    same: dict[str, bytes] = field(default_factory=dict)

    def read(self, item_id: str, /) -> bytes:
        return self.same.get(item_id, item_id.encode())

    def sha256(self, item_id: str, /) -> str:
        return hashlib.sha256(self.read(item_id)).hexdigest()


def write_photo(path: Path, colour: int, key: int, size: int = 40) -> None:
    """A noisy square on noise; `colour` 0..2 says which channel is bright."""
    draws = np.random.default_rng([colour, key])
    pixels = draws.integers(0, 90, (size, size + 6, 3), dtype=np.uint8)
    pixels[8:30, 8:30, colour] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo_folder(root: Path, images: int = 8, classes=CLASSES) -> Path:
    """`root`/<class>/0.png ..., flat, without a test set."""
    for colour, name in enumerate(classes):
        for key in range(images):
            write_photo(root / name / f"{key}.png", colour % 3, 100 * (colour // 3) + key)
    return root


def odd_photos(folder: Path) -> dict[str, Path]:
    """Photos whose pixels on disk are not what a person sees: turned, cut out, of 16 bits, with a palette, CMYK."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    image, made = Image.fromarray(colours), {}
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(colours[..., 0]))
    for name, kept, options in (
            ("turned.jpg", image, {"exif": turned, "quality": 95}), ("turned.tif", image, {"exif": turned}),
            ("clear.png", clear, {}), ("clear.webp", clear, {"lossless": True}),
            ("grey16.png", Image.fromarray(colours[..., 0].astype(np.uint16) * 257), {}),
            ("float.tif", Image.fromarray(colours[..., 0].astype(np.float32) / 255), {}),
            ("palette.png", image.quantize(8), {"transparency": 1}), ("cmyk.jpg", image.convert("CMYK"), {}),
            ("grey.png", image.convert("LA"), {}), ("one.png", image.convert("1"), {})):
        kept.save(folder / name, **options)
        made[name] = folder / name
    levels = colours[..., 0].astype(np.uint16) * 257
    made |= {name: folder / name for name in ("clear16.png", "negative16.tif", "turned_negative16.tif")}
    made["clear16.png"].write_bytes(_clear_png(levels, int(levels[3, 4])))
    Image.fromarray(levels).save(made["negative16.tif"], tiffinfo={262: 0})
    Image.fromarray(levels).save(made["turned_negative16.tif"], tiffinfo={262: 0, 0x0112: 6})
    return made


def _clear_png(levels: np.ndarray, clear: int) -> bytes:
    """A grey PNG of 16 bits (h, w) of which one level is transparent: Pillow writes none."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
            + chunk(b"tRNS", struct.pack(">H", clear)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
