from math import exp

import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.features.bank import FeatureBank
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import TipAdapter, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.training.fit import fit

LABELS = torch.tensor([0, 0, 1, 2, 2])


@pytest.fixture(scope="module")
def bank(clip) -> FeatureBank:
    """Five training images at right angles to one another."""
    return bank_of(Features(torch.eye(clip.embed_dim)[:5]), LABELS)


def votes(method, clip, x: Features) -> torch.Tensor:
    """What the training images add to zero-shot."""
    zero_shot = ZeroShot(clip, CLASSES)
    zero_shot.prepare(clip, None)
    return (method.logits(x, method.class_features(clip)) - zero_shot.logits(x, zero_shot.weights)).detach()


def test_a_training_image_votes_fully_and_the_others_by_their_distance(clip, bank):
    far = exp(-5.5)                                          # of a key at a right angle, beta 5.5
    expected = [[1 + far, far, 2 * far], [1 + far, far, 2 * far], [2 * far, 1, 2 * far],
                [2 * far, far, 1 + far], [2 * far, far, 1 + far]]
    found = votes(prepared(TipAdapter, clip, bank), clip, features_of(bank))
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


def test_alpha_and_beta_by_hand(clip, bank):
    cosines = torch.zeros(1, clip.embed_dim)
    cosines[0, :3] = torch.tensor([0.6, 0.0, -0.8])          # of the first three keys; unit norm
    near, right, away = (exp(-2.0 * (1 - cosine)) for cosine in (0.6, 0.0, -0.8))
    expected = 3.0 * torch.tensor([[near + right, away, 2 * right]])
    method = prepared(TipAdapter, clip, bank, alpha=3.0, beta=2.0)
    assert torch.allclose(votes(method, clip, Features(cosines)), expected, atol=1e-5)


def test_without_weight_it_is_zero_shot(clip, bank):
    assert votes(prepared(TipAdapter, clip, bank, alpha=0.0), clip, features_of(bank)).abs().max() == 0


def test_the_keys_are_of_unit_norm_and_of_the_evaluation_view(clip):
    pooled = torch.randn(4, 3, clip.embed_dim)               # an evaluation view and two augmented ones
    bank = FeatureBank([{"pooled": pooled}], 4, ("a", "b", "c", "d"), torch.tensor([2, 0, 1, 0]), views=2, seed=1)
    method = prepared(TipAdapter, clip, bank)
    assert torch.allclose(method.keys, F.normalize(pooled[:, 0], dim=-1), atol=1e-6)
    assert method.votes.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_the_fine_tuned_one_starts_as_the_other(clip):
    bank = made_bank(clip, CLASSES, torch.arange(3).repeat(8), text=0.5)
    still, trained = prepared(TipAdapter, clip, bank), prepared(TipAdapter, clip, bank, trainable=True)
    assert torch.equal(probabilities(still, clip, bank), probabilities(trained, clip, bank))
    assert [name for name, value in trained.named_parameters() if value.requires_grad] == ["keys"]
    assert not any(value.requires_grad for value in still.parameters())
    assert (still.label, trained.label) == ("Tip-Adapter", "Tip-Adapter-F")
    assert (still.recipe.epochs, trained.recipe.epochs) == (0, 20)
    before = trained.keys.detach().clone()
    losses = fit(trained, clip, bank, trained.recipe, seed=1).losses
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert not torch.equal(trained.keys, before)
    assert torch.equal(still.keys, before), "the keys of one are not those of the other"


def test_the_number_of_training_images_comes_from_the_file(clip, bank, tmp_path):
    method = prepared(TipAdapter, clip, bank)
    path = Classifier(clip, method, ModelHeader.of(clip, TipAdapter, CLASSES)).save(tmp_path)
    loaded = Classifier.load(path, clip).method
    assert loaded.keys.shape == (5, clip.embed_dim)
    x = features_of(made_bank(clip, CLASSES, LABELS))
    assert torch.equal(loaded.logits(x, loaded.class_features(clip)), method.logits(x, method.class_features(clip)))


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"beta": 0.0}, {"beta": -1.0}])
def test_bad_options_are_told(clip, options):
    with pytest.raises(UserError, match=r"alpha must be at least 0 and beta above 0, found "):
        TipAdapter(clip, CLASSES, **options)
