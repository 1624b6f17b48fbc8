"""The methods that add to zero-shot, where its names mislead."""

import pytest
import torch
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared
from towers import tiny_vit

from xrvlm.methods import GDA, ResidualProbe, TipAdapter, ZeroShot
from xrvlm.methods.base import probabilities

ADDING = pytest.mark.parametrize("kind", [GDA, ResidualProbe, TipAdapter])


@pytest.fixture(scope="module")
def clip():
    clip = tiny_vit()
    clip.logit_scale.fill_(5000.0)       # sure of itself: the texts of this tower are much alike
    return clip


def misled(clip, seed=0):
    """Images that look, to zero-shot, like the class after theirs."""
    return bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0, seed=seed)), LABELS)


def accuracy(method, clip, bank) -> float:
    return (probabilities(method, clip, bank).argmax(dim=1) == bank.labels).float().mean().item()


@ADDING
def test_a_prior_that_misleads_is_given_no_weight(clip, kind):
    assert accuracy(prepared(ZeroShot, clip), clip, misled(clip)) < 0.1
    method = prepared(kind, clip, misled(clip), fit_prior=True)
    assert method.prior_weight < 0.05
    unseen = misled(clip, seed=1)
    if kind is not ResidualProbe:        # it is trained by steps
        assert accuracy(method, clip, unseen) > 0.9
        assert accuracy(prepared(kind, clip, misled(clip), fit_prior=False), clip, unseen) < 0.5
    x = features_of(unseen)
    weighted = method.prior(x, method.class_features(clip))
    assert weighted.abs().max() < 0.05 * method.zero_shot.logits(x, method.zero_shot.weights).abs().max()


@ADDING
def test_a_prior_that_helps_keeps_its_weight(clip, kind):
    helped = made_bank(clip, CLASSES, LABELS, text=1.0)
    assert prepared(kind, clip, helped, fit_prior=True).prior_weight > 0.3


@ADDING
def test_without_the_option_it_counts_as_it_is(clip, kind):
    x = features_of(misled(clip))
    method = prepared(kind, clip, misled(clip), fit_prior=False)
    assert "prior_weight" not in method.state_dict()
    assert torch.equal(method.prior(x, method.class_features(clip)),
                       method.zero_shot.logits(x, method.zero_shot.weights))
