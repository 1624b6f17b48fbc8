"""Pictures of a report beside those of plots.py: is a model as sure as it is right?"""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from xrvlm.plots import label


def reliability(bins: Tensor, *, title: str = "") -> Figure:
    """The reliability diagram of metrics.calibration_bins (bins, 3): accuracy over confidence, and images a bin."""
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
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)       # within the axes it would hide bars
    counts.bar(centres, images, width=0.94 * width, color="lightgrey", edgecolor="dimgrey", linewidth=0.6)
    label(axes, "", "accuracy in %", title)
    label(counts, "confidence in the predicted class, in %", "images", "")
    return figure
