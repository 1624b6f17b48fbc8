"""Hostile images: changed bytes of every format, odd modes, lying names, and what is no file at all."""

import csv
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random
from shutil import copy
from typing import Any

import numpy as np
from PIL import Image

import xrvlm
from fuzz.bench import Bench
from fuzz.oracle import REFUSED, USED, Wrong, answer, require, watched
from fuzz.values import broken_bytes
from xrvlm.views import FORMATS, SUFFIXES, read_image

SAVED = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("L", "P", "RGB"),
         "BMP": ("1", "L", "P", "RGB"), "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I", "LAB"),
         "WEBP": ("RGB", "RGBA"), "PPM": ("L", "RGB"), "JPEG2000": ("L", "RGB", "RGBA")}
NAMES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".PNG", ".ppm", ".jp2", ".txt", ".heic")
TAKEN_AS_IS = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX")
UPRIGHT: dict[Any, Callable[[Any], Any]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)}


def image(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """One image: read, labelled alone and in a folder, and for some inputs in a run."""
    folder = place / "photos"
    for name in ("jay", "wren"):
        (folder / name).mkdir(parents=True)
        for index in range(3):
            copy(bench.photos / "wren" / f"{index}.png", folder / name)
    path = folder / "jay" / f"x{draw.choice(NAMES)}"
    special = number % 8 == 7
    if special:
        _no_file(path, draw, place)
    else:
        path.write_bytes(_bytes(draw))
    with watched([place / "runs", place / "cache", place / "out", bench.scratch]):
        found, problem = answer(lambda: read_image(path))
        if path.is_file() and not special:
            _as_pillow(path, found, problem)
        _labelled(bench, path, found is not None)
        if number % 4 in (1, 3):
            _in_folder(bench, folder, path, found is not None, place)
        if number % 16 in (5, 15):
            _in_run(bench, folder, path, found is not None, place, skip=draw.random() < 0.5)
    return REFUSED if found is None else USED


def _bytes(draw: Random) -> bytes:
    kind = draw.randrange(14)
    if kind == 0:
        return draw.choice((b"", b"plain text\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                            b"%!PS-Adobe-3.0 EPSF-3.0",
                            draw.randbytes(300), b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", bytes(5000)))
    if kind == 1:
        return _giant(draw)
    data = _saved(draw)
    if kind in (2, 12, 13):
        return data
    if kind == 3:
        other = _saved(draw)
        return data[:draw.randrange(len(data))] + other[draw.randrange(len(other)):]
    if kind == 4:                            # the fields of the header
        return broken_bytes(data[:40], draw) + data[40:]
    for _ in range(draw.choice((1, 1, 2))):
        data = broken_bytes(data, draw)
    return data


def _saved(draw: Random) -> bytes:
    format_ = draw.choice(sorted(SAVED))
    mode, size = draw.choice(SAVED[format_]), draw.choice(((12, 9), (1, 1), (40, 46), (3, 300)))
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (*size, 3), dtype=np.uint8)
    made = Image.fromarray(pixels)
    if mode in ("I;16", "F", "I"):
        values = pixels[..., 0].astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode])
        made = Image.fromarray(values * draw.choice((1, 100, 257)))
    elif mode in ("LA", "RGBA"):
        made = made.convert(mode)
        made.putalpha(Image.fromarray(pixels[..., 0]))
    elif mode == "LAB":
        made = Image.frombytes("LAB", made.size, pixels.tobytes())
    else:
        made = made.convert(mode)
    options: dict[str, Any] = {}
    if format_ in ("JPEG", "PNG", "WEBP", "TIFF") and draw.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 255))
        options["exif"] = exif
    if mode == "P" and format_ in ("PNG", "GIF") and draw.random() < 0.5:
        options["transparency"] = draw.choice((0, 1, 255))
    if format_ in ("GIF", "TIFF", "WEBP", "PNG") and draw.random() < 0.2:
        options |= {"save_all": True, "append_images": [made.rotate(180)]}
    out = BytesIO()
    made.save(out, format_, **options)
    return out.getvalue()


def _giant(draw: Random) -> bytes:
    """A small file that says it holds very many pixels, or none."""
    width, height = draw.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 5), (2**20, 1), (1, 60_000),
                                 (2**32 - 1, 1), (4_000, 4_500), (0, 0)))
    if draw.random() < 0.6:
        header = struct.pack(">IIBBBBB", width, height, draw.choice((1, 8, 16)), draw.choice((0, 2, 3, 6)), 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(500))), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)) for kind, data in chunks)
    if draw.random() < 0.5:
        return b"GIF89a" + struct.pack("<HH", width % 65536, height % 65536) + b"\xf0\x00\x00" + bytes(30)
    return b"BM" + struct.pack("<IIIIIiHHIIIIII", 54, 0, 54, 40, width % 2**32, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)


