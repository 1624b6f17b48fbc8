
import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, bank_of, features_of, made_bank
from towers import tiny_vit

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import XRVLMPlus, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.methods.linear_probe import FOLDS, PATIENCE
from xrvlm.methods.xr_vlm import xr_vlm_plus as module
from xrvlm.methods.xr_vlm.xr_vlm_plus import (
    CHOOSING,
    CLUSTERS,
    LONE_STRENGTHS,
    PAIRS,
    STRENGTHS,
    TEXT_FROM,
    _best_strength,
    _Examples,
    _losses,
    _solve,
    _span,
    _splits,
)
from xrvlm.methods.zero_shot import PRIOR_PENALTY, fitted_weight
from xrvlm.text.class_text import ClassText, class_text

LABELS, MORE = torch.arange(3).repeat(6), torch.arange(3).repeat(12)
OFTEN_RIGHT = 0.15                       # of `text`: zero-shot is right on half of the images, more or less
RELATE_TO = ("text_and_classes", "text", "classes")


def prepared(clip, bank, val=None, classes=CLASSES, **options) -> XRVLMPlus:
    method = XRVLMPlus(clip, classes, **{"image_parts": 4, "inputs": "pooled", "pairs": 0} | options)
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
    monkeypatch.setattr(module, "BELIEVED", -1.0)            # three images cannot convince
    monkeypatch.setattr(module, "_solve", lambda *given, **steps: asked.append(given[4]) or _solve(*given, **steps))
    shown = features_of(made_bank(clip, CLASSES, torch.tensor(labels), text=4.0, parts=4.0))
    bank = bank_of(shown, torch.arange(3))
    right = (zero_shot_logits(clip, shown).argmax(dim=1) == bank.labels).sum()
    assert right == (0 if labels[0] else 2)
    method = prepared(clip, bank)
    assert asked == [strength]
    assert (method.relations.text_space.abs().max() > 0) == (right > 0), "a text that is wrong is not related"
    whole, clusters, _ = method.pooling.blocks()
    assert method.relations.image_space[whole].abs().max() > 0
    assert method.relations.image_space[clusters].abs().max() == 0, "only held-out images can tell what parts are worth"
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
    return _Examples(torch.randn(rows, width, generator=draws), prior, labels)


@pytest.mark.parametrize("counts", [(2, 2, 2), (8, 8, 8), (3, 20, 9), (16, 16, 16), (1, 5, 2)])
def test_folds_are_disjoint_whole_and_stratified(counts):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    given, fit = _splits(examples(labels), None)
    assert torch.equal(given.prior[:, 0], torch.arange(len(labels)).float())
    assert fit.shape == (min(FOLDS, max(counts)), len(labels))
    assert ((~fit).sum(dim=0) == 1).all(), "each image is held out once"
    shares = torch.stack([labels[~row].bincount(minlength=3) for row in fit])
    assert (shares.max(dim=0).values - shares.min(dim=0).values).max() <= 1


def test_one_image_a_class_leaves_no_folds():
    assert _splits(examples(torch.arange(4)), None)[1] is None


def test_validation_images_are_held_out_and_few_images_choose(monkeypatch):
    given, fit = _splits(examples(torch.arange(3).repeat(4)), examples(torch.arange(3).repeat(2)))
    assert fit.tolist() == [[True] * 12 + [False] * 6]
    assert torch.equal(given.prior[12:, 0], torch.arange(6).float())
    monkeypatch.setattr(module, "CHOOSING", 6)
    given, fit = _splits(examples(torch.arange(3).repeat(4)), examples(torch.arange(3).repeat(6)))
    assert fit.tolist() == [[True] * 6 + [False] * 6]
    assert given.labels.bincount().tolist() == [4, 4, 4], "of each class as many"
    assert CHOOSING == 2000


@pytest.mark.parametrize(("rows", "width"), [(7, 4), (7, 200), (12, 5)])
def test_in_the_span_of_images_products_stay(rows, width):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]                                              # and no dimension is taken twice
    span, axes = _span(x @ x.T, rows - 2)
    assert span.shape == (rows, min(rows - 3, width))
    inside = x[:rows - 2]
    torch.testing.assert_close(span[:rows - 2] @ span.T, inside @ x.T, rtol=1e-3, atol=1e-3)
    weight = torch.randn(span.shape[1], 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x @ (inside.T @ (axes @ weight)), span @ weight, rtol=1e-3, atol=1e-3)


