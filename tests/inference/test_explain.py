"""Explanations: their shapes on every kind of tower and head, and that their terms add up to what they explain."""

from functools import cache, partial

import pytest
import torch
import torchvision.transforms.functional as TF
from banks import bank_of
from towers import IMAGE_KINDS, images, tiny_vit

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.inference.explain import (
    STEPS,
    attribute,
    class_index,
    explain,
    explained,
    part_names,
    parts_and_relations,
    prompt_names,
    prompt_words,
)
from xrvlm.inference.explanation import overlap
from xrvlm.methods import FILIP, XRVLM, CoOp, LinearProbe, XRVLMPlus, ZeroShot
from xrvlm.methods.xr_vlm.parts import grid
from xrvlm.text.class_text import class_text
from xrvlm.text.learned_prompts import ContextPrompts

HEADS = ("cross", "diagonal", "per_class", "per_class_diagonal", "alignment", "visual")
LINEAR = ("alignment", "visual")
NAMES = ("Baird's_Sparrow", "wren", "jay", "dog", "cat")
PARTS = 3
TOWERS = ("vit", "resnet", "timm map", "timm class token", "timm convnext", "hf clip", "hf siglip")


def photos(count: int = 4, pixels: int = 40):
    return [TF.to_pil_image(image.sigmoid()) for image in images(count, pixels)]


def classes(names=NAMES):
    parts = {name: {part: f"a {name} with a {part}." for part in ("beak", "wing", "tail")} for name in names}
    return class_text(names, parts=parts)


def moved(clip: FrozenCLIP, method: type = XRVLM, **options) -> Classifier:
    """A classifier with statistics of some batches and a head far from its start: nothing is zero by chance."""
    torch.manual_seed(0)
    factory = partial(method, **{"image_parts": PARTS, "text_parts": PARTS, "hidden": 8, "context_length": 2} | options)
    adapted = factory(clip, classes()).to(clip.device)
    adapted.prepare(clip, None)
    x = clip.encode_image(images(12, clip.transform.image_size, seed=1), adapted.needs)
    with torch.no_grad():
        for _ in range(20):
            adapted.logits(x, adapted.class_features(clip))
        for parameter in adapted.relations.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape)).add_(0.02 * torch.randn(parameter.shape))
    return Classifier(clip, adapted, ModelHeader.of(clip, factory, classes()))


@cache
def on_vit(head: str) -> Classifier:
    return moved(tiny_vit(), head=head)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("head", ["cross", "alignment"])
def test_every_tower_is_explained(tower, head):
    clip = IMAGE_KINDS[tower]().clip
    classifier = moved(clip, head=head)
    size = clip.transform.image_size
    for explanation in explain(classifier, photos(3, size + 10)):
        parts, side, wide = explanation.maps.shape
        assert (parts, side) == (PARTS, wide)
        assert side > 1
        assert explanation.photo.size == (size, size)
        assert explanation.class_token.shape == explanation.dead.shape == (PARTS,)
        assert explanation.logit.gap < 1e-3
        if tower not in ("vit", "timm class token", "hf clip"):
            assert explanation.class_token.abs().max() < 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_the_terms_add_up(head):
    classifier, pictures = on_vit(head), photos()
    prompts = 1 if head in LINEAR else PARTS
    for picture, explanation in zip(pictures, explained(classifier, pictures, "dog"), strict=True):
        predicted, chance = classifier.predict(picture, topk=1)[0]
        assert explanation.predicted == predicted
        assert explanation.probabilities.max().item() == pytest.approx(chance, abs=1e-5)
        assert explanation.relations.shape == explanation.logit.contributions.shape == (prompts, PARTS, len(NAMES))
        logits = classifier.method.logits(features(classifier, picture), classifier.class_features)[0]
        best, rival = NAMES.index(predicted), NAMES.index(explanation.against)
        assert rival == (NAMES.index("dog") if predicted != "dog" else logits.topk(2).indices[1])
        assert explanation.logit.value == pytest.approx(logits[best].item(), abs=1e-4)
        for attribution in (explanation.logit, explanation.margin):
            assert attribution.exact == (head in LINEAR)
            assert attribution.added == 0
            total = attribution.contributions.sum().item() + attribution.baseline
            assert total == pytest.approx(attribution.value, abs=1e-4 * (1 + abs(attribution.value)))
            assert attribution.gap == pytest.approx(abs(total - attribution.value), abs=1e-6)
            assert attribution.by_part.sum().item() == pytest.approx(attribution.contributions.sum().item(), abs=1e-4)
        difference = (logits[best] - logits[rival]).item()
        assert explanation.margin.value == pytest.approx(difference, abs=1e-4 * (1 + abs(difference)))


