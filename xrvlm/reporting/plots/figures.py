"""Pictures of results and of part maps. Each function returns a new Figure, which `save` writes; the global state of
matplotlib is not used. Colour-blind readers can distinguish the colours.
"""

import base64
import logging
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image, ImageChops
from torch import Tensor

from xrvlm import files

log = logging.getLogger(__name__)

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is not visible on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HEAT = "inferno"
NAMED_CLASSES = 40              # more class names cannot be read along an axis
COUNTED_CLASSES = 15            # up to so many classes the cells of a confusion matrix show their counts
PHOTO_SIDE = 480                # pixels of a photo's longer side
DOTS_PER_INCH = 150
EDGE = 15                       # white pixels left around a picture
DRAWN_COLOURS = 20_000          # a drawing has at most so many, with the shades of its edges; a photo has more


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG without its white border, atomically; a drawing gets a palette of 256 colours."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        canvas.draw()
    missing = [each for each in told if "missing from font" in str(each.message)]
    if missing:
        _tell_of_boxes()
    for each in told:
        if each not in missing:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    left, top, right, bottom = ImageChops.invert(image).getbbox() or (0, 0, *image.size)
    image = image.crop((max(left - EDGE, 0), max(top - EDGE, 0),
                        min(right + EDGE, image.width), min(bottom + EDGE, image.height)))
    if image.getcolors(DRAWN_COLOURS):
        image = _in_few_colours(image)
    files.write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


@cache
def _tell_of_boxes() -> None:
    """Once, not for each letter of each picture: DejaVu Sans lacks Chinese, for example."""
    log.warning("pictures show boxes in place of letters that the font %s lacks: name one that has them in a file "
                "matplotlibrc in this folder, as in `font.family: DejaVu Sans, Noto Sans CJK JP`",
                ", ".join(rcParams["font.family"]))


def _in_few_colours(image: Image.Image) -> Image.Image:
    """With a palette. The fast octree merges white with the lightest shades, so white is set again."""
    few = image.quantize(256, Image.Quantize.FASTOCTREE)
    if image.getpixel((0, 0)) == (255, 255, 255):
        palette, ground = few.getpalette() or [], 3 * few.tobytes()[0]
        few.putpalette([*palette[:ground], 255, 255, 255, *palette[ground + 3:]])
    return few


def confusion(matrix: Tensor, classes: Sequence[str], *, title: str = "") -> Figure:
    """The confusion matrix (c, c) of counts, drawn as shares of the true class; a class without images is grey."""
    counts = matrix.cpu().numpy()
    images = counts.sum(1, keepdims=True)
    shares = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)
    side = 4 + 0.1 * len(classes) if len(classes) <= NAMED_CLASSES else 9
    # fixed margins, wide enough for the names: measuring them is slow, and `save` trims the border
    figure, axes = figure_of(side + 4, side + 3, constrained=False)
    figure.subplots_adjust(left=3.2 / (side + 4), bottom=3.2 / (side + 3), right=1 - 0.2 / (side + 4),
                           top=1 - 0.5 / (side + 3))
    axes.set_facecolor("lightgrey")
    # shades by the square root, so that a few errors among hundreds of classes are visible
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    figure.colorbar(picture, ax=axes, label="% of the images of the true class", shrink=0.8)
    _label_classes(axes, classes)
    if len(classes) <= COUNTED_CLASSES:
        for true, guess in np.argwhere(counts):
            axes.text(guess, true, str(counts[true, guess]), ha="center", va="center", fontsize=8,
                      color="white" if shares[true, guess] > 35 else "black")
    by_number = "" if len(classes) <= NAMED_CLASSES else ", by number"
    label(axes, f"predicted class{by_number}", f"true class{by_number}", title)
    return figure


def _label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """The names along both axes, or numbers where there are too many."""
    if len(classes) > NAMED_CLASSES:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        return
    axes.set(xticks=[], yticks=[])                       # a tick for each class is many times slower than a text
    names = [shortened(name) for name in classes]
    axes.xaxis.labelpad = axes.yaxis.labelpad = 8 + 4.4 * max(map(len, names))
    for index, name in enumerate(names):
        axes.text(index, -0.008, name, rotation=90, ha="center", va="top", fontsize=7,
                  transform=axes.get_xaxis_transform())
        axes.text(-0.008, index, name, ha="right", va="center", fontsize=7, transform=axes.get_yaxis_transform())


