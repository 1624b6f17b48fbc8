from dataclasses import replace
from math import sqrt

import pytest
import torch
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import ClipAdapter, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.training.fit import fit


@torch.no_grad()
def test_the_formula_by_hand(clip):
    """Features along three axes, a bottleneck of four of which two are read, class features along two axes."""
    method = prepared(ClipAdapter, clip, alpha=0.25)
    assert (method.down.weight.shape, method.up.weight.shape) == ((4, 16), (16, 4))
    method.down.weight.zero_()
    method.up.weight.zero_()
    method.down.weight[0, :2] = torch.tensor([2.0, 1.0])     # first hidden number: 2 x_0 + x_1
    method.down.weight[1, :2] = torch.tensor([0.0, -5.0])    # second: -5 x_1, which the ReLU cuts for x_1 > 0
    method.up.weight[0, 0] = 1.5                             # back to the first axis ...
    method.up.weight[2, 1] = 4.0                             # ... and to the third
    method.up.weight[1, 0] = -1.0                            # a negative number: no ReLU stands behind
    weights = torch.eye(16)[:3]                              # (c, d): what each class's text looks at
    x = torch.zeros(2, 16)
    x[0, :2] = torch.tensor([0.6, 0.8])
    x[1, :2] = torch.tensor([0.6, -0.8])
    blends = [[0.25 * 1.5 * 2.0 + 0.75 * 0.6, 0.25 * -2.0 + 0.75 * 0.8, 0.0],                # hidden 2.0 and 0
              [0.25 * 1.5 * 0.4 + 0.75 * 0.6, 0.25 * -0.4 - 0.75 * 0.8, 0.25 * 4.0 * 4.0]]   # hidden 0.4 and 4.0
    cosines = [[value / sqrt(sum(v * v for v in row)) for value in row] for row in blends]
    logits = method.logits(Features(x), weights)
    torch.testing.assert_close(logits, clip.logit_scale * torch.tensor(cosines))


@torch.no_grad()
def test_without_weight_it_is_zero_shot(clip):
    x, zero_shot = features_of(made_bank(clip, CLASSES, LABELS)), prepared(ZeroShot, clip)
    method = prepared(ClipAdapter, clip, alpha=0.0)
    torch.testing.assert_close(method.logits(x, method.class_features(clip)), zero_shot.logits(x, zero_shot.weights))
    assert method.prompts == zero_shot.prompts == "names"


@torch.no_grad()
def test_the_length_of_a_feature_does_not_matter(clip):
    """So that it is the paper's, which adapts features as long as the tower makes them."""
    x, method = features_of(made_bank(clip, CLASSES, LABELS)), prepared(ClipAdapter, clip, alpha=0.5)
    logits = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(method.logits(Features(9.7 * x.pooled), method.class_features(clip)), logits)


def test_the_network_alone_is_learned(clip):
    method = prepared(ClipAdapter, clip)
    assert {name for name, value in method.named_parameters() if value.requires_grad} == {"down.weight", "up.weight"}
    shown = features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0))    # each class shows the next one's text
    bank = bank_of(shown, LABELS)
    method = prepared(ClipAdapter, clip, alpha=0.8)
    before = probabilities(method, clip, bank)
    losses = fit(method, clip, bank, replace(method.recipe, learning_rate=0.1), seed=1).losses
    after = probabilities(method, clip, bank)
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    assert (after.argmax(dim=1) == LABELS).sum() > (before.argmax(dim=1) == LABELS).sum()
    assert torch.equal(method.zero_shot.weights, prepared(ZeroShot, clip).weights), "the text stays as it is"


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.1}, {"reduction": 0}, {"reduction": 17}])
def test_bad_options_are_told(clip, options):
    with pytest.raises(UserError, match=r"alpha must be in \[0, 1\] and reduction from 1 to the feature dimension 16"):
        ClipAdapter(clip, CLASSES, **options)