def _no_file(path: Path, draw: Random, place: Path) -> None:
    """What stands in a folder of photos and is no file."""
    kind = draw.randrange(8)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to(place / "nowhere.png")
    elif kind == 4:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/null", "/dev/stdin")))
    elif kind == 5:
        path.symlink_to(path.parent.parent, target_is_directory=True)
    elif kind == 6:
        path.symlink_to(path.with_name("y"))
        path.with_name("y").symlink_to(path)
    else:
        path.symlink_to(path.with_name("0.png"))


def _as_pillow(path: Path, found: Image.Image | None, problem: str) -> None:
    """Wrong where Pillow alone reads the bytes and `read_image` does not, or otherwise, or other pixels."""
    data = path.read_bytes()
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            opened.load()
            expected = opened.copy()
    except Exception as error:    # Pillow's decoders raise anything
        require(found is None, f"it was read, and Pillow raises {error!r}")
        return
    if found is None:
        require("too many pixels" in problem, f"Pillow reads it, and xrvlm says: {problem}")
        return
    require(found.mode == "RGB", f"the mode is {found.mode}")
    orientation = None
    with suppress(Exception):
        orientation = expected.getexif().get(0x0112)
    turn = UPRIGHT.get(orientation, lambda a: a) if isinstance(orientation, int) else (lambda a: a)
    if expected.has_transparency_data:
        rgba = np.asarray(expected.convert("RGBA")).astype(float)
        over = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
        _equal(turn(over), found, 2)
    elif expected.mode in TAKEN_AS_IS:
        _equal(turn(np.asarray(expected.convert("RGB")).astype(float)), found, 0)
    else:
        shape = turn(np.zeros((expected.height, expected.width))).shape
        require(shape == (found.height, found.width), f"the size is {found.size}, not {shape}")


def _equal(pixels: np.ndarray, found: Image.Image, most: float) -> None:
    got = np.asarray(found).astype(float)
    require(got.shape == pixels.shape, f"the size is {got.shape}, not {pixels.shape}")
    require(not got.size or np.abs(got - pixels).max() <= most, f"pixels differ by {np.abs(got - pixels).max()}")


def _labelled(bench: Bench, path: Path, readable: bool) -> None:
    best, _ = answer(lambda: bench.runs["linear_probe"].classifier.predict(path))
    require((best is not None) == readable, "predict and read_image differ in whether it can be read")
    if best is not None:
        chances = [chance for _, chance in best]
        right = all(0 <= chance <= 1 for chance in chances) and abs(sum(chances) - 1) < 1e-3
        require(right, f"probabilities {chances}")


def _in_folder(bench: Bench, folder: Path, path: Path, readable: bool, place: Path) -> None:
    """All images that can be read are labelled, each once; the others are named in the table."""
    out = place / "out" / "labels.csv"
    out.parent.mkdir()
    run = bench.runs["linear_probe"].folder
    found, problem = answer(lambda: xrvlm.predict(run, folder, clip=bench.clip, out=out))
    if found is None:
        raise Wrong(f"the good images were not labelled: {problem}")
    names = [each.image for each in found]
    counted = readable and path.suffix.lower() in SUFFIXES and not path.is_dir()
    require(sorted(set(names)) == sorted(names) and len([name for name in names if "/x." not in name]) == 6
            and (f"jay/{path.name}" in names) == counted, f"labelled were {names}")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    require({row["image"] for row in rows if not row["error"]} == set(names), f"the table has {rows}")


def _in_run(bench: Bench, folder: Path, path: Path, readable: bool, place: Path, *, skip: bool) -> None:
    """A run on a folder with the image ends with figures, or names the image."""
    dataset, problem = answer(lambda: xrvlm.image_folder(folder, skip_damaged=skip))
    if dataset is None:
        raise Wrong(f"the folder was refused: {problem}")
    options = xrvlm.RunOptions(runs=place / "runs", features=xrvlm.FeatureSettings(views=0, cache=place / "cache"))
    made, problem = answer(lambda: xrvlm.adapt(bench.clip, dataset, "linear_probe", shots=None, options=options))
    bad = not readable and not skip and path.suffix.lower() in SUFFIXES and not path.is_dir()
    if made is None:
        require(bad and path.name in problem, f"no run: {problem}")
    else:
        require(not bad, "a run with an image that cannot be read")
        require(all(0 <= value <= 1 for value in made.record.metrics.values()), f"metrics {made.record.metrics}")
