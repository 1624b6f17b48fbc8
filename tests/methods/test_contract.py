"""One list of checks over every method's YAML: what is true of all methods, whatever they do."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from towers import IMAGE_KINDS, tiny_vit
from zoo import CASES, NAMES, OPEN, OTHERS, SHORT, classes, factory

from xrvlm.backbones.base import Features
from xrvlm.distributed import seeded
from xrvlm.errors import UserError
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import without_labels
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import XRVLM, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit


@pytest.fixture(scope="module")
def bank(clip) -> FeatureBank:
    return encoded(clip)


@pytest.fixture(scope="module")
def convolutions():
    """A tower of convolutions, and its bank."""
    clip = IMAGE_KINDS["timm efficientnet"]().clip
    return clip, encoded(clip)


def encoded(clip) -> FeatureBank:
    """16 images of 4 classes in three views, made of noise around a centre for each class."""
    with seeded("bank"):
        labels = torch.arange(4).repeat(4)
        size = clip.transform.image_size
        images = torch.randn(4, 1, 3, size, size)[labels] + 0.5 * torch.randn(16, 3, 3, size, size)
    features = clip.encode_image(images.flatten(0, 1), {"pooled", "tokens", "mid_tokens", "unprojected"})
    shard = {name: value.unflatten(0, (16, 3)) for name, value in vars(features).items() if value is not None}
    return FeatureBank([shard], 16, tuple(f"{i}.png" for i in range(16)), labels, views=2, seed=1)


@pytest.fixture(scope="module")
def fitted(clip, bank):
    """`fitted(case)`: the method trained on `bank`. It is trained once, and each test has a copy of it."""
    made = cache(lambda case: trained(case, clip, bank))
    return lambda case: deepcopy(made(case))


def trained(case, clip, bank, text=None, **options):
    with seeded(1, "initial weights"):
        method = factory(case)(clip, text or classes())
    method.prepare(clip, bank)
    fit(method, clip, bank, SHORT, seed=1, **options)
    if method.transductive:
        method.transduce(clip, without_labels(bank), bank if method.learns else None)
    return method.eval()


def some(bank, rows=range(5)) -> Features:
    rows = torch.tensor(list(rows))
    return bank.select(rows, torch.zeros_like(rows))


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


def test_logits_have_one_column_a_class_and_are_finite(case, clip, bank, fitted):
    method = fitted(case)
    logits = method.logits(some(bank), method.class_features(clip))
    assert logits.shape == (5, 4)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_what_the_record_and_the_bank_need_is_said(case, clip, bank, fitted):
    method = fitted(case)
    assert method.label
    assert set(method.prompts.split(" + ")) <= {"names", "descriptions", "learned", "part_descriptions",
                                                "learned_from_descriptions", "vectors", "none"}
    assert method.needs <= {"pooled", "tokens", "mid_tokens", "unprojected"}
    only = Features(**{name: value if name in method.needs | {"pooled"} else None
                       for name, value in vars(some(bank)).items()})
    assert torch.equal(method.logits(only, method.class_features(clip)),
                       method.logits(some(bank), method.class_features(clip)))


def test_the_tower_is_frozen_and_gets_no_gradient(case, clip, bank):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    trained(case, clip, bank)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())


def test_the_loss_reaches_every_learned_tensor(case, clip, bank):
    torch.manual_seed(0)                 # a tiny bottleneck may start with no unit that is above 0
    method = factory(case)(clip, classes())
    method.prepare(clip, bank)
    learned = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    method.train()
    loss = method.loss(some(bank, range(8)), bank.labels[:8], clip)
    if not learned:
        assert not loss.requires_grad
        return
    loss.backward()
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.abs().max() > 0 for parameter in learned.values() if parameter.grad is not None)


def test_training_lowers_the_loss(case, clip, bank):
    method = factory(case)(clip, classes())
    method.prepare(clip, bank)
    if not any(parameter.requires_grad for parameter in method.parameters()):
        pytest.skip("nothing is trained by steps")
    losses = fit(method, clip, bank, replace(SHORT, epochs=12, learning_rate=0.02), seed=1).losses
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_evaluation_does_not_depend_on_the_batch(case, clip, bank, fitted):
    method = fitted(case)
    class_features = method.class_features(clip)
    whole = method.logits(some(bank, range(16)), class_features)
    single = torch.cat([method.logits(some(bank, [row]), class_features) for row in range(16)])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(case, clip, bank, fitted):
    first, second = fitted(case).state_dict(), trained(case, clip, bank).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_saved_and_loaded_it_gives_the_same_probabilities(case, clip, bank, fitted, tmp_path):
    method = fitted(case)
    classifier = Classifier(clip, method, ModelHeader.of(clip, factory(case), classes()))
    loaded = Classifier.load(classifier.save(tmp_path), clip)
    assert loaded.names == NAMES
    assert torch.equal(probabilities(loaded.method, clip, bank), probabilities(method, clip, bank))


def test_a_tower_of_convolutions_serves_as_well(case, convolutions, tmp_path):
    clip, bank = convolutions
    method = trained(case, clip, bank, checkpoint=tmp_path / "last.safetensors", identity="a")
    found = probabilities(method, clip, bank)
    assert found.shape == (16, 4)
    assert found.isfinite().all()
    saved = Classifier(clip, method, ModelHeader.of(clip, factory(case), classes())).save(tmp_path)
    assert torch.equal(probabilities(Classifier.load(saved, clip).method, clip, bank), found)


def test_a_model_holds_nothing_of_the_tower(case, clip, bank, fitted):
    method = fitted(case)
    towers = {value.data_ptr() for value in clip.state_dict().values()}
    assert not any(module is clip for module in method.modules())
    assert not towers & {value.data_ptr() for value in method.state_dict().values()}


def test_class_order_permutes_the_probabilities(case, clip, bank, fitted):
    if CASES[case][0] == "xr_vlm" or "specific" in case:
        pytest.skip("the starting weights belong to places, not to classes")
    order = torch.tensor([2, 0, 3, 1])
    permuted = FeatureBank(bank.shards, 16, bank.ids, order.argsort()[bank.labels], views=2, seed=1)
    one = probabilities(fitted(case), clip, bank)
    other = probabilities(trained(case, clip, permuted, classes([NAMES[i] for i in order])), clip, permuted)
    torch.testing.assert_close(other, one[:, order], rtol=1e-3, atol=5e-4)


def test_two_classes_work(case, clip, bank):
    binary = FeatureBank(bank.shards, 16, bank.ids, bank.labels % 2, views=2, seed=1)
    method = trained(case, clip, binary, classes(NAMES[:2]))
    assert probabilities(method, clip, binary).shape == (16, 2)


@pytest.mark.parametrize("case", ["zero_shot", "dclip", "coop", "cocoop", "plot", "gallop"])
def test_a_bias_of_the_tower_is_part_of_every_logit(case, clip, bank):
    """As SigLIP's is: no softmax notices, what a logit means does."""
    method = factory(case)(clip, classes())
    method.prepare(clip, bank)
    x, class_features = some(bank), method.class_features(clip)
    before = method.logits(x, class_features)
    method.logit_bias = torch.tensor(-12.5)
    torch.testing.assert_close(method.logits(x, class_features), before - 12.5)


