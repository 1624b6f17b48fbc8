import pytest
import torch
from matplotlib.patches import Rectangle

from xrvlm import metrics, plots, plots_report


def test_a_reliability_diagram_has_a_bar_a_bin(tmp_path):
    confidence = torch.tensor([0.05, 0.55, 0.55, 0.95, 0.95], dtype=torch.float64)
    right = torch.tensor([False, True, False, True, True])
    bins = metrics.calibration_bins(confidence, right, bins=10)
    assert bins.tolist()[5] == [2, pytest.approx(1.1), 1]
    figure = plots_report.reliability(bins, title="$x$")
    axes, counts = figure.axes
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches
               if isinstance(bar, Rectangle)}
    assert heights == {5: 0, 55: 50, 95: 100}
    assert [bar.get_height() for bar in counts.patches if isinstance(bar, Rectangle)] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    # |0.05 - 0|, |1.1 - 1| and |1.9 - 2| of 5 images
    assert [text.get_text() for text in axes.texts] == ["ECE 5.0 %"]
    plots.save(figure, tmp_path / "x.png")


def test_the_bins_give_the_calibration_error():
    scores = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.arange(50) % 4
    confidence = scores.amax(1).double()
    images, confident, hits = metrics.calibration_bins(confidence, metrics.predicted(scores) == labels).T
    assert images.sum() == 50
    assert ((confident - hits).abs().sum() / 50).item() == metrics.expected_calibration_error(scores, labels)
