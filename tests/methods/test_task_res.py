from dataclasses import replace
from math import sqrt

import pytest
import torch
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import TaskRes, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.training.fit import fit


@torch.no_grad()
def test_the_formula_by_hand(clip):
    method = prepared(TaskRes, clip, alpha=0.25)
    method.base.copy_(torch.eye(16)[:3])
    method.residual[0, :2] = torch.tensor([-1.0, 2.0])       # (1, 0) + 0.25 (-1, 2) = (0.75, 0.5)
    method.residual[2, 2:4] = torch.tensor([4.0, 8.0])       # (1, 0) + 0.25 (4, 8) = (2, 2)
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([0.5, 0.5, 0.1, 0.7])
    expected = torch.tensor([[(0.5 * 0.75 + 0.5 * 0.5) / sqrt(0.75 ** 2 + 0.5 ** 2), 0.5, 0.8 / sqrt(2.0)]])
    torch.testing.assert_close(method.logits(Features(x), method.class_features(clip)), clip.logit_scale * expected)


@torch.no_grad()
def test_before_training_it_is_zero_shot(clip):
    x = features_of(made_bank(clip, CLASSES, LABELS))
    method, zero_shot = prepared(TaskRes, clip), prepared(ZeroShot, clip)
    torch.testing.assert_close(method.logits(x, method.class_features(clip)), zero_shot.logits(x, zero_shot.weights))
    assert method.prompts == zero_shot.prompts == "names"


def test_training_separates_what_zero_shot_confuses(clip):
    bank = bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0)), LABELS)
    method = prepared(TaskRes, clip)
    assert {name: tuple(value.shape) for name, value in method.named_parameters()} == {"residual": (3, 16)}
    assert (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean() < 0.2
    fit(method, clip, bank, replace(method.recipe, learning_rate=0.02), seed=1)      # far to go in a step an epoch
    assert (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean() > 0.6
    assert torch.equal(method.base, prepared(TaskRes, clip).base), "the text stays as it is"


def test_the_texts_are_as_long_as_the_tower_makes_them(clip):
    method = prepared(TaskRes, clip)
    lengths = clip.text_lengths([prompts[0] for prompts in CLASSES.prompts])
    assert ((lengths - 1).abs() > 0.1).all()
    torch.testing.assert_close(method.base, lengths[:, None] * prepared(ZeroShot, clip).weights)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_bad_options_are_told(clip, alpha):
    with pytest.raises(UserError, match="alpha must be above 0"):
        TaskRes(clip, CLASSES, alpha=alpha)