def with_prior(clip, bank, **options) -> XRVLM:
    """Method with a prior and the same head whatever the options, prepared."""
    with seeded(1, "initial weights"):
        method = XRVLM(clip, classes(), hidden=8, **options)
    method.prepare(clip, bank)
    return method.eval()


@torch.no_grad()
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("weight", [0.5, -2.0])
def test_a_prior_adds_its_weight_times_the_zero_shot_logits(clip, bank, weight, learned):
    without, method = with_prior(clip, bank), with_prior(clip, bank, prior_weight=weight, learn_prior_weight=learned)
    zero_shot = ZeroShot(clip, classes())
    zero_shot.prepare(clip, None)
    x = some(bank)
    expected = without.logits(x, without.class_features(clip)) + weight * zero_shot.logits(x, zero_shot.weights)
    assert torch.equal(method.logits(x, method.class_features(clip)), expected)
    assert without.zero_shot is None


def test_the_weight_of_a_prior_is_learned_where_that_is_wanted(clip, bank):
    fixed = with_prior(clip, bank, prior_weight=0.5)
    assert not fixed.prior_weight.requires_grad
    for start in (0.0, 0.5):
        method = with_prior(clip, bank, prior_weight=start, learn_prior_weight=True)
        assert method.prior_weight.item() == start
        method.train().loss(some(bank, range(8)), bank.labels[:8], clip).backward()
        assert method.prior_weight.grad is not None
        assert method.prior_weight.grad.abs() > 0
        fit(method, clip, bank, SHORT, seed=1)
        assert method.prior_weight.item() != start
    fit(fixed, clip, bank, SHORT, seed=1)
    assert fixed.prior_weight.item() == 0.5


