import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import GDA, ZeroShot
from xrvlm.methods.gda import WEIGHTS, gaussians


def added(method, clip, x: Features) -> torch.Tensor:
    """What the Gaussians add to zero-shot."""
    zero_shot = prepared(ZeroShot, clip)
    return method.logits(x, method.class_features(clip)) - zero_shot.logits(x, zero_shot.weights)


def test_four_points_in_the_plane_by_hand():
    """Class 0 at (0, 1) and (2, 1), class 1 at (4, 2) and (4, 4): scatter diag(2, 2), S = diag(2, 2) / 3, tr S = 4 / 3.

    P = 2 (3 S + 4/3 I)^-1 = 2 / (2 + 4/3) I = 0.6 I.
    """
    points = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 2.0], [4.0, 4.0]])
    weight, bias = gaussians(points, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(weight, 0.6 * torch.tensor([[1.0, 1.0], [4.0, 3.0]]).double())
    torch.testing.assert_close(bias, -0.3 * torch.tensor([1.0 + 1.0, 16.0 + 9.0]).double())


def test_a_covariance_that_is_not_round_by_hand():
    """One class at (-1, 0), (1, 0) and (0, 0) twice: scatter diag(2, 0), S = scatter / 3, tr S = 2 / 3."""
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [5.0, 3.0]])
    weight, bias = gaussians(points, torch.tensor([0, 0, 0, 0, 1]), 2)
    ridge = 2.0 / 4                      # n - 1 = 4 with the second class's one image, which stands on its mean
    precision = [2 / (2.0 + ridge), 2 / (0.0 + ridge)]
    expected = torch.tensor([[0.0, 0.0], [5.0 * precision[0], 3.0 * precision[1]]]).double()
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(bias, torch.tensor([0.0, -(25.0 * precision[0] + 9.0 * precision[1]) / 2]).double())


def test_it_is_the_papers_inverse_of_the_covariance(clip):
    bank = made_bank(clip, CLASSES, LABELS, text=1.0)
    x = features_of(bank).pooled.double()
    means = torch.stack([x[k::3].mean(dim=0) for k in range(3)])
    covariance = (x - means[LABELS]).T.cov()
    precision = 16 * torch.linalg.pinv(23 * covariance + covariance.trace() * torch.eye(16).double())
    weight, bias = gaussians(x, LABELS, 3)
    torch.testing.assert_close(weight, means @ precision)
    torch.testing.assert_close(bias, -torch.einsum("kd,de,ke->k", means, precision, means) / 2)


def test_the_logits_are_zero_shots_and_a_share_of_the_gaussians(clip):
    bank = made_bank(clip, CLASSES, LABELS, text=1.0)
    weight, bias = gaussians(features_of(bank).pooled, LABELS, 3)
    x = features_of(made_bank(clip, CLASSES, LABELS, seed=5))
    expected = 0.25 * (x.pooled.double() @ weight.T + bias)
    found = added(prepared(GDA, clip, bank, alpha=0.25), clip, x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    assert added(prepared(GDA, clip, bank, alpha=0.0), clip, x).abs().max() == 0


def test_with_one_image_a_class_the_nearest_one_wins(clip):
    bank = made_bank(clip, CLASSES, torch.arange(3), text=1.0)
    images = features_of(bank).pooled
    x = Features(F.normalize(images + 0.1 * torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1))
    gaussian = added(prepared(GDA, clip, bank, alpha=1.0), clip, x)
    distance = torch.cdist(x.pooled, images).square()                                      # (b, c)
    spread = (images - images.mean(dim=0)).square().sum() / 2
    differences = gaussian - gaussian[:, :1]
    torch.testing.assert_close(differences, -0.5 * 16 / spread * (distance - distance[:, :1]), rtol=1e-3, atol=1e-2)


def test_a_class_without_images_and_images_that_are_all_the_same_stay_finite():
    points = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 2.0]])
    weight, bias = gaussians(points, torch.tensor([0, 0, 2]), 3)
    assert weight.isfinite().all()
    torch.testing.assert_close(bias[1], -(weight[1] * points.mean(dim=0)).sum() / 2)
    for count in (1, 3):
        weight, bias = gaussians(torch.ones(count, 2), torch.zeros(count, dtype=torch.long), 2)
        assert weight.isfinite().all()
        assert bias.isfinite().all()


def test_the_weight_is_chosen_on_validation_images(clip):
    """Each class shows the next one's text: zero-shot is wrong, so that the Gaussians must count for much."""
    def wrong(seed):
        return bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0, seed=seed)), LABELS)

    right = made_bank(clip, CLASSES, LABELS, text=4.0)
    assert prepared(GDA, clip, wrong(0)).alpha == pytest.approx(0.1)
    chosen = prepared(GDA, clip, wrong(0), wrong(1)).alpha.item()
    assert chosen > 0.001
    assert any(chosen == pytest.approx(weight) for weight in WEIGHTS)
    assert prepared(GDA, clip, wrong(0), right).alpha.item() == pytest.approx(1e-4), "the smallest of equals"


def test_bad_options_are_told(clip):
    with pytest.raises(UserError, match="alpha must be at least 0, found -1"):
        GDA(clip, CLASSES, alpha=-1.0)
