import numpy as np
import pytest
import torch
from PIL import Image

from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots.explain import Panel, explanation


def drawn(parts: int, panels: int, prompts: int = 3):
    by_part = torch.linspace(-2, 1, prompts * parts).view(prompts, parts)
    panel = Panel("wren $5: +1.00", by_part, [("part 1 x prompt 2, wren", 0.5), ("part 2 x prompt 1, jay", -0.25)],
                  12 * parts, "wren", "jay")
    return explanation(Image.new("RGB", (32, 32), "green"), torch.rand(parts, 4, 4), [panel] * panels,
                       parts=[f"part {part}" for part in range(parts)],
                       prompts=[f"prompt {prompt}" for prompt in range(prompts)], title="wren 90%", note="how")


@pytest.mark.parametrize(("parts", "panels"), [(1, 1), (4, 1), (5, 2)])
def test_an_explanation_is_drawn(parts, panels, tmp_path):
    figure = drawn(parts, panels)
    plots.save(figure, tmp_path / "wren.png")
    with Image.open(tmp_path / "wren.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    shown = [axes for axes in figure.get_axes() if axes.axison]
    assert [axes.get_title() for axes in shown[:parts + 1]] == ["photo", *(f"part {part}" for part in range(parts))]
    assert len(shown) == parts + 1 + 2 * panels


def test_of_many_parts_the_decisive_ones_are_shown_and_the_others_summed():
    by_part = torch.zeros(2, 17)
    by_part[0, [1, 4, 9, 12, 16]] = torch.tensor([3.0, -2.0, 1.0, 0.5, 0.25])
    by_part[1, [2, 3]] = torch.tensor([0.1, 0.001])
    panel = Panel("wren: +1.00", by_part, [("part 1 x prompt 2, wren", 0.5)], 34, "wren", "others")
    figure = explanation(Image.new("RGB", (32, 32), "green"), torch.rand(17, 4, 4), [panel],
                         parts=[f"part {part}" for part in range(17)], prompts=["a", "b"], title="x", note="how")
    *photos, heat_map, _ = [axes for axes in figure.get_axes() if axes.axison]
    assert [axes.get_title() for axes in photos] == ["photo", "part 1", "part 4", "part 9", "part 12", "part 16"]
    assert [label.get_text() for label in heat_map.get_xticklabels()][-2:] == ["part 16", "12 others"]
    numbers = {text.get_text() for text in heat_map.texts}
    assert numbers == {"+3.00", "-2.00", "+1.00", "+0.50", "+0.25", "+0.10"}, "and no zeros"


def test_bars_and_cells_are_signed():
    figure = drawn(4, 1)
    heat_map, bars = figure.get_axes()[-2:]
    assert [bar.get_width() for bar in bars.patches] == [0.5, -0.25]
    assert bars.patches[0].get_facecolor() != bars.patches[1].get_facecolor()
    low, high = heat_map.images[0].get_clim()
    assert low == -high == -2                # white is zero
    assert [text.get_text() for text in heat_map.texts][::11] == ["-2.00", "+1.00"]
    assert bars.get_xlabel() == "jay ← contribution → wren"
