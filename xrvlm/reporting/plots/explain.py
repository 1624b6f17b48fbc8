"""The picture of one explained image: the part maps, and the relations that contribute most."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from xrvlm.reporting.plots.figures import COLOURS, draw_photos, shortened, stretched

FOR, AGAINST = COLOURS[:2]               # blue and vermilion
FRAME = "#f0e442"                        # yellow, of a second look
SIGNED = LinearSegmentedColormap.from_list("signed", [AGAINST, "white", FOR])
PHOTOS_A_ROW = 6
UPRIGHT = 4                              # names of more columns are turned
SHOWN_PARTS = 5                          # of more parts, those that move the logits most
COUNTED_CELLS = 64                       # up to so many cells a heat map shows their numbers
PHOTO_PIXELS = 240


@dataclass(frozen=True)
class Panel:
    """The contributions to a logit, or to the difference of two."""

    title: str
    by_part: Tensor                      # (g, m) signed
    strongest: Sequence[tuple[str, float]]    # single relations: name, signed contribution
    relations: int                       # how many there are
    more: str                            # the class that a positive contribution favours
    less: str                            # the class that a negative one favours
    words: bool = False                  # the m are words, not parts, and each class has its own


def explanation(photo: Image.Image, maps: Tensor, panels: Sequence[Panel], *, parts: Sequence[str],
                prompts: Sequence[str], title: str, note: str,
                nearest: Sequence[tuple[Image.Image, str]] = (), windows: Sequence[Sequence[float]] = ()) -> Figure:
    """The photo, each part's map (m, h, w) over it, and for each panel a heat map of parts and prompts beside bars.

    Of more than `SHOWN_PARTS` parts, those with the largest contributions are shown, and the others in one column. Each
    map is stretched to its own range. `note`, below the title, says how the numbers were computed. `nearest`: training
    photos with a caption each, in a band of their own at the end. `windows`: left, top, right and bottom, as shares of
    a side, of what the tower looked at again; they are framed on the photo, in the order of the looks.
    """
    chosen = _decisive(panels, len(parts))
    if others := len(parts) - len(chosen):
        panels, maps = [_gathered(panel, chosen) for panel in panels], maps[chosen]
        parts = [*(parts[part] for part in chosen), f"{others} other{'s' * (others > 1)}"]
    rows = -(-(len(maps) + 1) // PHOTOS_A_ROW)
    heights = [1.75 * rows + 0.1, *(max(2.3, 0.33 * len(panel.by_part) + 1.2) for panel in panels)]
    heights += [2.1] if nearest else []
    figure = Figure(figsize=(9.5, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"{shortened(title, 90)}\n", fontsize=12)
    figure.text(0.5, 1 - 0.36 / figure.get_figheight(), note, ha="center", va="center", fontsize=8, color="0.35")
    bands = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _maps(bands[0], photo, maps, parts[:len(maps)], windows)
    for band, panel in zip(bands[1:], panels, strict=False):
        _panel(band, panel, parts, prompts)
    if nearest:
        _nearest(bands[-1], nearest)
    return figure


def _decisive(panels: Sequence[Panel], parts: int) -> list[int]:
    """The parts with the largest contributions, all panels together, in their order."""
    if parts <= SHOWN_PARTS:
        return list(range(parts))
    weights = torch.stack([panel.by_part.abs().sum(dim=0) for panel in panels]).sum(dim=0)     # (m,)
    return sorted(weights.topk(SHOWN_PARTS).indices.tolist())


def _gathered(panel: Panel, chosen: list[int]) -> Panel:
    """The panel with the columns of the `chosen` parts, and the sum of all others as its last."""
    kept = panel.by_part[:, chosen]                                                            # (g, k)
    others = panel.by_part.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)            # (g, 1)
    return replace(panel, by_part=torch.cat([kept, others], dim=1))


def _maps(band: SubFigure, photo: Image.Image, maps: Tensor, parts: Sequence[str],
          windows: Sequence[Sequence[float]]) -> None:
    heats = stretched(maps)
    rows = -(-(len(heats) + 1) // PHOTOS_A_ROW)
    axes = list(band.subplots(rows, min(PHOTOS_A_ROW, len(heats) + 1), squeeze=False).flatten())
    shown = photo.resize((PHOTO_PIXELS, PHOTO_PIXELS), Image.Resampling.BICUBIC)
    draw_photos(axes, shown, heats, ("photo", *parts))
    for number, edges in enumerate(windows, start=1):
        left, right, bottom, top = axes[0].images[0].get_extent()
        wide, high = right - left, bottom - top
        corner = left + edges[0] * wide, top + edges[1] * high
        axes[0].add_patch(Rectangle(corner, (edges[2] - edges[0]) * wide, (edges[3] - edges[1]) * high, fill=False,
                                    edgecolor=FRAME, linewidth=1.5))
        axes[0].text(corner[0] + 0.02 * wide, corner[1] + 0.02 * high, str(number), va="top", fontsize=7, color="black",
                     bbox={"facecolor": FRAME, "edgecolor": "none", "pad": 1})
    for empty in axes[len(heats) + 1:]:
        empty.axis("off")


def _nearest(band: SubFigure, photos: Sequence[tuple[Image.Image, str]]) -> None:
    band.suptitle("the nearest training photos, by the cosine of the tower's pooled features", fontsize=10)
    cells = band.subplots(1, max(PHOTOS_A_ROW, len(photos)), squeeze=False)[0]
    for axes, (photo, caption) in zip(cells, photos, strict=False):
        draw_photos([axes], photo, np.empty((0, 1, 1)), [])
        axes.set_xlabel("\n".join(shortened(line, 20) for line in caption.split("\n")), fontsize=8)
    for empty in cells[len(photos):]:
        empty.axis("off")


def _panel(band: SubFigure, panel: Panel, parts: Sequence[str], prompts: Sequence[str]) -> None:
    band.suptitle(shortened(panel.title, 110), fontsize=10)
    left, right = band.subplots(1, 2, width_ratios=(4, 5))
    _heat_map(left, panel.by_part.numpy(), parts, prompts)
    left.set_title("what each word adds" if panel.words else "parts x prompts, all classes summed", fontsize=9)
    names, values = [name for name, _ in panel.strongest], [value for _, value in panel.strongest]
    right.barh(range(len(values)), values, color=[FOR if value >= 0 else AGAINST for value in values])
    right.set_yticks(range(len(names)), [shortened(name, 60) for name in names], fontsize=8)
    right.invert_yaxis()
    right.axvline(0, color="black", linewidth=0.8)
    terms = "terms" if panel.words else "single relations"
    right.set_title(f"the {len(values)} strongest of {panel.relations} {terms}", fontsize=9)
    right.set_xlabel(f"{shortened(panel.less, 36)} ← contribution → {shortened(panel.more, 36)}", fontsize=8)
    right.tick_params(axis="x", labelsize=8)
    right.margins(x=0.12)


def _heat_map(axes: Axes, values: np.ndarray, parts: Sequence[str], prompts: Sequence[str]) -> None:
    """(g, m), white at zero."""
    reach = max(float(np.abs(values).max()), 1e-12)
    axes.imshow(values, cmap=SIGNED, vmin=-reach, vmax=reach, aspect="auto")
    axes.set_xticks(range(len(parts)), [shortened(part, 14) for part in parts], fontsize=8,
                    rotation=30 if len(parts) > UPRIGHT else 0, ha="right" if len(parts) > UPRIGHT else "center")
    axes.set_yticks(range(len(prompts)), [shortened(prompt, 24) for prompt in prompts], fontsize=8)
    if values.size <= COUNTED_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if abs(value) < 0.005:       # it would read as zero
                continue
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.75 * reach else "black")
