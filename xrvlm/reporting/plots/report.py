"""Pictures of a report: methods compared, and the reliability diagram of a model."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xrvlm.reporting.plots.figures import COLOURS, figure_of, label, wrapped

MARKERS = "osD^vPX*<>"
STROKES = ("-", "-.", ":")                # 3, 10 and 7 (COLOURS) have no common divisor: 210 different lines
DASHES = ((0, (6, 3)), (0, (2, 2)), (0, (10, 3)), (0, (4, 2, 1, 2)))
COLOURED = 8                              # up to so many curves each has a colour; of more only the BEST
BEST = 6
FAINT, FLAT = "#9aa0a8", "#4d535c"
LINE = 0.185                              # height of a line of a label, in inches

Score = tuple[float, float | None]      # mean and standard deviation in %; None for a single run


class End(NamedTuple):
    """The end of a curve, where its label is."""

    position: float                      # along the axis of shots
    score: float
    name: str
    look: dict[str, Any]                 # properties of the label's text


def accuracy_over_shots(curves: Mapping[str, Mapping[int | str, Score]], shots: Sequence[int | str], *,
                        title: str = "", measure: str = "top-1", coloured: Collection[str] = ()) -> Figure:
    """The `measure` over the shots, with a line for each method and its name at the line's end.

    Of many lines those that end highest are coloured and the others grey. All have different markers and strokes.

    Args:
        curves: {method: {shots: (mean, standard deviation or None)}} in %; a score with 0 shots is a dashed line.
        shots: along the axis, evenly spaced; "all" may be the last.
        coloured: methods that are coloured in any case.
    """
    names = {name: wrapped(name, 40) for name in curves}
    lines = sum(name.count("\n") + 1 for name in names.values())
    figure, axes = figure_of(9, max(4.5, 1.1 + LINE * lines))
    ends = [*_flats(axes, curves, names, len(shots)), *_lines(axes, curves, names, shots, coloured)]
    axes.set_xticks(range(len(shots)), [str(count) for count in shots])
    axes.set_xlim(-0.2, len(shots) - 0.8)
    axes.grid(axis="y", alpha=0.25)
    label(axes, "labelled images a class (shots)", f"{measure} accuracy in %", title)
    _label_ends(axes, ends, len(shots) - 0.8, figure.get_figheight() - 0.9)
    return figure


def _flats(axes: Axes, curves: Mapping[str, Mapping[int | str, Score]], names: Mapping[str, str],
           width: int) -> list[End]:
    ends = []
    for name in (name for name, points in curves.items() if 0 in points):
        score = curves[name][0][0]
        axes.axhline(score, linestyle=DASHES[len(ends) % len(DASHES)], color=FLAT, linewidth=1)
        ends.append(End(width - 0.8, score, names[name], {"color": FLAT, "style": "italic"}))
    return ends


def _lines(axes: Axes, curves: Mapping[str, Mapping[int | str, Score]], names: Mapping[str, str],
           shots: Sequence[int | str], coloured: Collection[str]) -> list[End]:
    positions = {name: found for name, points in curves.items()
                 if (found := [i for i, count in enumerate(shots) if count in points])}
    ranked = sorted(positions, key=lambda name: (positions[name][-1], curves[name][shots[positions[name][-1]]][0]))
    shown = {*ranked[-(len(ranked) if len(ranked) <= COLOURED else BEST):], *coloured}
    colours = iter(range(len(positions)))
    ends = []
    for i, (name, at) in enumerate(positions.items()):
        means, deviations = zip(*(curves[name][shots[position]] for position in at), strict=True)
        colour = COLOURS[next(colours) % len(COLOURS)] if name in shown else FAINT
        bars = axes.errorbar(at, means, yerr=[deviation or 0 for deviation in deviations], color=colour, capsize=2,
                             elinewidth=0.8, marker=MARKERS[i % len(MARKERS)], linestyle=STROKES[i % len(STROKES)],
                             **({"linewidth": 1.8, "markersize": 6, "zorder": 3} if name in shown else
                                {"linewidth": 0.9, "markersize": 4, "zorder": 2}))
        for faint in (*bars.lines[1], *bars.lines[2]):
            faint.set_alpha(0.35)
        ends.append(End(at[-1], means[-1], names[name],
                        {"color": colour, "weight": "bold"} if name in shown else {"color": FLAT}))
    return ends


def _label_ends(axes: Axes, ends: Sequence[End], right: float, inches: float) -> None:
    """The names beside the axes, which are `inches` high, each as near to its line's end as the others allow."""
    ends = sorted(ends, key=lambda end: end.score)
    low, high = axes.get_ylim()
    heights = [LINE * (end.name.count("\n") + 1) * (high - low) / inches for end in ends]
    beside = right + 0.045 * (right + 0.2)
    for end, height in zip(ends, spread([end.score for end in ends], heights, (low, high)), strict=True):
        axes.plot([end.position, beside], [end.score, height], color=end.look["color"], linewidth=0.6, alpha=0.6,
                  clip_on=False, zorder=1)
        axes.text(beside, height, f" {end.score:.1f}  {end.name}", va="center", fontsize=9, **end.look)
    axes.set_ylim(low, high)


