from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import LPPlusPlus, ZeroShot
from xrvlm.methods.base import probabilities


def texts(clip):
    return prepared(ZeroShot, clip).weights


def loss(method, clip, bank):
    return F.cross_entropy(method.logits(features_of(bank), method.class_features(clip)), bank.labels).item()


def test_the_start_by_hand(clip):
    """Four images along the axes, of classes 0, 0, 1 and 2."""
    labels = torch.tensor([0, 0, 1, 2])
    method, t = prepared(LPPlusPlus, clip, bank_of(Features(torch.eye(16)[:4]), labels), steps=0), texts(clip)
    expected = torch.zeros(3, 16)
    expected[0, 0] = expected[0, 1] = expected[1, 2] = expected[2, 3] = 1.0
    assert torch.equal(method.prototypes, expected)
    shots, similarities = 4 / 3, [t[0, 0] + t[0, 1], t[1, 2], t[2, 3]]
    alpha = (250.0 / shots * sum(similarities) / 3).item()
    assert method.blending.tolist() == pytest.approx([alpha] * 3, rel=1e-5)
    x = torch.zeros(1, 16)
    x[0, 0], x[0, 2] = 0.6, 0.8
    logits = [[0.6 + alpha * (0.6 * t[0, 0] + 0.8 * t[0, 2]), 0.8 + alpha * (0.6 * t[1, 0] + 0.8 * t[1, 2]),
               alpha * (0.6 * t[2, 0] + 0.8 * t[2, 2])]]
    found = method.logits(Features(x), method.class_features(clip))
    torch.testing.assert_close(found, torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_ten_steps_of_the_prototypes_then_one_of_the_blending(clip):
    """Against the loss's own gradient and step sizes written out in their definition."""
    bank = made_bank(clip, CLASSES, LABELS, text=1.0)
    x, t = features_of(bank).pooled.double(), texts(clip).double()
    start = prepared(LPPlusPlus, clip, bank, steps=0)
    w, alpha = (value.double().clone().requires_grad_() for value in (start.prototypes, start.blending))
    w_step = 2 * 24 / torch.linalg.eigvalsh(x.T @ x).max()
    alpha_step = 2 * 24 / max(sum((x[i] @ t[k]) ** 2 for i in range(24)) for k in range(3))
    for step in range(1, 21):
        gradient, = torch.autograd.grad(F.cross_entropy(x @ w.T + alpha * (x @ t.T), LABELS), w)
        w = (w - w_step * gradient).detach().requires_grad_()
        if step % 10 == 0:
            gradient, = torch.autograd.grad(F.cross_entropy(x @ w.T + alpha * (x @ t.T), LABELS), alpha)
            alpha = (alpha - alpha_step * gradient).detach().requires_grad_()
    method = prepared(LPPlusPlus, clip, bank, steps=20)
    torch.testing.assert_close(method.prototypes.double(), w.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.blending.double(), alpha.detach(), rtol=1e-4, atol=1e-4)
    assert method.blending.unique().numel() == 3, "one for each class"


def test_no_step_raises_the_loss(clip):
    bank = bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0)), LABELS)    # shows another's text
    losses = [loss(prepared(LPPlusPlus, clip, bank, steps=steps), clip, bank) for steps in (*range(25), 300)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 0.3 * losses[0]
    method = prepared(LPPlusPlus, clip, bank)
    assert (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean() > 0.9
    assert torch.equal(method.zero_shot.weights, texts(clip)), "the text stays as it is"


def test_nothing_is_trained_by_steps_of_a_recipe(clip):
    method = LPPlusPlus(clip, CLASSES)
    assert method.recipe.epochs == 0
    assert not list(method.parameters())
    assert method.prompts == "names"


def test_bad_options_are_told(clip):
    with pytest.raises(UserError, match="steps must be at least 0, found -1"):
        LPPlusPlus(clip, CLASSES, steps=-1)


def test_the_prototypes_may_read_another_feature_than_the_text(clip):
    bank = made_bank(clip, CLASSES, LABELS, text=1.0)
    method = prepared(LPPlusPlus, clip, bank, inputs="pooled", scaling="root_l2", steps=20)
    plain = prepared(LPPlusPlus, clip, bank, steps=20)
    x = features_of(bank)
    root = F.normalize(x.pooled.abs().sqrt() * x.pooled.sign(), dim=1)
    expected = root @ method.prototypes.T + method.blending * (x.pooled @ texts(clip).T)
    found = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain.logits(x, plain.class_features(clip))).abs().max() > 0.1
