
import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, bank_of, features_of, made_bank
from towers import tiny_vit

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import XRVLMPlus, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.methods.xr_vlm import xr_vlm_plus as module
from xrvlm.methods.xr_vlm.xr_vlm_plus import (
    FOLDS,
    LONE_STRENGTHS,
    PATIENCE,
    STRENGTHS,
    _best_strength,
    _Examples,
)
from xrvlm.methods.zero_shot import PRIOR_PENALTY, fitted_weight
from xrvlm.text.class_text import ClassText, class_text

LABELS, MORE = torch.arange(3).repeat(6), torch.arange(3).repeat(12)
OFTEN_RIGHT = 0.15                       # of `text`: zero-shot is right on half of the images, more or less
RELATE_TO = ("text_and_classes", "text", "classes")


def prepared(clip, bank, val=None, classes=CLASSES, **options) -> XRVLMPlus:
    method = XRVLMPlus(clip, classes, **{"image_parts": 4} | options)
    method.prepare(clip, bank, val=val)
    return method


def zero_shot_logits(clip, x: Features, classes=CLASSES) -> torch.Tensor:
    zero_shot = ZeroShot(clip, classes)
    zero_shot.prepare(clip, None)
    return zero_shot.logits(x, zero_shot.weights)


def logits(method, clip, bank) -> torch.Tensor:
    return method.logits(features_of(bank), method.class_features(clip))


def accuracy(method, clip, bank) -> float:
    return (probabilities(method, clip, bank).argmax(dim=1) == bank.labels).float().mean().item()


# --- where labels do not pay, it is zero-shot ---

@pytest.mark.parametrize("relate_to", RELATE_TO)
def test_where_no_relation_pays_it_is_the_weighted_zero_shot(clip, relate_to):
    bank = made_bank(clip, CLASSES, MORE, text=OFTEN_RIGHT, seed=2)    # the cells say nothing of the class
    method = prepared(clip, bank, relate_to=relate_to)
    assert method.relations.image_space.abs().max() == 0
    assert 1 < method.prior_weight < 20
    prior = method.prior_weight * zero_shot_logits(clip, features_of(bank))
    assert torch.equal(logits(method, clip, bank), prior)


def test_random_labels_leave_the_prior_alone_and_take_its_weight(clip):
    shown = made_bank(clip, CLASSES, LABELS, text=2.0, parts=4.0)
    shuffled = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(3))]
    method = prepared(clip, bank_of(features_of(shown), shuffled))
    assert method.relations.image_space.abs().max() == 0
    assert method.prior_weight < 0.1


def test_the_weight_of_the_prior_makes_the_training_images_likeliest(clip):
    bank = made_bank(clip, CLASSES, MORE, text=OFTEN_RIGHT)
    method = prepared(clip, bank)
    prior = zero_shot_logits(clip, features_of(bank))
    weights = torch.linspace(0, 30, 3001)
    losses = torch.stack([F.cross_entropy(weight * prior, MORE) for weight in weights])
    losses += PRIOR_PENALTY * weights.clamp(min=1).log().square()
    assert 1 < weights[losses.argmin()] < 29
    assert method.prior_weight.item() == pytest.approx(weights[losses.argmin()].item(), rel=0.01)


@pytest.mark.parametrize("relate_to", RELATE_TO)
def test_where_labels_pay_it_learns_what_the_text_does_not_say(clip, relate_to):
    bank = made_bank(clip, CLASSES, LABELS, parts=8.0)
    unseen = made_bank(clip, CLASSES, torch.arange(3).repeat(20), parts=8.0, seed=1)
    method = prepared(clip, bank, relate_to=relate_to)
    assert method.relations.image_space.abs().max() > 0
    zero_shot = ZeroShot(clip, CLASSES)
    zero_shot.prepare(clip, None)
    assert accuracy(zero_shot, clip, unseen) < 0.6
    assert accuracy(method, clip, unseen) > 0.85


# --- one image a class ---