def features(classifier: Classifier, picture) -> Features:
    from xrvlm.views import evaluation_view

    view = evaluation_view(picture, classifier.clip.transform)
    return classifier.clip.encode_image(view[None], classifier.method.needs)


@pytest.mark.parametrize("head", LINEAR)
def test_integrated_gradients_of_a_linear_head_are_its_terms(head):
    method = on_vit(head).method
    _, linear = parts_and_relations(method)
    relations, direction = torch.randn(1, PARTS, 5), torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0])
    scores = linear.score(relations[None])[0]
    exact = attribute(linear, relations, direction, scores, torch.zeros(5))
    weight = (linear.score(torch.ones(1, 1, PARTS, 5))[0, 0] / PARTS).item()
    assert torch.allclose(exact.contributions, relations * direction * weight, atol=1e-5)
    integrated = attribute(_Curved(linear), relations, direction, scores, torch.zeros(5))
    assert exact.exact
    assert not integrated.exact
    assert torch.allclose(exact.contributions, integrated.contributions, atol=1e-4)


class _Curved:
    """The same head, not known to be linear."""

    linear = False

    def __init__(self, head):
        self.score, self.baseline = head.score, head.baseline


def test_more_steps_close_the_gap():
    _, head = parts_and_relations(on_vit("cross").method)
    relations = 5 * torch.randn(PARTS, PARTS, len(NAMES))
    logits, none = head.score(relations[None])[0].detach(), torch.zeros(len(NAMES))
    direction = torch.eye(len(NAMES))[2]
    coarse, fine = (attribute(head, relations, direction, logits, none, steps=steps) for steps in (1, STEPS))
    assert fine.gap < 1e-3 * abs(fine.value - fine.baseline)
    assert fine.gap < 0.1 * coarse.gap


class WithPrior(XRVLM):
    """XR-VLM with something added to its logits."""

    def logits(self, x: Features, class_features: torch.Tensor) -> torch.Tensor:
        return super().logits(x, class_features) + torch.arange(5.0)


def test_what_a_method_adds_is_a_term_of_its_own():
    classifier = moved(tiny_vit(), WithPrior)
    for explanation in explained(classifier, photos(), "wren"):
        best = NAMES.index(explanation.predicted)
        assert explanation.logit.added == pytest.approx(best, abs=1e-4)
        assert explanation.logit.gap < 1e-3
        if explanation.margin is not None:
            assert explanation.margin.added == pytest.approx(best - 1, abs=1e-4)


@cache
def plus() -> Classifier:
    """XR-VLM+ on images of five kinds, with relations far from zero."""
    clip, factory, labels = tiny_vit(), partial(XRVLMPlus, image_parts=PARTS), torch.arange(5).repeat(4)
    views = images(5, clip.transform.image_size, seed=1)[labels] + 0.2 * images(20, clip.transform.image_size, seed=2)
    method = factory(clip, classes())
    method.prepare(clip, bank_of(clip.encode_image(views, method.needs), labels))
    assert method.prior_weight != 1
    return Classifier(clip, method, ModelHeader.of(clip, factory, classes()))


@pytest.mark.parametrize("turned", [False, True], ids=["its classes", "other classes"])
def test_the_terms_of_xr_vlm_plus_are_exact(turned):
    classifier = plus()
    if turned:
        classifier = classifier.for_classes(classes(("wren", "emu")))
    method, names = classifier.method, classifier.names
    pictures = photos(6)
    for picture, explanation in zip(pictures, explained(classifier, pictures, "wren"), strict=True):
        x = features(classifier, picture)
        logits = method.logits(x, classifier.class_features)[0]
        prior = (method.prior_weight * method.zero_shot.logits(x, method.zero_shot.weights))[0]
        best, rival = names.index(explanation.predicted), names.index(explanation.against)
        assert rival == (names.index("wren") if explanation.predicted != "wren" else logits.topk(2).indices[1])
        assert best == logits.argmax()
        # three part sentences and the class's own vector; the whole image is the first part, pairs the last
        assert explanation.relations.shape == explanation.logit.contributions.shape == (4, PARTS + 2, len(names))
        assert explanation.logit.exact
        assert explanation.logit.baseline == 0
        scale = logits.abs().max().item()
        assert explanation.logit.value == pytest.approx(logits[best].item(), abs=1e-4 * scale)
        assert explanation.logit.added == pytest.approx(prior[best].item(), abs=1e-4 * scale)
        assert explanation.logit.contributions.abs().max() > 1e-2
        assert explanation.logit.gap < 1e-4 * scale
        others = [label for label in range(len(names)) if label != best]
        assert explanation.logit.contributions[..., others].abs().max() == 0, "the relations of a class are its own"
        assert torch.equal(explanation.maps[0], torch.full_like(explanation.maps[0], explanation.maps[0, 0, 0].item()))
        assert (explanation.class_token.abs() < 1e-5).all()
        assert explanation.margin.value == pytest.approx((logits[best] - logits[rival]).item(), abs=1e-4 * scale)
        assert explanation.margin.added == pytest.approx((prior[best] - prior[rival]).item(), abs=1e-4 * scale)
        assert explanation.margin.gap < 1e-4 * scale


