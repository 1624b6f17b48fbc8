import itertools

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from xrvlm.evaluation import metrics
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots import report as plots_report


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


@pytest.mark.parametrize(("name", "by_hand"), [("\u05d0\u05d1", "\u05d1\u05d0"), ("\u0642\u0637", "\u0637\u0642")])
def test_names_in_hebrew_and_arabic_are_set_from_right_to_left(tmp_path, name, by_hand):
    def drawn(text):
        figure = Figure(figsize=(3, 0.6))
        figure.text(0.1, 0.3, plots.shortened(text))
        plots.save(figure, tmp_path / "x.png")
        return (tmp_path / "x.png").read_bytes()

    from_left_to_right = f"\u202d{by_hand}\u202c"                                           # by an override of Unicode
    assert drawn(name) == drawn(from_left_to_right) != drawn(by_hand)


def test_the_bins_give_the_calibration_error():
    scores = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.arange(50) % 4
    confidence = scores.amax(1).double()
    images, confident, hits = metrics.calibration_bins(confidence, metrics.predicted(scores) == labels).T
    assert images.sum() == 50
    assert ((confident - hits).abs().sum() / 50).item() == metrics.expected_calibration_error(scores, labels)


def test_accuracy_over_shots_draws_what_it_is_given():
    series = {"a": {1: (50.0, 2.0), "all": (70.0, None)}, "zero": {0: (40.0, None)}}
    figure = plots_report.accuracy_over_shots(series, [1, 4, "all"])
    axes = figure.axes[0]
    curve = axes.containers[0].lines[0]
    assert curve.get_xydata().tolist() == [[0, 50], [2, 70]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "all"]
    assert any(list(line.get_ydata()) == [40, 40] for line in axes.lines)
    assert [text.get_text() for text in axes.texts] == [" 40.0  zero", " 70.0  a"]


def test_many_curves_are_labelled_at_their_ends_and_the_best_are_coloured():
    series = {f"m{i}": {1: (10.0 + i, 1.0), 4: (50.0 + 7 * i % 60, 1.0)} for i in range(14)}
    flat = {f"zero{i}": {0: (53.5 - i, None)} for i in range(6)}
    figure = plots_report.accuracy_over_shots(flat | series, [1, 4], coloured=["m0"])
    axes = figure.axes[0]
    drawn = [container.lines[0] for container in axes.containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == len(drawn) == 14
    ends = {name: points[max(points)][0] for name, points in (flat | series).items()}
    shown = [text.get_text().split()[1] for text in axes.texts]
    assert [ends[name] for name in shown] == sorted(ends.values())
    best = {*sorted(series, key=lambda name: ends[name])[-plots_report.BEST:], "m0"}
    assert {f"m{i}" for i, line in enumerate(drawn) if line.get_color() != plots_report.FAINT} == best
    assert axes.get_ylabel() == "top-1 accuracy in %"
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(above.y0 >= below.y1 - 1 for below, above in itertools.pairwise(boxes))      # none hides another
    assert min(box.x0 for box in boxes) > axes.get_window_extent().x1
    assert figure.bbox.x1 > max(box.x1 for box in boxes)


def test_few_curves_are_all_coloured():
    figure = plots_report.accuracy_over_shots({f"m{i}": {1: (i, None), 2: (i, None)} for i in range(8)}, [1, 2])
    assert plots_report.FAINT not in {container.lines[0].get_color() for container in figure.axes[0].containers}


def test_labels_move_as_little_as_they_must():
    assert plots_report.spread([1, 5, 9], [1, 1, 1], (0, 10)) == [1, 5, 9]
    assert plots_report.spread([4, 4, 9], [2, 2, 2], (0, 10)) == [3, 5, 9]
    assert plots_report.spread([9.8, 10], [2, 4], (0, 10)) == [7, 10]
    assert plots_report.spread([0, 0, 0], [1, 1, 1], (0, 10)) == [0, 1, 2]


def test_bars_ascend_and_hold_every_value():
    long = "XR-VLM (head=alignment, image_parts=16, text_parts=16, part_prompts=learned_from_descriptions, cost=$1$)"
    figure = plots_report.bars({"a": [50.0, 56.0], long: [70.0, 72.0, 77.0], "one": [40.0]}, flat={"zero": 45.0})
    axes = figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [40, 45, 53, 73]                 # upwards: the best is on top
    assert {bar.get_x() for bar in bars} == {0}
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["one", "zero", "a"]
    assert " ".join(names[3].split("\n")).replace("\\", "") == long
    errors = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert errors[2] == pytest.approx([53 - 18**0.5, 53 + 18**0.5])
    assert errors[0] == [40, 40]
    dots = {int(line.get_ydata()[0]): list(line.get_xdata()) for line in axes.lines if line.get_marker() == "."}
    assert dots == {0: [40], 1: [45], 2: [50, 56], 3: [70, 72, 77]}
    assert [text.get_text() for text in axes.texts] == ["40.0", "45.0", "53.0 ± 4.2", "73.0 ± 3.6"]
    assert bars[0].get_facecolor() == bars[2].get_facecolor() != bars[1].get_facecolor()       # zero-shot is grey


def test_letters_that_the_font_lacks_are_told_once(tmp_path, caplog, recwarn):
    plots._tell_of_boxes.cache_clear()
    for file in ("a.png", "b.png"):
        plots.save(plots.confusion(torch.eye(2, dtype=torch.long), ["\u5c71\u9ce5", "\u7ea2"]), tmp_path / file)
    (told,) = [record.getMessage() for record in caplog.records if "boxes" in record.getMessage()]
    assert "DejaVu Sans" in told or "sans-serif" in told
    assert "font.family" in told and not [each for each in recwarn if "Glyph" in str(each.message)]
