from math import exp

import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import ProKeR, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.methods.proker import BETAS, RIDGES, SHARPNESS, gaussian_kernel, ridge_duals


def test_the_kernel_is_gaussian_in_the_distance():
    x = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    y = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    torch.testing.assert_close(gaussian_kernel(x, y, 3.0), torch.exp(-1.5 * torch.cdist(x, y).square()))


def test_two_images_by_hand():
    """At an angle of 60 degrees: K = [[1, k], [k, 1]], k = exp(-1), and its inverse with the ridge by Cramer's rule."""
    kernel = gaussian_kernel(*[torch.tensor([[1.0, 0.0], [0.5, 0.75 ** 0.5]]).double()] * 2, 2.0)
    errors = torch.tensor([[0.6, -0.6], [-0.2, 0.2]]).double()
    k, whole = exp(-1), 1.5
    determinant = whole ** 2 - k ** 2
    expected = [[(whole * 0.6 + k * 0.2) / determinant], [(-whole * 0.2 - k * 0.6) / determinant]]
    duals = ridge_duals(kernel, errors, 0.5)
    torch.testing.assert_close(duals, torch.tensor(expected).double() * torch.tensor([1.0, -1.0]))


def test_the_whole_is_the_minimum_of_the_papers_objective(clip):
    """No closed form: descent on |Y - p - K a|^2 + lambda a^T K a, whose minimum the duals must be."""
    support, x = made_bank(clip, CLASSES, LABELS, text=1.0), features_of(made_bank(clip, CLASSES, LABELS, seed=5))
    method, zero_shot = prepared(ProKeR, clip, support, ridge=0.7, beta=2.0), prepared(ZeroShot, clip)
    images, p = features_of(support).pooled.double(), probabilities(zero_shot, clip, support).double()
    kernel = torch.exp(-torch.cdist(images, images).square())
    duals = method.duals.double().requires_grad_()
    objective = ((F.one_hot(LABELS, 3) - p - kernel @ duals).square().sum()
                 + 0.7 * torch.einsum("nc,nm,mc->", duals, kernel, duals))
    slope, = torch.autograd.grad(objective, duals)
    assert objective < (F.one_hot(LABELS, 3) - p).square().sum(), "better than zero-shot"
    assert slope.abs().max() < 1e-4
    near = torch.exp(-torch.cdist(x.pooled.double(), images).square())
    expected = zero_shot.logits(x, zero_shot.weights).softmax(dim=1) + near @ duals.detach()
    torch.testing.assert_close(method.logits(x, method.class_features(clip)).double(), SHARPNESS * expected,
                               rtol=1e-3, atol=1e-4)


def test_labels_that_zero_shot_cannot_know_are_learned(clip):
    """Each class shows the next one's text."""
    def wrong(seed):
        return bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=2.0, seed=seed)), LABELS)

    test, method = wrong(1), prepared(ProKeR, clip, wrong(0))
    assert (probabilities(method, clip, test).argmax(dim=1) == LABELS).float().mean() > 0.9
    assert (probabilities(method.zero_shot, clip, test).argmax(dim=1) == LABELS).float().mean() < 0.1


def test_a_large_ridge_leaves_zero_shot(clip):
    support = made_bank(clip, CLASSES, LABELS, text=1.0)
    method = prepared(ProKeR, clip, support, ridge=1e9)
    x = features_of(made_bank(clip, CLASSES, LABELS, seed=5))
    expected = SHARPNESS * method.zero_shot.logits(x, method.zero_shot.weights).softmax(dim=1)
    torch.testing.assert_close(method.logits(x, method.class_features(clip)), expected)


def test_both_strengths_are_chosen_on_validation_images(clip):
    support = bank_of(features_of(made_bank(clip, CLASSES, LABELS, text=1.0)), (LABELS + 1) % 3)    # all mislabelled
    val = made_bank(clip, CLASSES, LABELS, text=1.0, seed=3)
    fixed, chosen = prepared(ProKeR, clip, support), prepared(ProKeR, clip, support, val)
    assert (fixed.beta.item(), fixed.ridge) == (3.0, 0.3)
    assert chosen.beta.item() in BETAS

    def score(method):
        said = method.logits(features_of(val), method.class_features(clip)) / SHARPNESS
        right = (said.argmax(dim=1) == LABELS).sum().item()
        return right, -round((said - F.one_hot(LABELS, 3)).square().sum().item(), 3)

    every = {(beta, ridge): score(prepared(ProKeR, clip, support, beta=beta, ridge=ridge))
             for beta in BETAS for ridge in RIDGES}
    assert every[chosen.beta.item(), chosen.ridge] == max(every.values())
    assert max(every.values()) > every[3.0, 0.3]
    fold = ProKeR(clip, CLASSES)
    fold.settle(chosen)
    fold.prepare(clip, support, val=support)
    assert (fold.beta, fold.ridge) == (chosen.beta, chosen.ridge), "a fold takes over what was chosen"


def test_saved_with_the_images(clip, tmp_path):
    bank = made_bank(clip, CLASSES, LABELS, text=1.0)
    method = prepared(ProKeR, clip, bank, bank)
    model = Classifier(clip, method, ModelHeader.of(clip, ProKeR, CLASSES))
    loaded = Classifier.load(model.save(tmp_path), clip).method
    assert loaded.keys.shape == (24, clip.embed_dim)
    assert torch.equal(probabilities(loaded, clip, bank), probabilities(method, clip, bank))


def test_far_from_all_images_it_is_zero_shot_also_where_a_class_has_none(clip):
    support = made_bank(clip, CLASSES, torch.arange(2).repeat(4), text=2.0)
    method = prepared(ProKeR, clip, support, beta=30.0)
    far = Features(F.normalize(-features_of(support).pooled.mean(dim=0, keepdim=True), dim=1))
    expected = SHARPNESS * method.zero_shot.logits(far, method.zero_shot.weights).softmax(dim=1)
    torch.testing.assert_close(method.logits(far, method.class_features(clip)), expected)
    near = method.logits(features_of(support), method.class_features(clip))
    assert near.isfinite().all()
    assert (near.argmax(dim=1) == support.labels).all()


@pytest.mark.parametrize("name", ["ridge", "beta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_bad_options_are_told(clip, name, value):
    with pytest.raises(UserError, match=f"{name} must be above 0, found {value}"):
        ProKeR(clip, CLASSES, **{name: value})