def test_the_strongest_relations_come_first():
    logit = explain(on_vit("cross"), photos(1))[0].logit
    strongest = logit.strongest(7)
    assert len(strongest) == 7
    sizes = [abs(strong.contribution) for strong in strongest]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == logit.contributions.abs().max().item()
    for strong in strongest:
        assert logit.contributions[strong.prompt, strong.part, strong.label].item() == strong.contribution
    assert len(logit.strongest(10_000)) == logit.contributions.numel()


def test_the_photo_is_what_the_tower_saw():
    clip = tiny_vit()
    (photo,) = photos(1, clip.transform.image_size)
    seen = explain(on_vit("cross"), [photo])[0].photo
    assert (TF.to_tensor(seen) - TF.to_tensor(photo)).abs().max() <= 1 / 255 + 1e-6


def test_the_grid_leaves_the_class_token_out():
    maps = torch.arange(2 * 17.0).view(2, 17)
    assert torch.equal(grid(maps)[0], torch.arange(1, 17.0).view(4, 4))
    assert torch.equal(grid(maps[:, 1:]), grid(maps))


def test_overlap():
    one, other, none = torch.zeros(3, 2, 2).unbind()
    one[0], other[1] = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0])
    assert overlap(torch.stack([one, one, 2 * one])).item() == pytest.approx(1)
    assert overlap(torch.stack([one, other])).item() == 0
    assert overlap(torch.stack([one, one, other])).item() == pytest.approx(1 / 3)
    assert overlap(torch.stack([one, none, one])).item() == pytest.approx(1)      # a dead part is in no pair
    assert overlap(torch.stack([one, none])).isnan()
    batch = torch.stack([torch.stack([one, one]), torch.stack([one, other])])
    assert overlap(batch).tolist() == pytest.approx([1, 0])


def test_dead_parts_are_found():
    classifier = moved(tiny_vit())
    with torch.no_grad():
        classifier.method.pooling.map_norm.bias[1] = -1e6
    for explanation in explain(classifier, photos()):
        assert explanation.dead.tolist() == [False, True, False]
        assert explanation.maps[1].abs().max() == 0
        assert explanation.class_token[1] == 0
        assert explanation.logit.contributions.isfinite().all()


def test_the_words_of_a_prompt():
    classifier = on_vit("cross")
    (context,) = [module for module in classifier.method.modules() if isinstance(module, ContextPrompts)]
    with torch.no_grad():
        context.specific[1, 2] = classifier.clip.embed_words("red wing")                    # the third class
    words = prompt_words(classifier, "jay", count=2)
    assert [len(prompt) for prompt in words] == [2] * PARTS
    assert [near[0][0] for near in words[1]] == ["red", "wing"]
    assert [near[0][1] for near in words[1]] == pytest.approx([0, 0], abs=1e-2)
    assert prompt_words(classifier, "dog", count=2)[1] != words[1]
    shared = moved(tiny_vit(), context="shared")
    assert prompt_words(shared, "jay") == prompt_words(shared, "dog")
    described = prompt_words(moved(tiny_vit(), part_prompts="learned_from_descriptions"), "jay", count=1)
    assert described is not None
    assert "jay" in [near[0][0] for near in described[0]], "the start is the words of the sentence"
    assert prompt_words(moved(tiny_vit(), part_prompts="descriptions"), "jay") is None