@pytest.mark.parametrize(("labels", "strength"), [((0, 1, 0), LONE_STRENGTHS[0]), ((1, 2, 0), LONE_STRENGTHS[1])])
def test_of_one_image_a_class_the_strength_is_that_of_a_right_or_of_a_wrong_prior(clip, monkeypatch, labels, strength):
    asked = []
    solve = _Examples.solve
    monkeypatch.setattr(_Examples, "solve", lambda self, start, codes, strength: asked.append(strength)
                        or solve(self, start, codes, strength))
    shown = features_of(made_bank(clip, CLASSES, torch.tensor(labels), text=4.0, parts=4.0))
    bank = bank_of(shown, torch.arange(3))
    right = (zero_shot_logits(clip, shown).argmax(dim=1) == bank.labels).sum()
    assert right == (0 if labels[0] else 2)
    method = prepared(clip, bank)
    assert asked == [strength]
    assert method.relations.image_space.abs().max() > 0
    assert accuracy(method, clip, bank) >= right / 3


def test_a_prior_that_is_always_right_keeps_its_weight_near_the_towers_own():
    labels = torch.arange(3).repeat(4)
    sure = 5.0 * F.one_hot(labels).float()
    assert 1 < fitted_weight(sure, labels) < 2.5
    unsure, few = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(100)
    assert fitted_weight(unsure, few) < 0.2, "a prior that knows nothing is given none"


# --- folds and validation ---

def examples(labels: torch.Tensor, width: int = 5) -> _Examples:
    """The first number of `prior` is the image's own."""
    draws = torch.Generator().manual_seed(0)
    rows = len(labels)
    prior = torch.cat([torch.arange(rows)[:, None].float(), torch.randn(rows, 2, generator=draws)], dim=1)
    return _Examples(prior, torch.randn(rows, width, generator=draws), labels)


@pytest.mark.parametrize("counts", [(2, 2, 2), (8, 8, 8), (3, 20, 9), (16, 16, 16), (1, 5, 2)])
@pytest.mark.parametrize("width", [4, 200])
def test_folds_are_disjoint_whole_and_stratified(counts, width):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    whole = examples(labels, width)
    folds = whole.folds()
    assert len(folds) == min(FOLDS, max(counts))
    held_out = torch.cat([rest.prior[:, 0] for _, rest in folds])
    assert held_out.sort().values.tolist() == list(range(len(labels))), "each image is held out once"
    for train, rest in folds:
        own, others = set(train.prior[:, 0].tolist()), set(rest.prior[:, 0].tolist())
        assert own | others == set(range(len(labels)))
        assert not own & others
        for part in (train, rest):
            rows = part.prior[:, 0].long()
            assert torch.equal(part.labels, labels[rows])
            assert torch.equal(part.prior, whole.prior[rows])
        # what the relations see of an image is its products with the others
        expected = whole.parts[train.prior[:, 0].long()] @ whole.parts[rest.prior[:, 0].long()].T
        assert torch.allclose(train.parts @ rest.parts.T, expected, atol=1e-4 * width)
        assert train.parts.shape[1] <= min(len(labels), width)
    shares = torch.stack([rest.labels.bincount(minlength=3) for _, rest in folds])
    assert (shares.max(dim=0).values - shares.min(dim=0).values).max() <= 1


def test_one_image_a_class_leaves_no_folds():
    assert examples(torch.arange(4)).folds() == []


def test_validation_images_take_the_place_of_folds(clip, monkeypatch):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    val = made_bank(clip, CLASSES, LABELS, parts=4.0, seed=1)
    against = bank_of(features_of(val), (LABELS + 1) % 3)    # what training shows is wrong here
    assert prepared(clip, bank).relations.image_space.abs().max() > 0
    monkeypatch.setattr(_Examples, "folds", lambda self: pytest.fail("folds beside validation images"))
    method, misled = prepared(clip, bank, val=val), prepared(clip, bank, val=against)
    assert method.relations.image_space.abs().max() > 0
    assert misled.relations.image_space.abs().max() == 0
    assert torch.equal(method.pooling.centres, misled.pooling.centres), "validation images set nothing else"
    assert torch.equal(method.prior_weight, misled.prior_weight)


# --- what is solved ---

def objective(weight, given: _Examples, codes, strength: float) -> torch.Tensor:
    """Written out: the mean cross-entropy and the penalty."""
    total = torch.zeros((), dtype=weight.dtype)
    for prior, parts, label in zip(given.prior, given.parts, given.labels, strict=True):
        scores = [prior[c] + sum(parts[i] * weight[i, r] * codes[c, r] for i in range(len(parts))
                                 for r in range(codes.shape[1])) for c in range(len(codes))]
        total = total - scores[label] + torch.stack(scores).exp().sum().log()
    count = len(given.labels)
    return total / count + strength / count ** 0.5 * (weight ** 2).sum()