def spread(centres: Sequence[float], heights: Sequence[float], bounds: tuple[float, float]) -> list[float]:
    """The ascending centres of labels, moved as little as needed so that none overlap and all are within bounds."""
    needed = list(accumulate(((below + above) / 2 for below, above in pairwise(heights)), initial=0.0))
    blocks: list[list[float]] = []               # (sum, number) of labels that touch, lowest first
    for centre, offset in zip(centres, needed, strict=True):
        blocks.append([centre - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + number]
    free = [total / number for total, number in blocks for _ in range(int(number))]
    return [float(np.clip(centre, bounds[0], max(bounds[0], bounds[1] - needed[-1]))) + offset
            for centre, offset in zip(free, needed, strict=True)]


def bars(rows: Mapping[str, Sequence[float]], *, flat: Mapping[str, float] | None = None, title: str = "",
         measure: str = "top-1") -> Figure:
    """A bar for the mean of each row's values in %, the highest on top, with its deviation and a dot for each value.

    `flat` are scores to compare with, such as zero-shot: grey bars among the others.
    """
    values = {**{name: [score] for name, score in (flat or {}).items()}, **rows}
    ordered = sorted(values, key=lambda name: statistics.fmean(values[name]))
    names = [wrapped(name, 52) for name in ordered]
    lines = sum(name.count("\n") + 1 for name in names)
    figure, axes = figure_of(9.5, 1.4 + 0.27 * lines)
    means = [statistics.fmean(values[name]) for name in ordered]
    spreads = [statistics.stdev(values[name]) if len(values[name]) > 1 else 0 for name in ordered]
    axes.barh(range(len(ordered)), means, xerr=spreads, linewidth=0.8, height=0.72,
              color=["#9ecae1" if name in rows else "#d5d8dc" for name in ordered],
              edgecolor=["#0072B2" if name in rows else FLAT for name in ordered],
              error_kw={"elinewidth": 1.2, "capsize": 3})
    for position, (name, mean, deviation) in enumerate(zip(ordered, means, spreads, strict=True)):
        axes.plot(values[name], [position] * len(values[name]), ".", color="black", markersize=4, alpha=0.7)
        axes.text(1.01, position, f"{mean:.1f}" + (f" ± {deviation:.1f}" if len(values[name]) > 1 else ""), va="center",
                  fontsize=9, transform=axes.get_yaxis_transform())
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_yticks(range(len(ordered)), names, fontsize=9)
    label(axes, f"{measure} accuracy in %", "", title)
    return figure


def reliability(bins: Tensor, *, title: str = "") -> Figure:
    """The reliability diagram of metrics.calibration_bins (bins, 3): accuracy over confidence, and images per bin."""
    images, confident, hits = bins.numpy().T
    filled = images > 0
    width = 100 / len(images)
    figure = Figure(figsize=(5, 5.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    centres = width * (np.arange(len(images)) + 0.5)
    accuracy, confidence = 100 * hits[filled] / images[filled], 100 * confident[filled] / images[filled]
    axes.bar(centres[filled], accuracy, width=0.94 * width, color="#9ecae1", edgecolor="#0072B2", label="accuracy")
    axes.plot([0, 100], [0, 100], linestyle="--", color="dimgrey", linewidth=1, label="as sure as right")
    axes.plot(confidence, accuracy, "o", color="#D55E00", markersize=4, label="mean confidence of the bin")
    axes.set(xlim=(0, 100), ylim=(0, 100))
    error = 100 * np.abs(confident - hits).sum() / images.sum()
    axes.text(0.03, 0.96, f"ECE {error:.1f} %", transform=axes.transAxes, va="top", fontsize=10,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85})
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)       # inside the axes it would hide bars
    counts.bar(centres, images, width=0.94 * width, color="lightgrey", edgecolor="dimgrey", linewidth=0.6)
    label(axes, "", "accuracy in %", title)
    label(counts, "confidence in the predicted class, in %", "images", "")
    return figure
