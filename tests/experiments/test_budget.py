import pytest
import torch
from banks import made_bank
from towers import tiny_vit

from xrvlm.errors import UserError
from xrvlm.experiments.budget import budget_seconds, in_words, seconds_an_image, training_seconds
from xrvlm.methods import ResidualProbe
from xrvlm.methods.base import Recipe
from xrvlm.text.class_text import class_text


@pytest.mark.parametrize(("budget", "seconds"), [(10, 600), ("10", 600), ("2m", 120), ("90s", 90), ("1.5h", 5400)])
def test_a_budget_is_a_time(budget, seconds):
    assert budget_seconds(budget) == seconds


@pytest.mark.parametrize("budget", ["0", "ten", "-5m", "5d", None, True])
def test_what_is_no_time_is_told(budget):
    with pytest.raises(UserError, match="budget must be a time such as 10m, 90s or 1h; found"):
        budget_seconds(budget)


def test_times_in_words():
    assert in_words(12.3) == "12 s"
    assert in_words(90) == "1.5 minutes"


def test_the_time_of_training_grows_with_the_epochs():
    clip, classes = tiny_vit(), class_text(["jay", "kite"])
    bank = made_bank(clip, classes, torch.arange(40) % 2)
    few, many = (training_seconds(ResidualProbe(clip, classes), clip, bank, Recipe("r", epochs, 8), 1)
                 for epochs in (10, 10_000))
    assert many > 20 * few > 0


def test_an_image_takes_time():
    assert 0 < seconds_an_image(tiny_vit(), {"pooled"}) < 5
