import logging
from functools import partial
from math import exp

import banks
import pytest
import torch
import torch.nn.functional as F
from banks import bank_of, features_of, made_bank

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import DCLIP, ZPE, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text

TEMPLATES = ("a photo of a {}.", "two {} in the house.", "a {} with red wing.")
CLASSES = class_text(("bird", "dog"), templates=TEMPLATES)
LABELS = torch.arange(2).repeat(6)
prepared = partial(banks.prepared, classes=CLASSES)


@pytest.fixture(scope="module")
def bank(clip):
    return made_bank(clip, CLASSES, LABELS, text=1.0)


def test_weights_by_hand(clip, monkeypatch):
    """Two images and two classes along axes; the first template tells them apart, the second says the same of both.

    First: logits 10 and 0 of the one, 0 and 10 of the other image; means 5 and 5; maxima of 5 and 5: score 5.
    Second: logits 8 and 2 of both; means 8 and 2; maxima of 0: score 0, however large the logits.
    """
    axes = torch.eye(16)
    apart, alike = axes[:2], torch.stack([0.8 * (axes[0] + axes[1]), 0.2 * (axes[0] + axes[1])])
    table = {"a bird": apart[0], "a dog": apart[1], "the bird": alike[0], "the dog": alike[1]}
    monkeypatch.setattr(clip, "encode_text", lambda texts: torch.stack([table[text] for text in texts]))
    method = ZPE(clip, class_text(("bird", "dog"), templates=("a {}", "the {}")), temperature=2.0)
    method.zero_shot.logit_scale = torch.tensor(10.0)
    method.prepare(clip, bank_of(Features(axes[:2]), torch.tensor([0, 0])))    # the labels do not matter
    first = 1 / (1 + exp(-5 / 2))
    assert method.template_weights.tolist() == pytest.approx([first, 1 - first], rel=1e-5)
    x = F.normalize(torch.arange(1.0, 17.0), dim=0)[None]
    logits = [10 * x @ sentences.T for sentences in (apart, alike)]
    mixed = first * logits[0] + (1 - first) * logits[1]
    torch.testing.assert_close(method.logits(Features(x), method.class_features(clip)), mixed)


def test_labels_are_not_read(clip, bank):
    other = bank_of(features_of(bank), 1 - LABELS)
    assert torch.equal(prepared(ZPE, clip, other).template_weights, prepared(ZPE, clip, bank).template_weights)


def test_a_template_that_is_near_to_everything_does_not_count_for_more(clip, bank):
    """What is taken away is the mean of each prompt, so that adding a constant changes nothing."""
    method, zero_shot = prepared(ZPE, clip, bank), prepared(ZeroShot, clip)
    x = features_of(bank).pooled
    prompts = clip.encode_text(["a photo of a bird.", "a photo of a dog."])
    logits = clip.logit_scale * x @ prompts.T                                              # (n, c)
    score = method._score(x, prompts)
    for shift in (0.0, 3.0):
        shifted = logits + torch.tensor([shift, 2 * shift])
        assert (shifted - shifted.mean(dim=0)).amax(dim=1).mean().item() == pytest.approx(score.item(), abs=1e-4)
    assert method.template_weights.sum().item() == pytest.approx(1.0)
    assert method.template_weights.unique().numel() == 3
    assert not torch.allclose(method.zero_shot.weights, zero_shot.weights, atol=1e-4)


def test_at_a_high_temperature_all_templates_count_the_same(clip, bank):
    even, scores = prepared(ZPE, clip, bank, temperature=1e6), prepared(DCLIP, clip)
    torch.testing.assert_close(probabilities(even, clip, bank), probabilities(scores, clip, bank))


def test_one_template_is_zero_shot_and_says_so(clip, bank, caplog):
    classes = class_text(("bird", "dog"))
    with caplog.at_level(logging.WARNING):
        method = prepared(ZPE, clip, bank, classes=classes)
    assert "there is only one: this equals zero_shot; give several, such as templates='ensemble'" in caplog.text
    zero_shot = prepared(ZeroShot, clip, classes=classes)
    torch.testing.assert_close(probabilities(method, clip, bank), probabilities(zero_shot, clip, bank))


def test_sentences_that_are_no_templates_are_told(clip):
    described = class_text(("bird", "dog"), descriptions={"bird": ["a bird.", "the bird."], "dog": ["a dog.", "dog."]})
    with pytest.raises(UserError, match="descriptions differ between classes: leave descriptions out .*method='dclip'"):
        ZPE(clip, described)


def test_new_classes_come_in_the_same_templates(clip, bank):
    method = prepared(ZPE, clip, bank)
    turned = method.for_classes(clip, class_text(("cat", "dog", "bird"), templates=TEMPLATES))
    torch.testing.assert_close(turned.class_features(clip)[1:], method.class_features(clip).flip(0))
    with pytest.raises(UserError, match="weights of 3 templates, the new classes have 1: give them the same"):
        method.for_classes(clip, class_text(("cat", "dog")))


def test_bad_options_are_told(clip):
    with pytest.raises(UserError, match="temperature must be above 0, found 0"):
        ZPE(clip, CLASSES, temperature=0.0)
