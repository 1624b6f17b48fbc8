from math import exp

import torch
import torch.nn.functional as F
from banks import CLASSES
from towers import tiny_resnet

from xrvlm.backbones.base import Features
from xrvlm.distributed import seeded
from xrvlm.methods import PLOT, CoOp
from xrvlm.methods.plot import plan, transported_cosine


def made(clip, **options) -> PLOT:
    with seeded(1, "initial weights"):
        return PLOT(clip, CLASSES, **options)


def test_two_positions_and_two_prompts_by_hand():
    """A 2 x 2 plan with equal weights has one free number: a on the diagonal, 1/2 - a beside it; and what the kernel
    fixes is a * a / (1/2 - a)^2 = K_11 K_22 / (K_12 K_21).
    """
    cost = torch.tensor([[0.10, 0.25], [0.30, 0.15]])
    odds = exp(-(0.10 + 0.15 - 0.25 - 0.30) / 0.1)
    a = 0.5 * odds ** 0.5 / (1 + odds ** 0.5)
    expected = torch.tensor([[a, 0.5 - a], [0.5 - a, a]])
    torch.testing.assert_close(plan(cost[None])[0], expected, rtol=0.01, atol=1e-3)
    moved = 2 * a * (1 - (0.10 + 0.15) / 2) + (1 - 2 * a) * (1 - (0.25 + 0.30) / 2)
    assert abs((plan(cost) * (1 - cost)).sum().item() - moved) < 1e-3


def test_cosines_by_hand():
    """Prompts at right angles to one another, and each position on one of them: the plan sends all of it there."""
    axes = torch.eye(4)
    positions, prompts = axes[[0, 1, 0, 1]][None], torch.stack([axes[:2], axes[2:]], dim=1)    # (1, 4, d), (2, 2, d)
    moved = transported_cosine(positions, prompts)
    assert moved.shape == (1, 2)
    wrong = exp(-10) / (1 + exp(-10))        # what softness leaves on the other prompt
    torch.testing.assert_close(moved, torch.tensor([[1 - wrong, 0.0]]), rtol=0, atol=1e-4)


def test_weight_is_shared_out_evenly_where_the_nearest_prompt_would_take_all():
    """What sets transport apart from the best match: a second prompt that nothing is like still gets its half."""
    axes = torch.eye(4)
    moved = transported_cosine(axes[[0, 0]][None], axes[[0, 1]][:, None])
    torch.testing.assert_close(moved, torch.tensor([[0.5]]), rtol=0, atol=1e-3)


def test_a_plan_has_the_marginals_it_should():
    cost = torch.rand(5, 7, 4, generator=torch.Generator().manual_seed(1))
    found = plan(cost)
    torch.testing.assert_close(found.sum(dim=1), torch.full((5, 4), 1 / 4))
    torch.testing.assert_close(found.sum(dim=2), torch.full((5, 7), 1 / 7), rtol=0.02, atol=0)
    assert found.min() >= 0
    single = torch.stack([plan(each) for each in cost])
    torch.testing.assert_close(single, found, rtol=1e-5, atol=1e-7, msg="each pair stops on its own")


def test_a_graph_that_cannot_stop_early_finds_the_same_plan(monkeypatch):
    cost = torch.rand(5, 7, 4, generator=torch.Generator().manual_seed(1))
    expected = plan(cost)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(plan(cost), expected)


def test_logits_are_the_scaled_distance_of_the_grid_to_the_prompts(clip):
    method = made(clip, text_parts=3)
    tokens = torch.randn(2, 17, clip.embed_dim, generator=torch.Generator().manual_seed(2))    # a class token in front
    x = Features(torch.zeros(2, clip.embed_dim), tokens)
    prompts = method.class_features(clip).detach()
    assert prompts.shape == (3, 3, clip.embed_dim)
    logits = method.logits(x, prompts)
    for image in range(2):
        for label in range(3):
            cost = 1 - F.normalize(tokens[image, 1:], dim=1) @ prompts[:, label].T         # (p, g)
            distance = (plan(cost) * cost).sum()
            torch.testing.assert_close(logits[image, label], clip.logit_scale * (1 - distance), rtol=1e-4, atol=1e-4)


def test_the_gradient_does_not_pass_through_the_plan(clip):
    positions = F.normalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    prompts = F.normalize(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(4)), dim=-1).requires_grad_()
    transported_cosine(positions, prompts).sum().backward()
    cosine = torch.einsum("bpd,gcd->bcpg", positions, prompts.detach())
    fixed = torch.einsum("bcpg,bpd->gcd", plan(1 - cosine), positions)
    torch.testing.assert_close(prompts.grad, fixed)


def test_many_classes_are_the_same_as_few_at_a_time(clip, monkeypatch):
    method = made(clip)
    x = Features(torch.zeros(2, clip.embed_dim), torch.randn(2, 17, clip.embed_dim))
    prompts = method.class_features(clip).detach()
    whole = method.logits(x, prompts)
    monkeypatch.setattr("xrvlm.methods.plot.CLASSES_AT_ONCE", 2)
    torch.testing.assert_close(method.logits(x, prompts), whole)


def test_defaults_are_four_prompts_of_coops_context(clip):
    method, coop = made(clip), CoOp(clip, CLASSES)
    assert method.context.vectors.shape == (4, *coop.context.vectors.shape[1:])
    assert len(method.context.vectors.flatten(1).unique(dim=0)) == 4, "each its own start"
    own, other = vars(method.recipe), vars(coop.recipe)
    assert {name: value for name, value in own.items() if name != "name"} == {
        name: value for name, value in other.items() if name != "name"}


def test_a_resnet_has_positions_too():
    clip = tiny_resnet()
    size = clip.transform.image_size
    method = made(clip)
    x = clip.encode_image(torch.randn(2, 3, size, size), method.needs)
    assert method.logits(x, method.class_features(clip)).isfinite().all()
