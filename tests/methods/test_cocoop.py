from dataclasses import replace

import pytest
import torch
from banks import CLASSES, features_of, made_bank
from zoo import SHORT

from xrvlm.backbones.base import Features
from xrvlm.distributed import seeded
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.inference.explain import explain
from xrvlm.methods import CoCoOp, CoOp
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit


def made(clip, **options) -> CoCoOp:
    with seeded(1, "initial weights"):
        return CoCoOp(clip, CLASSES, **options)


def test_the_network_by_hand(clip):
    """Two hidden units, one of which is below zero."""
    method = made(clip, reduction=8)
    first, _, last = method.shift
    with torch.no_grad():
        for parameter in method.shift.parameters():
            parameter.zero_()
        first.weight[0, 0], first.bias[0] = 2.0, 0.1
        first.weight[1, 1], first.bias[1] = 5.0, -3.5
        last.weight[3], last.bias[:] = torch.tensor([10.0, 7.0]), 0.25
    x = torch.zeros(1, clip.embed_dim)
    x[0, :2] = torch.tensor([0.8, 0.6])
    expected = torch.full((1, clip.text_width), 0.25)
    expected[0, 3] = 10.0 * (2.0 * 0.8 + 0.1) + 7.0 * 0.0 + 0.25           # 5 * 0.6 - 3.5 is below zero
    torch.testing.assert_close(method.shift(x).detach(), expected)


def test_each_image_has_the_prompts_of_its_own_context(clip):
    method = made(clip)
    x = features_of(made_bank(clip, CLASSES, torch.arange(3)))
    logits = method.logits(x, method.class_features(clip)).detach()
    start = clip.embed_words("a photo of a")                               # (4, w)
    layout = clip.layout(CLASSES.names, 4)
    for image, pooled in enumerate(x.pooled):
        shifted = start + method.shift(pooled).detach()                    # the same for every vector
        prompts = clip.encode_prompts(shifted[None, None], layout)[0]      # (c, d)
        torch.testing.assert_close(logits[image], clip.logit_scale * prompts @ pooled, rtol=1e-4, atol=1e-4)


def test_an_image_that_shifts_nothing_has_coops_prompts(clip):
    method, coop = made(clip), CoOp(clip, CLASSES, context_words="a photo of a")
    x = features_of(made_bank(clip, CLASSES, torch.arange(3)))
    before = method.logits(x, method.class_features(clip))
    with torch.no_grad():
        for parameter in method.shift.parameters():
            parameter.zero_()
    after = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(after, coop.logits(x, coop.class_features(clip)), rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-3


def test_sizes_and_recipe_are_the_papers(clip):
    method = made(clip)
    assert {name: tuple(value.shape) for name, value in method.named_parameters()} == {
        "context.shared": (1, 1, 4, clip.text_width), "shift.0.weight": (clip.embed_dim // 16, clip.embed_dim),
        "shift.0.bias": (clip.embed_dim // 16,), "shift.2.weight": (clip.text_width, clip.embed_dim // 16),
        "shift.2.bias": (clip.text_width,)}
    assert torch.equal(method.context.vectors[0, 0], clip.embed_words("a photo of a"))
    assert (method.recipe.epochs, method.recipe.batch_size, method.recipe.learning_rate) == (10, 2, 2e-3)


def test_it_learns_to_read_the_image(clip):
    bank = made_bank(clip, CLASSES, torch.arange(3).repeat(4), text=0.5)
    method = made(clip, reduction=2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    losses = fit(method, clip, bank, replace(SHORT, epochs=8, batch_size=4, learning_rate=0.02), seed=1).losses
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert all(not torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_memory_is_bounded_by_classes_and_nothing_else_changes(clip):
    """The tower takes classes in turns where the images are many: as the text parts of other methods."""
    method = made(clip)
    x = features_of(made_bank(clip, CLASSES, torch.arange(3).repeat(120)))
    with torch.no_grad():
        many = method.logits(x, method.class_features(clip))
        few = torch.cat([method.logits(Features(rows), method.class_features(clip)) for rows in x.pooled.split(7)])
    torch.testing.assert_close(many, few, rtol=1e-4, atol=1e-4)


def test_new_classes_get_the_context_of_the_image_too(clip):
    method = made(clip)
    x = features_of(made_bank(clip, CLASSES, torch.arange(3)))
    turned = method.for_classes(clip, class_text(("cat", "house")))
    logits = turned.logits(x, turned.class_features(clip))
    own = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(logits[:, 0], own[:, 2], rtol=1e-4, atol=1e-4)
    assert logits.shape == (3, 2)


def test_what_reads_class_features_says_so(clip, tmp_path):
    method = made(clip)
    bank = made_bank(clip, CLASSES, torch.arange(3))
    classifier = Classifier(clip, method, ModelHeader.of(clip, CoCoOp, CLASSES))
    loaded = Classifier.load(classifier.save(tmp_path), clip)
    assert torch.equal(loaded.from_features(features_of(bank)), probabilities(method, clip, bank))
    with pytest.raises(UserError, match="^CoCoOp has no image parts to explain"):
        explain(classifier, [])


def test_batches_share_no_pass_of_the_language_side(clip):
    bank = made_bank(clip, CLASSES, torch.arange(3).repeat(4))
    with pytest.raises(UserError, match="^CoCoOp computes class features for every image, .* text_every=1"):
        fit(made(clip), clip, bank, replace(SHORT, text_every=2), seed=1)


@pytest.mark.parametrize("reduction", [0, 17])
def test_a_bad_width_is_told(clip, reduction):
    with pytest.raises(UserError, match=f"reduction must be from 1 to the feature dimension of .*, 16; found "
                                        f"{reduction}"):
        made(clip, reduction=reduction)
