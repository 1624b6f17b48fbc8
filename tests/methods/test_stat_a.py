import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import StatA, TransCLIP, trans_clip
from xrvlm.text.class_text import class_text


def images_around(axes, count, *, seed=0, spread=0.3) -> torch.Tensor:
    noise = torch.randn(count, axes.shape[1], generator=torch.Generator().manual_seed(seed)).to(axes)
    return F.normalize(axes.repeat(count // len(axes), 1) + spread * noise, dim=1)


def test_classes_are_the_means_of_images_and_text_by_hand(clip):
    method = prepared(StatA, clip, strength=2.0)
    width = clip.embed_dim
    method.seen = F.pad(torch.tensor([[0.6, 0.8], [0.8, -0.6]]), (0, width - 2))
    method.zero_shot.weights = F.pad(torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]), (0, width - 2))
    method.anchor = torch.full((width,), 0.25)
    method._move_classes(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]) / 2)    # shares, by the number of images
    first = ((0.6 + 0.4) / 3.5, (0.8 - 0.3 + 2.0) / 3.5)
    second = ((0.4 + 2.0) / 2.5, -0.3 / 2.5)
    centres = torch.tensor([first, second, (-1.0, 0.0)])
    torch.testing.assert_close(method.centres, F.pad(centres, (0, width - 2)))
    squares = ((0.6 - first[0]) ** 2 + 0.5 * (0.8 - first[0]) ** 2 + 0.5 * (0.8 - second[0]) ** 2
               + 2 * (3 * 0.25 + first[0] ** 2 + (second[0] - 1) ** 2))
    assert method.variance[0].item() == pytest.approx(squares / (2 + 2 * 3), rel=1e-5)
    torch.testing.assert_close(method.variance[2:], torch.full((width - 2,), 2 * 3 * 0.25 / 8))


def test_every_update_is_a_stationary_point_of_the_objective(clip):
    """The gradients are autograd's, the anchor torch's divergence: nothing of the updates' algebra is used."""
    method = prepared(StatA, clip, strength=3.0, text_weight=0.5).double()
    text = method.zero_shot.weights
    test = images_around(torch.eye(3, clip.embed_dim, dtype=torch.double), 24)
    method.seen = test
    values, near = method._graph()
    method._fit(test, test[:0], method.shares[:0], 1.0, (values, near))
    for _ in range(200):                 # with fixed classes, until the assignments no longer move
        votes = trans_clip._votes(method.shares, values, near)
        prior = method.zero_shot.logits(Features(test), text).log_softmax(dim=1)
        method.shares = method._log_shares(0.5 * prior, test, votes).softmax(dim=1)
    w = torch.zeros(24, 24, dtype=torch.double).scatter_(1, near, values)

    def gaussians(centres, variance):
        return torch.distributions.Independent(torch.distributions.Normal(centres, variance.sqrt()), 1)

    def objective(z, centres, variance):
        density = gaussians(centres, variance).log_prob(test[:, None])                     # (n, c)
        anchors = gaussians(text, method.anchor.expand_as(text))
        apart = torch.distributions.kl_divergence(anchors, gaussians(centres, variance.expand_as(text))).sum()
        return (-(z * density).sum() / 50 - (w * (z @ z.T)).sum() / 6 + (z * (z.log() - 0.5 * prior)).sum()
                + 3.0 * apart / 50)

    slope, = torch.autograd.grad(objective(method.shares.requires_grad_(), method.centres, method.variance),
                                 method.shares)
    torch.testing.assert_close(slope, slope.mean(dim=1, keepdim=True).expand_as(slope), rtol=0, atol=1e-9)
    z = method.shares.detach()
    method._move_classes(z / 24)
    centres, variance = method.centres.clone().requires_grad_(), method.variance.clone().requires_grad_()
    slopes = torch.autograd.grad(objective(z, centres, variance), (centres, variance))
    assert all(slope.abs().max() < 1e-9 for slope in slopes)


def test_it_starts_at_the_text_with_the_variance_around_it(clip):
    method = prepared(StatA, clip)
    images, chances = images_around(torch.eye(3, clip.embed_dim), 6), torch.rand(6, 3).softmax(dim=1)
    method.seen = images
    method._start(images, images[:0], chances[:0], chances)
    assert torch.equal(method.centres, method.zero_shot.weights)
    apart = (images[:, None] - method.centres).square()                                    # (n, c, d)
    torch.testing.assert_close(method.anchor, torch.einsum("nc,ncd->d", chances, apart) / 6)
    assert torch.equal(method.variance, method.anchor)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_of_the_classes_among_the_images_are_no_harm_as_they_are_to_trans_clip(clip, seed):
    """2 of 20 classes, in many dimensions; photos share one direction and sentences another."""
    names, width = class_text([f"bird {number}" for number in range(20)]), 256
    draws = torch.Generator().manual_seed(seed)
    axes, labels = torch.eye(width), torch.arange(2).repeat(15)
    text = axes[40] + 0.5 * axes[:20] + 0.04 * torch.randn(20, width, generator=draws)
    images = axes[41] + 0.5 * axes[labels] + 0.06 * torch.randn(30, width, generator=draws)
    text, x = F.normalize(text, dim=1), Features(F.normalize(images, dim=1))

    def right(kind, **options) -> float:
        method = prepared(kind, clip, classes=names, **options)
        method.zero_shot.weights, method.zero_shot.logit_scale = text, torch.tensor(30.0)
        method.centres, method.variance, method.seen = text, torch.ones(width), text[:0]
        method.transduce(clip, x, None)
        return (method.shares.argmax(dim=1) == labels).float().mean().item()

    zero_shot = ((x.pooled @ text.T).argmax(dim=1) == labels).float().mean().item()
    assert right(TransCLIP, labelled=False) < zero_shot - 0.2
    assert right(StatA) >= zero_shot


def test_it_uses_no_label(clip):
    method = StatA(clip, CLASSES)
    assert (method.learns, method.transductive, method.label, method.learned_parameters) == (False, True, "StatA", 0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_bad_options_are_told(clip, value):
    with pytest.raises(UserError, match=f"strength must be above 0 .*found {value}"):
        StatA(clip, CLASSES, strength=value)