def test_without_a_prior_no_sentence_of_a_class_is_read(bank):
    """The prompts around the names are learned; what zero-shot reads is encoded for a prior alone."""
    clip, read = tiny_vit(), []
    encode = clip.encode_text
    clip.encode_text = lambda texts: read.extend(texts) or encode(texts)
    method = with_prior(clip, bank, prior_weight=0.0)
    method.logits(some(bank), method.class_features(clip))
    assert read == []
    assert not [name for name in method.state_dict() if "zero_shot" in name or "prior" in name]
    with_prior(clip, bank, prior_weight=0.1)
    assert read == [sentence for prompts in classes().prompts for sentence in prompts]


@pytest.mark.parametrize("case", ["xr_vlm", "xr_vlm_plus", "tip_adapter", "zero_shot"])
def test_a_model_of_a_version_with_other_options_is_told(case, clip, bank, fitted, tmp_path):
    about = ModelHeader.of(clip, factory(case), classes())
    about.method.options["shared_context"] = True
    path = Classifier(clip, fitted(case), about).save(tmp_path)
    with pytest.raises(UserError) as told:
        Classifier.load(path, clip)
    message = str(told.value)
    assert str(path) in message
    assert "shared_context" in message
    assert about.method.name in message
    assert "written by another version of xrvlm: install that version, or adapt again" in message
    assert "\n" not in message


