"""Small data sets of real image files, drawn for a test."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue tit", "Sarkel's finch", "wren")


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