def test_prompts_are_called_by_what_they_say():
    def names(**options):
        classifier = moved(tiny_vit(), **options)
        return prompt_names(classifier, explain(classifier, photos(1))[0])

    assert names() == ["prompt 1", "prompt 2", "prompt 3"]
    assert names(part_prompts="descriptions") == ["beak", "wing", "tail"]
    assert names(head="alignment") == ["the part's own prompt"]
    assert names(head="visual") == ["no text"]


def test_mistakes_are_told(tmp_path):
    classifier, pictures = on_vit("cross"), photos(1)
    with pytest.raises(UserError, match=r"unknown class 'heron'; available: Baird's_Sparrow, cat, dog"):
        explain(classifier, pictures, "heron")
    predicted = classifier.predict(pictures[0], topk=1)[0][0]
    second = classifier.predict(pictures[0], topk=2)[1][0]
    assert explain(classifier, pictures, predicted)[0].against == second
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image .*no\.png"):
        explain(classifier, [tmp_path / "no.png"])
    with pytest.raises(UserError, match=r"cannot read the image .*gone\.png"):
        explain(classifier, [tmp_path / "gone.png"])
    assert class_index("Baird's Sparrow", classifier.names) == 0      # as it reads, not as its folder is called


@pytest.mark.parametrize("method", [ZeroShot, CoOp, LinearProbe])
def test_a_method_without_parts_says_what_can_be_explained(method):
    clip = tiny_vit()
    with pytest.raises(UserError, match="no image parts to explain; explain takes runs of .* such as method='xr_vlm"):
        parts_and_relations(method(clip, classes()))


@pytest.mark.parametrize("module", ["pooling", "relations"])
def test_numbers_that_are_not_finite_are_refused(clip, module):
    model = moved(clip)
    with torch.no_grad():
        for value in getattr(model.method, module).parameters():
            value.fill_(1e38)
    with pytest.raises(UserError, match=r"numbers that are not finite: adapt again with force=True"):
        explain(model, photos(1))


def late(clip, weight=0.7) -> Classifier:
    """A FILIP head that has moved away from its start."""
    torch.manual_seed(0)
    head = FILIP(clip, classes())
    head.prepare(clip, None)
    with torch.no_grad():
        head.weight.fill_(weight)
        head.map.add_(0.2 * torch.randn(head.map.shape))
    return Classifier(clip, head, ModelHeader.of(clip, partial(FILIP), classes()))


@pytest.mark.parametrize("tower", ["vit", "resnet", "timm class token", "timm convnext"])
def test_the_words_of_late_interaction_add_up(tower):
    classifier = late(IMAGE_KINDS[tower]().clip)
    pictures = photos(3, classifier.clip.transform.image_size)
    for picture, explanation in zip(pictures, explain(classifier, pictures, "dog"), strict=True):
        logits = classifier.method.logits(x := features(classifier, picture), classifier.class_features)[0]
        best, rival = NAMES.index(explanation.predicted), NAMES.index(explanation.against)
        assert best == logits.argmax()
        assert explanation.words[:4] == ("a", "photo", "of", "a")
        count = len(explanation.words)
        assert explanation.maps.shape[0] == count
        assert explanation.relations.shape == (2, count, len(NAMES))
        assert part_names(classifier, explanation) == list(explanation.words)
        assert len(prompt_names(classifier, explanation)) == 2
        prior = classifier.method.zero_shot.logits(x, classifier.class_features)[0]
        for attribution, value, added in ((explanation.logit, logits[best], prior[best]),
                                          (explanation.margin, logits[best] - logits[rival],
                                           prior[best] - prior[rival])):
            assert attribution.exact
            assert attribution.gap < 1e-4 * (1 + abs(attribution.value))
            assert attribution.value == pytest.approx(value.item(), abs=1e-4)
            assert attribution.added == pytest.approx(added.item(), abs=1e-4)
        assert explanation.logit.contributions[..., rival].abs().max() == 0
        assert explanation.margin.contributions[..., rival].abs().max() > 0


def test_the_map_of_a_word_is_highest_where_it_matches_best():
    classifier, picture = late(tiny_vit()), photos(1)[0]
    explanation = explain(classifier, [picture])[0]
    positions = classifier.method.positions(features(classifier, picture))[0]                  # (p, d)
    words = classifier.method.words[NAMES.index(explanation.predicted)]
    for word, seen in zip(words, explanation.maps, strict=False):
        cosines = torch.stack([position @ word for position in positions])
        assert int(seen.argmax()) == int(cosines[1:].argmax()), "behind the class token"
        torch.testing.assert_close(seen.flatten(), cosines[1:] - cosines.min(), rtol=1e-4, atol=1e-5)