def test_validation_images_take_the_place_of_folds(clip):
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    val = made_bank(clip, CLASSES, LABELS, parts=4.0, seed=1)
    against = bank_of(features_of(val), (LABELS + 1) % 3)    # what training shows is wrong here
    assert prepared(clip, bank).relations.image_space.abs().max() > 0
    method, misled = prepared(clip, bank, val=val), prepared(clip, bank, val=against)
    _, clusters, _ = method.pooling.blocks()
    assert method.relations.image_space[clusters].abs().max() > 0
    assert misled.relations.image_space[clusters].abs().max() == 0
    assert torch.equal(method.pooling.centres, misled.pooling.centres), "validation images set nothing else"
    assert torch.equal(method.prior_weight, misled.prior_weight)


# --- what is solved ---

def objective(weight, span, given: _Examples, codes, rows: list[int], strength: float) -> torch.Tensor:
    """Written out for one split: the mean cross-entropy of the images to fit on, and the penalty."""
    total = torch.zeros((), dtype=weight.dtype)
    for row in rows:
        scores = [given.prior[row, c] + sum(span[row, i] * weight[i, r] * codes[c, r] for i in range(span.shape[1])
                                            for r in range(codes.shape[1])) for c in range(len(codes))]
        total = total - scores[given.labels[row]] + torch.stack(scores).exp().sum().log()
    return total / len(rows) + strength / len(rows) ** 0.5 * (weight ** 2).sum()


@pytest.mark.parametrize("strength", [1.0, 0.01, 0.0001])
def test_solving_reaches_the_minimum_of_each_split(strength):
    draws = torch.Generator().manual_seed(0)
    span, prior = (torch.randn(7, size, generator=draws, dtype=torch.float64) for size in (2, 3))
    given = _Examples(span, prior, torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    codes = torch.randn(3, 2, generator=draws, dtype=torch.float64)
    fit = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    found = _solve(given, span, codes, fit, strength, span.new_zeros(2, 2, 2), steps=100)
    for split, rows in ((0, [0, 1, 2, 3, 4, 5, 6]), (1, [0, 1, 2, 3, 4])):
        at = lambda flat, rows=rows: objective(flat.view(2, 2), span, given, codes, rows, strength)    # noqa: E731
        slow = torch.zeros(4, dtype=torch.float64)
        for _ in range(12):                                  # Newton's method, with halved steps where one is too long
            slope = torch.autograd.functional.jacobian(at, slow)
            step = torch.linalg.solve(torch.autograd.functional.hessian(at, slow), slope)
            while at(slow - step) > at(slow) + 1e-12:
                step = step / 2
            slow = slow - step
        assert slow.abs().max() > 0.01, "the minimum is away from the start"
        assert at(found[split]) <= at(slow) + 1e-6
        torch.testing.assert_close(found[split], slow.view(2, 2), rtol=0.02, atol=0.01)


def test_losses_are_of_every_image_with_each_relation():
    given, codes, weight = examples(torch.tensor([0, 1, 2])), torch.randn(3, 2), torch.randn(4, 5, 2)
    losses = _losses(given, given.rows, codes, weight)
    assert losses.shape == (4, 3)
    for split in range(4):
        expected = F.cross_entropy(given.prior + given.rows @ weight[split] @ codes.T, given.labels, reduction="none")
        torch.testing.assert_close(losses[split], expected)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, CLUSTERS, 0.0), (1.0, CLUSTERS, PAIRS)])
def test_the_model_holds_the_minimum_for_what_was_chosen(clip, monkeypatch, weights):
    """It is solved in the space that the images span; the relations kept are those of the parts themselves."""
    monkeypatch.setattr(XRVLMPlus, "_choose", lambda *_: (True, weights, 0.01))
    bank = with_pairs(made_bank(clip, CLASSES, LABELS, parts=4.0), clip)
    method = prepared(clip, bank, pairs=8)
    space = method.relations.image_space.detach().clone().requires_grad_()
    features = method.pooling.of(features_of(bank))
    for some, weight in zip(method.pooling.blocks(), weights, strict=True):
        assert features[:, some].square().sum(dim=1).mean().item() == pytest.approx(weight, abs=1e-4)
        assert (space[some].abs().max() > 0) == (weight > 0)

    def loss(space):
        text = method.class_prompts(clip) - method.relations.text_mean
        codes = torch.einsum("gcd,gdr->cr", text, method.relations.text_space) + method.relations.own
        prior = method.prior_weight * zero_shot_logits(clip, features_of(bank))
        scores = prior + torch.einsum("bf,fr,cr->bc", features, space, codes)
        return F.cross_entropy(scores, LABELS) + 0.01 / len(LABELS) ** 0.5 * space.square().sum()

    (slope,) = torch.autograd.grad(loss(space), space)
    (at_start,) = torch.autograd.grad(loss(zero := torch.zeros_like(space, requires_grad=True)), zero)
    assert slope.abs().max() < 0.01 * at_start.abs().max()