def losses(runs: Mapping[str, Sequence[Mapping[str, float]]], *, title: str = "") -> Figure:
    """The training loss over the epochs, with a line for each run.

    Args:
        runs: by their name, rows of {"epoch", "loss"} and optionally "val_top1" (0..1), which is drawn dashed against a
            second axis.
    """
    figure, axes = figure_of(7, 4)
    accuracy = axes.twinx() if any("val_top1" in row for rows in runs.values() for row in rows) else None
    for i, (name, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[i % len(COLOURS)], "." if len(rows) <= 30 else ""
        axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows],
                  color=colour, marker=marker, linestyle="-" if i < len(COLOURS) else ":", label=shortened(name, 60))
        checked = [row for row in rows if "val_top1" in row]
        if accuracy is not None and checked:
            accuracy.plot([row["epoch"] for row in checked], [100 * row["val_top1"] for row in checked],
                          color=colour, marker=marker, linestyle="--")
    if accuracy is not None:
        accuracy.set_ylabel("validation top-1 in % (dashed)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    label(axes, "epoch", "training loss", title)
    _legend(figure, axes, len(runs))
    return figure


def part_maps(image: Image.Image, maps: ArrayLike | Tensor, *, titles: Sequence[str] = (), columns: int = 5) -> Figure:
    """The photo, and each part's map (m, h, w) over it; `titles` name the parts.

    Each map is stretched to its own range, so maps can be compared in position, not in strength. `image` must be what
    the maps were computed from: the centre crop if the tower saw a crop.
    """
    heats = stretched(maps)
    columns = min(columns, len(heats) + 1)
    rows = -(-(len(heats) + 1) // columns)
    figure = _photo_figure(columns, rows, image)
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    draw_photos(axes, image, heats, ("photo", *part_names(titles, len(heats))))
    for empty in axes[len(heats) + 1:]:
        empty.axis("off")
    return figure


def grid(images: Sequence[Image.Image], maps: Sequence[ArrayLike | Tensor], *, names: Sequence[str] = (),
         titles: Sequence[str] = ()) -> Figure:
    """A row for each image: the photo, then each part's map over it; `names` name the images, `titles` the parts."""
    heats = [stretched(each) for each in maps]
    parts = max(map(len, heats))
    figure = _photo_figure(parts + 1, len(images), images[0])
    rows = figure.subplots(len(images), parts + 1, squeeze=False)
    for i, (axes, image, heat) in enumerate(zip(rows, images, heats, strict=True)):
        draw_photos(axes, image, heat, ("photo", *part_names(titles, parts)) if i == 0 else ())
        if names:
            axes[0].set_ylabel(shortened(names[i]), fontsize=9)
        for empty in axes[len(heat) + 1:]:
            empty.axis("off")
    return figure


def part_names(titles: Sequence[str], parts: int) -> list[str]:
    return [shortened(title) for title in titles] or [f"part {part + 1}" for part in range(parts)]


def stretched(maps: ArrayLike | Tensor) -> np.ndarray:
    """Maps (m, h, w), each stretched to 0..1; a constant one becomes 0."""
    heats = torch.as_tensor(maps).detach().float().cpu().numpy()
    if heats.ndim != 3 or not np.isfinite(heats).all():
        raise ValueError(f"part maps must be finite and (parts, height, width), not {heats.shape}")
    lowest = heats.min((1, 2), keepdims=True)
    reach = heats.max((1, 2), keepdims=True) - lowest
    return (heats - lowest) / np.where(reach > 0, reach, 1)


def overlaid(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo below a map (h, w) of 0..1, the higher the more opaque."""
    heat = _enlarged(heat, photo)
    opaque = _opacity(heat)[..., None]                                                     # (height, width, 1)
    mixed = (1 - opaque) * np.asarray(photo.convert("RGB")) + opaque * 255 * colormaps[HEAT](heat)[..., :3]
    return Image.fromarray(mixed.round().astype(np.uint8))


def _enlarged(heat: np.ndarray, photo: Image.Image) -> np.ndarray:
    """(height, width) of the photo."""
    return np.asarray(Image.fromarray(heat).resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)


def _opacity(heat: np.ndarray) -> np.ndarray:
    return 0.15 + 0.6 * heat


def data_uri(photo: Image.Image, side: int, quality: int = 80) -> str:
    """A copy of the photo, `side` pixels at most, for the `src` of a page."""
    small, file = photo.convert("RGB"), BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _photo_figure(columns: int, rows: int, image: Image.Image) -> Figure:
    return Figure(figsize=(2.1 * columns, 2.1 * rows * min(image.height / image.width, 2) + 0.3), layout="constrained")


def draw_photos(axes: Sequence[Axes], image: Image.Image, heats: np.ndarray, titles: Sequence[str]) -> None:
    photo = image.convert("RGB")
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    for i, each in enumerate(axes[:len(heats) + 1]):
        each.imshow(photo)
        if i > 0:
            heat = _enlarged(heats[i - 1], photo)
            each.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=_opacity(heat))
        each.set_xticks([])
        each.set_yticks([])
        if titles:
            each.set_title(titles[i], fontsize=9)


def figure_of(width: float, height: float, *, constrained: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    return figure, figure.subplots()


def label(axes: Axes, across: str, upwards: str, title: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(upwards)
    axes.set_title(shortened(title, 80), fontsize=10)


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    if entries > 6:
        figure.legend(loc="outside right upper", fontsize=8)
    elif entries > 1:
        axes.legend(fontsize=8)


def wrapped(name: str, width: int) -> str:
    """The name on as many lines as it needs, its dollar signs escaped, which matplotlib would read as mathematics."""
    return "\n".join(textwrap.wrap(name, width, break_on_hyphens=False)).replace("$", r"\$")


def shortened(name: str, longest: int = 32) -> str:
    """The name, shortened, its dollar signs escaped, which matplotlib would read as mathematics."""
    name = " ".join(name.split())
    return (name if len(name) <= longest else name[:longest - 1] + "…").replace("$", r"\$")