@pytest.mark.parametrize("strength", [1.0, 0.01, 0.0001])
def test_solving_reaches_the_minimum(strength):
    draws = torch.Generator().manual_seed(0)
    given = _Examples(*(torch.randn(7, size, generator=draws, dtype=torch.float64) for size in (3, 2)),
                      torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    codes = torch.randn(3, 2, generator=draws, dtype=torch.float64)
    found = given.solve(torch.zeros(2, 2, dtype=torch.float64), codes, strength)
    slow = torch.zeros(4, dtype=torch.float64)
    for _ in range(12):                                      # Newton's method, with halved steps where one is too long
        at = lambda flat: objective(flat.view(2, 2), given, codes, strength)    # noqa: E731
        slope = torch.autograd.functional.jacobian(at, slow)
        step = torch.linalg.solve(torch.autograd.functional.hessian(at, slow), slope)
        while at(slow - step) > at(slow) + 1e-12:
            step = step / 2
        slow = slow - step
    lowest = objective(slow.view(2, 2), given, codes, strength)
    assert slow.abs().max() > 0.01, "the minimum is away from the start"
    assert objective(found, given, codes, strength) <= lowest + 1e-6
    slope = torch.autograd.functional.jacobian(lambda weight: objective(weight, given, codes, strength), found)
    assert slope.abs().max() < 1e-3
    torch.testing.assert_close(found, slow.view(2, 2), rtol=0.02, atol=0.01)


def test_the_model_holds_the_minimum_for_the_strength_chosen(clip, monkeypatch):
    """Folds are solved in a turned space; the relations kept are those of the parts themselves."""
    monkeypatch.setattr(module, "_best_strength", lambda splits, codes: 0.1)
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    method = prepared(clip, bank)
    space = method.relations.image_space.detach().clone().requires_grad_()

    def loss(space):
        parts = method.pooling.of(features_of(bank))
        text = method.class_prompts(clip) - method.relations.text_mean
        codes = torch.einsum("gcd,gdr->cr", text, method.relations.text_space) + method.relations.own
        prior = method.prior_weight * zero_shot_logits(clip, features_of(bank))
        scores = prior + torch.einsum("bmd,mdr,cr->bc", parts, space, codes)
        return F.cross_entropy(scores, LABELS) + 0.1 / len(LABELS) ** 0.5 * space.square().sum()

    (slope,) = torch.autograd.grad(loss(space), space)
    (at_start,) = torch.autograd.grad(loss(zero := torch.zeros_like(space, requires_grad=True)), zero)
    assert slope.abs().max() < 0.01 * at_start.abs().max()


class Scripted:
    """A split whose held-out loss for a strength is given."""

    def __init__(self, losses: dict[float, float]):
        self.losses, self.asked = losses, []
        self.parts = torch.zeros(1, 1)

    def solve(self, start, codes, strength):
        self.asked.append(strength)
        return torch.full((1, 1), strength)

    def loss(self, weight, codes, reduction):
        assert reduction == "sum", "each image counts once, whatever the size of its fold"
        return torch.tensor(self.losses.get(round(weight.item(), 9), 1.0))


@pytest.mark.parametrize(("held_out", "best", "tried"), [
    ((11, 12, 13, 0), None, PATIENCE),                       # all worse than the prior alone, whose loss is 10
    ((10, 10, 10, 0), None, PATIENCE),                       # no better is not enough
    ((9, 9.5, 9.6, 8.5, 8.7, 8.8, 8.9, 0), 3, 4 + PATIENCE),
    ((11, 12, 9, 13, 8, 14, 15, 16, 0), 4, 5 + PATIENCE),
    (tuple(range(9, 9 - len(STRENGTHS), -1)), len(STRENGTHS) - 1, len(STRENGTHS)),
])
def test_the_search_stops_where_weaker_penalties_do_worse(held_out, best, tried):
    assert PATIENCE == 3
    losses = {0.0: 10.0} | {round(torch.tensor(strength).item(), 9): float(loss)
                            for strength, loss in zip(STRENGTHS, held_out, strict=False)}
    train, rest = Scripted({}), Scripted(losses)
    found = _best_strength([(train, rest)], torch.zeros(2, 1))
    assert found == (None if best is None else STRENGTHS[best])
    assert train.asked == list(STRENGTHS[:tried])
    assert rest.asked == []


def test_strengths_go_from_strong_to_weak():
    assert STRENGTHS[0] == 1
    assert list(STRENGTHS) == sorted(STRENGTHS, reverse=True)


# --- what parts are related to ---

def twins() -> ClassText:
    """Two classes of which the text says the same, and a third."""
    same, other = "a photo of a bird.", "a photo of a dog."
    return ClassText(("one", "other", "third"), ((same,), (same,), (other,)))


@pytest.fixture
def always_related(monkeypatch):
    monkeypatch.setattr(module, "_best_strength", lambda splits, codes: 0.001)


def test_by_text_alone_classes_of_one_text_are_one(clip, always_related):
    bank = made_bank(clip, twins(), LABELS, parts=4.0)
    scores = logits(prepared(clip, bank, classes=twins(), relate_to="text"), clip, bank)
    torch.testing.assert_close(scores[:, 0], scores[:, 1], rtol=1e-3, atol=1e-3)
    assert (scores[:, 0] - scores[:, 2]).abs().max() > 0.5
    for relate_to in ("classes", "text_and_classes"):
        scores = logits(prepared(clip, bank, classes=twins(), relate_to=relate_to), clip, bank)
        assert (scores[:, 0] - scores[:, 1]).abs().max() > 0.5, relate_to


def test_what_each_option_relates_to(clip, always_related):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    text, own, both = (prepared(clip, bank, relate_to=each).relations for each in ("text", "classes",
                                                                                    "text_and_classes"))
    assert text.own.abs().max() == 0 < text.text_space.abs().max()
    assert own.text_space.abs().max() == 0 < own.own.abs().max()
    assert both.text_space.abs().max() > 0 < both.own.abs().max()


def test_new_classes_have_no_vector_of_their_own(clip, always_related):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    method = prepared(clip, bank, relate_to="classes")
    turned = method.for_classes(clip, class_text(("cat", "house")))
    scores, own = logits(turned, clip, bank), logits(method, clip, bank)
    torch.testing.assert_close(scores[:, 0], own[:, 2])
    prior = zero_shot_logits(clip, features_of(bank), turned.classes)
    torch.testing.assert_close(scores[:, 1], method.prior_weight * prior[:, 1])


def test_a_method_can_be_turned_again(clip, always_related):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    method = prepared(clip, bank)
    once = method.for_classes(clip, class_text(("cat", "house")))
    twice = once.for_classes(clip, class_text(("house", "red wing", "cat")))
    torch.testing.assert_close(logits(twice, clip, bank)[:, [2, 0]], logits(once, clip, bank), rtol=1e-4,
                               atol=1e-4)


# --- the rest ---

def test_draws_do_not_come_from_outside(clip):
    bank, states = made_bank(clip, CLASSES, LABELS, parts=2.0), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(prepared(clip, bank).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[0]["relations.image_space"].abs().max() > 0


def test_the_order_of_the_images_hardly_matters(clip, always_related):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    turned = bank_of(features_of(bank).map(lambda value: value.flip(0)), LABELS.flip(0))
    one, other = (probabilities(prepared(clip, each), clip, bank) for each in (bank, turned))
    assert (one - other).abs().max() < 0.05


def test_part_descriptions_are_the_prompts_where_there_are_any(clip, always_related):
    parts = {name: {"beak": f"a {name} with a beak.", "wing": f"a {name} with a wing."} for name in CLASSES.names}
    described = class_text(CLASSES.names, parts=parts)
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    method, plain = prepared(clip, bank, classes=described), prepared(clip, bank)
    assert (method.prompts, plain.prompts) == ("names + part_descriptions", "names")
    assert method.class_prompts(clip).shape == (2, 3, clip.embed_dim)
    assert plain.class_prompts(clip).shape == (1, 3, clip.embed_dim)
    assert torch.allclose(plain.class_prompts(clip)[0], plain.zero_shot.weights)


@pytest.mark.parametrize(("options", "message"), [
    ({"relate_to": "texts"}, "unknown relate_to 'texts'; did you mean 'text'.*available: classes"),
    ({"image_parts": 0}, "image_parts must be at least 1, found 0"),
])
def test_bad_options_are_told(clip, options, message):
    with pytest.raises(UserError, match=message):
        XRVLMPlus(clip, CLASSES, **options)


def test_a_tower_without_positions_is_told():
    clip = tiny_vit()
    clip.image_width = 0
    with pytest.raises(UserError, match="shows no positions: xr_vlm_plus needs another backbone"):
        XRVLMPlus(clip, CLASSES)