@pytest.mark.parametrize(("held_out", "best", "tried"), [
    ((11, 12, 13, 14, 0), 0, 1 + PATIENCE),
    ((9, 9.5, 9.6, 8.5, 8.7, 8.8, 8.9, 0), 3, 4 + PATIENCE),
    ((11, 12, 9, 13, 8, 14, 15, 16, 0), 4, 5 + PATIENCE),
    (tuple(range(20, 20 - len(STRENGTHS), -1)), len(STRENGTHS) - 1, len(STRENGTHS)),
])
def test_the_search_stops_where_weaker_penalties_do_worse(monkeypatch, held_out, best, tried):
    asked, fit = [], torch.tensor([[True, False]])
    monkeypatch.setattr(module, "_solve", lambda *given, steps: asked.append(given[4]) or given[5])
    monkeypatch.setattr(module, "_losses", lambda *_: torch.tensor([[100.0, held_out[len(asked) - 1]]]))
    given = examples(torch.tensor([0, 1]))
    assert _best_strength(given, given.rows, torch.eye(3), fit) == (STRENGTHS[best], held_out[best])
    assert asked == list(STRENGTHS[:tried])


def test_strengths_go_from_strong_to_weak():
    assert STRENGTHS[0] == 0.1
    assert list(STRENGTHS) == sorted(STRENGTHS, reverse=True)


# --- what parts are related to ---

def twins() -> ClassText:
    """Two classes of which the text says the same, and a third."""
    same, other = "a photo of a bird.", "a photo of a dog."
    return ClassText(("one", "other", "third"), ((same,), (same,), (other,)))


@pytest.fixture
def always_related(monkeypatch):
    monkeypatch.setattr(XRVLMPlus, "_choose", lambda *_: (True, (1.0, CLUSTERS, 0.0), 0.001))


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


# --- pairs, and what chooses among parts ---

def with_pairs(bank, clip, pattern: float = 0.0, seed: int = 0):
    """The bank with positions of an earlier block: noise, in which two channels of each class go together."""
    draws, labels = torch.Generator().manual_seed(seed), bank.labels
    x = features_of(bank)
    noise = torch.randn(len(labels), x.tokens.shape[1], clip.image_width, generator=draws)
    for row, label in zip(noise, labels.tolist(), strict=True):
        row[:, 2 * label + 1] += pattern * row[:, 2 * label]
    return bank_of(Features(x.pooled, x.tokens, noise), labels)


def test_pairs_are_related_where_they_tell_classes_apart(clip):
    bank = with_pairs(made_bank(clip, CLASSES, MORE), clip, pattern=2.0)
    unseen = with_pairs(made_bank(clip, CLASSES, torch.arange(3).repeat(20), seed=1), clip, pattern=2.0, seed=1)
    method = prepared(clip, bank, pairs=clip.image_width)
    *_, pairs = method.pooling.blocks()
    assert method.relations.image_space[pairs].abs().max() > 0
    assert accuracy(method, clip, unseen) > 0.8
    assert accuracy(prepared(clip, bank, pairs=0), clip, unseen) < 0.6


def test_held_out_images_choose_the_parts(clip, monkeypatch):
    """Each weighting has a held-out loss; the lowest of all is taken, none where zero-shot's is lower."""
    train = examples(torch.arange(3).repeat(4), width=9)
    method = XRVLMPlus(clip, CLASSES, image_parts=2, inputs="pooled", pairs=2, relate_to="classes")
    text = torch.zeros(1, 3, clip.embed_dim)
    monkeypatch.setattr(method.pooling, "blocks", lambda: [slice(0, 3), slice(3, 6), slice(6, 9)])
    alone = F.cross_entropy(train.prior, train.labels, reduction="sum").item()
    for lowest in (0, 1, 2, 3, None):
        losses = [alone + 1] * 4 if lowest is None else [alone - 1 - (index == lowest) for index in range(4)]
        left = iter(losses)
        monkeypatch.setattr(module, "_best_strength", lambda *_, left=left: (0.01, next(left)))
        chosen = method._choose(train, None, text)
        every = [(1.0, 0.0, 0.0), (1.0, 0.0, PAIRS), (1.0, CLUSTERS, 0.0), (1.0, CLUSTERS, PAIRS)]
        assert chosen == (None if lowest is None else (True, every[lowest], 0.01))
    monkeypatch.setattr(module, "_best_strength", lambda *_: (0.01, 0.0))
    method = XRVLMPlus(clip, CLASSES, image_parts=0, inputs="pooled", pairs=0)
    assert method._choose(train, None, text) == (True, (1.0, 0.0, 0.0), 0.01), "what is not there is not tried"