@pytest.mark.parametrize("case", sorted(OPEN))
def test_turned_to_its_own_classes_an_open_method_says_the_same(case, clip, bank, fitted):
    method = fitted(case)
    expected = method.logits(some(bank), method.class_features(clip))
    same = method.for_classes(clip, classes())
    torch.testing.assert_close(same.logits(some(bank), same.class_features(clip)), expected, rtol=1e-5, atol=1e-6)
    order = [2, 0, 3, 1]
    permuted = method.for_classes(clip, classes([NAMES[i] for i in order]))
    logits = permuted.logits(some(bank), permuted.class_features(clip))
    torch.testing.assert_close(logits, expected[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", sorted(OPEN))
def test_an_open_method_scores_new_classes_and_stays_as_it_is(case, clip, bank, fitted, tmp_path):
    method = fitted(case)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    said = method.logits(some(bank), method.class_features(clip))
    turned = method.for_classes(clip, classes(OTHERS))
    logits = turned.logits(some(bank), turned.class_features(clip))
    assert logits.shape == (5, len(OTHERS))
    assert logits.isfinite().all()
    assert (logits.std(dim=1) > 0).all(), "the classes differ"
    own = method.logits(some(bank), method.class_features(clip))
    torch.testing.assert_close(logits.detach()[:, -1], own.detach()[:, 0], rtol=1e-4, atol=1e-5)    # the same finch
    assert method.classes == classes()
    assert torch.equal(method.logits(some(bank), method.class_features(clip)), said)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    learned = dict(method.named_parameters())
    assert all(value is learned[name] for name, value in turned.named_parameters()), "shared, not copied"
    turned.train()
    assert not any(module.training for module in method.modules())
    classifier = Classifier(clip, method, ModelHeader.of(clip, factory(case), classes())).for_classes(classes(OTHERS))
    loaded = Classifier.load(classifier.save(tmp_path), clip)
    assert loaded.names == OTHERS
    assert torch.equal(probabilities(loaded.method, clip, bank), probabilities(turned, clip, bank))
    again = loaded.for_classes(classes(OTHERS[::-1])).for_classes(classes(OTHERS))          # as often as one likes
    assert torch.allclose(probabilities(again.method, clip, bank), probabilities(turned, clip, bank), atol=1e-5)


@pytest.mark.parametrize("case", sorted(CASES.keys() - OPEN))
def test_a_closed_method_names_those_that_score_new_classes(case, clip):
    method = factory(case)(clip, classes())
    assert not method.open_classes
    with pytest.raises(UserError, match="is bound to the 4 classes that it was trained on; methods that score new "
                                        "classes: .*zero_shot; .*coop with a shared context; .*xr_vlm with head per_"):
        method.for_classes(clip, classes(OTHERS))


def test_what_binds_a_method_is_named(clip):
    for case, reason in (("xr_vlm", "head cross"), ("xr_vlm visual", "head visual"), ("linear_probe", "linear probe"),
                         ("xr_vlm per_class", "a learned prompt for each class"),
                         ("coop class-specific", "a learned prompt for each class")):
        with pytest.raises(UserError, match=f"^{reason} is bound to"):
            factory(case)(clip, classes()).check_open()


def test_new_classes_must_be_described_by_the_same_parts(clip, bank, fitted):
    method = fitted("xr_vlm per_class part_descriptions")
    for parts, message in ((("beak", "tail"), "trained with the parts beak, wing; the new classes have beak, tail;"),
                           (("beak", "wing", "tail"), "the new classes have beak, wing, tail; describe them by the"),
                           ((), "needs a sentence for each part")):
        sentences = {name: {part: f"a {name} and its {part}." for part in parts} for name in OTHERS}
        with pytest.raises(UserError, match=message):
            method.for_classes(clip, class_text(OTHERS, parts=sentences if parts else None))


def test_the_visual_head_refuses_prompts_that_it_does_not_read(clip):
    with pytest.raises(UserError, match=r"head visual reads no prompts: leave part_prompts='descriptions' out"):
        XRVLM(clip, classes(), head="visual", part_prompts="descriptions")


def test_a_text_prior_tells_its_text(clip):
    assert XRVLM(clip, classes(), prior_weight=1.0).prompts == "learned + names"
    assert XRVLM(clip, classes(), part_prompts="descriptions", prior_weight=1.0).prompts == "part_descriptions + names"
    assert XRVLM(clip, classes()).prompts == "learned"


def test_how_many_numbers_the_labels_decide(clip, bank):
    """A closed form counts as what it stands for; a cache that is not trained as nothing."""
    count, width = len(classes().names), clip.embed_dim
    expected = {"gda": count * (width + 1), "lp_plus_plus": count * (width + 1), "trans_clip": (count + 1) * width,
                "trans_clip_zero_shot": 0, "tip_adapter": 0, "tip_adapter_f": len(bank.labels) * width, "zero_shot": 0,
                "zpe": 0, "linear_probe": count * (clip.unprojected_width + 1), "task_res": count * width,
                "filip": clip.embed_dim ** 2 + 1, "filip_zero_shot": 0, "tda": 0, "dmn": 2}
    for name, number in expected.items():
        method = factory(name)(clip, classes())
        method.prepare(clip, bank)
        assert method.learned_parameters == number, name
