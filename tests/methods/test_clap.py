import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.methods import CLAP, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.training.fit import fit

SENTENCES = [prompts[0] for prompts in CLASSES.prompts]


@pytest.fixture(scope="module")
def bank(clip):
    return made_bank(clip, CLASSES, LABELS, text=1.0)


def test_it_starts_as_zero_shot(clip, bank):
    method, zero_shot = prepared(CLAP, clip, bank), prepared(ZeroShot, clip)
    torch.testing.assert_close(F.normalize(method.prototypes.detach(), dim=-1), zero_shot.weights)
    torch.testing.assert_close(method.prototypes.detach().norm(dim=-1), clip.text_lengths(SENTENCES))
    torch.testing.assert_close(probabilities(method, clip, bank), probabilities(zero_shot, clip, bank))
    assert method.penalty().item() == 0
    assert method.prompts == "names"


def test_a_multiplier_is_what_zero_shot_gives_its_class_on_average(clip):
    """Three images of the first class, one of the last, none of the second; zero-shot is wrong on some."""
    labels = torch.tensor([0, 2, 0, 0])
    bank = made_bank(clip, CLASSES, labels)
    given = probabilities(prepared(ZeroShot, clip), clip, bank)                            # (n, c)
    first = (given[0, 0] + given[2, 0] + given[3, 0]) / 3
    assert (given.argmax(dim=1) != labels).any()
    expected = torch.stack([first, torch.tensor(1.0), given[1, 2]])
    torch.testing.assert_close(prepared(CLAP, clip, bank).multipliers, expected)


def test_the_loss_by_hand(clip, bank):
    method = prepared(CLAP, clip, bank)
    with torch.no_grad():
        method.start.copy_(torch.eye(16)[:3])
        method.prototypes.copy_(torch.eye(16)[:3])
        method.prototypes[0, 0] = 3.0                        # two away from where it starts, in the same direction
        method.prototypes[2, 4] = 0.5                        # a half, at a right angle
        method.multipliers.copy_(torch.tensor([0.3, 0.9, 0.6]))
    penalty = (0.3 * 2.0 ** 2 + 0.9 * 0.0 + 0.6 * 0.5 ** 2) / 3
    assert method.penalty().item() == pytest.approx(penalty)
    x = Features(F.normalize(torch.arange(32.0).view(2, 16), dim=-1))
    third = (x.pooled[:, 2] + 0.5 * x.pooled[:, 4]) / 1.25 ** 0.5
    logits = clip.logit_scale * torch.stack([x.pooled[:, 0], x.pooled[:, 1], third], dim=1)
    y = torch.tensor([2, 1])
    expected = -logits.log_softmax(dim=1)[[0, 1], y].mean() + penalty
    assert method.loss(x, y, clip).item() == pytest.approx(expected.item(), rel=1e-5)
    smoothed = F.cross_entropy(logits, y, label_smoothing=0.2) + penalty
    assert method.loss(x, y, clip, label_smoothing=0.2).item() == pytest.approx(smoothed.item(), rel=1e-5)


def test_what_zero_shot_knows_is_held_and_what_it_confuses_goes(clip):
    """Each class shows the next one's text: at multipliers near 0 training goes there, at large ones it may not."""
    wrong = bank_of(features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0)), LABELS)
    free, held = prepared(CLAP, clip, wrong), prepared(CLAP, clip, wrong)
    assert free.multipliers.max() < 0.5
    held.multipliers.fill_(100.0)
    recipe = free.recipe
    fit(free, clip, wrong, recipe, seed=1)
    assert (probabilities(free, clip, wrong).argmax(dim=1) == LABELS).float().mean() > 0.9
    start = free.start
    for _ in range(50):      # plain steps: the recipe's would be too long for so steep a penalty
        held.zero_grad()
        held.loss(features_of(wrong), LABELS, clip).backward()
        with torch.no_grad():
            held.prototypes -= 0.01 * held.prototypes.grad
    assert (held.prototypes - start).norm() < 0.2 * (free.prototypes - start).norm()


def test_only_the_prototypes_are_learned_and_the_multipliers_are_kept(clip, bank):
    method = prepared(CLAP, clip, bank)
    assert [name for name, value in method.named_parameters() if value.requires_grad] == ["prototypes"]
    before = method.multipliers.clone()
    fit(method, clip, bank, method.recipe, seed=1)
    assert torch.equal(method.multipliers, before)
    assert "multipliers" in method.state_dict()