@pytest.mark.parametrize(("alone", "with_text"), [(TEXT_FROM - 0.01, False), (TEXT_FROM + 0.01, True), (2.0, True)])
def test_a_text_that_only_disturbs_is_left_out(clip, monkeypatch, alone, with_text):
    """Where relations without it have a clearly lower held-out loss."""
    train = examples(torch.arange(3).repeat(4), width=clip.embed_dim)
    text = torch.randn(1, 3, clip.embed_dim, generator=torch.Generator().manual_seed(0))
    method = XRVLMPlus(clip, CLASSES, image_parts=0, inputs="pooled", pairs=0)
    own = method._codes(text, False)
    assert torch.allclose(own @ own.T, 0.1 * torch.eye(3), atol=1e-5)
    assert (method._codes(text, True) @ method._codes(text, True).T - 0.1 * torch.eye(3)).abs().max() > 0.5
    monkeypatch.setattr(module, "_best_strength", lambda _1, _2, codes, _3: (
        0.01, alone if torch.allclose(codes @ codes.T, own @ own.T, atol=1e-5) else 1.0))
    assert method._choose(train, None, text) == (with_text, (1.0, 0.0, 0.0), 0.01)
    for relate_to in ("text", "classes"):
        method = XRVLMPlus(clip, CLASSES, image_parts=0, inputs="pooled", pairs=0, relate_to=relate_to)
        chosen = method._choose(train, None, text)
        assert chosen is not None and chosen[0], "one kind of relation is not left out"


def test_names_that_explain_nothing_have_no_weight(clip):
    """Where they say nothing of few images, a weight fitted to these is chance; not where they are right."""
    labels = torch.arange(3).repeat(3)
    silent = prepared(clip, made_bank(clip, CLASSES, labels, parts=8.0, seed=4))
    told = prepared(clip, made_bank(clip, CLASSES, labels, parts=8.0, text=4.0, seed=4))
    assert silent.prior_weight == 0 < told.prior_weight
    assert silent.relations.image_space.abs().max() > 0


def test_a_model_of_revision_1_keeps_its_numbers(clip):
    """Its parts had one width and stood in rows, each number standardised."""
    bank = made_bank(clip, CLASSES, LABELS, parts=4.0)
    options = XRVLMPlus.options_of(1, {"image_parts": 2, "relate_to": "text"})
    assert options == {"inputs": "pooled", "scaling": "none", "pairs": 0, "image_parts": 2, "relate_to": "text"}
    trained, width = prepared(clip, bank, **options), clip.embed_dim
    state = trained.state_dict()
    mean, deviation = torch.randn(3, width), torch.rand(3, width) + 0.5
    space = torch.randn(3, width, 3)
    for name in ("offset", "scale", "directions"):
        del state[f"pooling.{name}"]
    state |= {"pooling.part_mean": mean, "pooling.part_deviation": deviation, "pooling.length": torch.ones(3, 1),
              "relations.image_space": space}
    method = XRVLMPlus(clip, CLASSES, **options)
    method.load_state_dict(state)
    x = features_of(bank)
    standard = (x.tokens - trained.pooling.mean) / trained.pooling.deviation
    parts = torch.cat([x.pooled[:, None], trained.pooling.part_maps(x)[:, 1:] @ standard], dim=1)
    related = torch.einsum("bmd,mdr->br", (parts - mean) / deviation, space)
    codes = method.class_features(clip).sum(dim=0)
    expected = method.prior_weight * zero_shot_logits(clip, x) + related @ codes.T
    torch.testing.assert_close(logits(method, clip, bank), expected, rtol=1e-3, atol=1e-2)


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
    ({"image_parts": -1}, "image_parts must be at least 0, found -1"),
    ({"pairs": -1}, "pairs must be at least 0, found -1"),
    ({"inputs": "raw"}, "unknown inputs 'raw'"),
])
def test_bad_options_are_told(clip, options, message):
    with pytest.raises(UserError, match=message):
        XRVLMPlus(clip, CLASSES, **options)


def test_a_tower_without_positions_is_told():
    clip = tiny_vit()
    clip.image_width = 0
    with pytest.raises(UserError, match="shows no positions: xr_vlm_plus needs another backbone"):
        XRVLMPlus(clip, CLASSES)
