"""One pass of the language side for several batches, on a method small enough to do it by hand."""

from dataclasses import replace

import pytest
import torch
from banks import bank_of
from small_fit import Source, Tower
from torch import nn
from towers import images, tiny_vit

from xrvlm.methods import XRVLM
from xrvlm.methods.base import Recipe
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit, training_order

RECIPE = Recipe("test", epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, weight_decay=0.0, warmup_epochs=0)


class TwoSided(nn.Module):
    """A language side and an image side; `passes` counts the first."""

    label, splits_batches = "two sides", False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text, self.image, self.passes = nn.Linear(3, 2), nn.Linear(4, 3, bias=False), 0

    def class_features(self, clip):
        self.passes += 1
        return self.text.weight.square()

    def logits(self, x, class_features):
        return self.image(x.pooled) @ class_features.T

    def loss(self, x, y, clip, *, label_smoothing=0.0):
        return nn.functional.cross_entropy(self.logits(x, self.class_features(clip)), y)


def trained(recipe, method=None):
    method = method or TwoSided()
    fit(method, Tower(), Source(), recipe, seed=1)
    return method


def test_five_batches_share_passes_by_threes():
    method = trained(replace(RECIPE, text_every=3))
    assert method.passes == 2
    assert method.class_features(None).shape == (2, 3), "and the method has its own again"
    assert method.passes == 3


def test_the_image_side_steps_every_time_and_the_text_side_by_the_sum_of_its_gradients():
    by_hand, rate = TwoSided(), RECIPE.learning_rate
    order = training_order(Source().labels, 1, 0, 8)
    for batches in (order[:3], order[3:]):
        summed = torch.zeros(2, 3)
        for x, y in Source().batches(batches, 0):
            loss = nn.functional.cross_entropy(by_hand.logits(x, by_hand.class_features(None)), y)
            image, text = torch.autograd.grad(loss, [by_hand.image.weight, by_hand.text.weight])
            by_hand.image.weight.data -= rate * image
            summed += text
        by_hand.text.weight.data -= rate * summed
    method = trained(replace(RECIPE, text_every=3))
    torch.testing.assert_close(method.image.weight, by_hand.image.weight)
    torch.testing.assert_close(method.text.weight, by_hand.text.weight)
    assert not torch.allclose(method.text.weight, trained(RECIPE).text.weight, atol=1e-4)


def test_one_batch_a_pass_is_the_plain_step():
    whole = replace(RECIPE, batch_size=40)
    torch.testing.assert_close(trained(whole).text.weight, trained(replace(whole, text_every=5)).text.weight)


class Penalised(TwoSided):
    """Its loss reads the weights of the language side beside the class features."""

    def loss(self, x, y, clip, *, label_smoothing=0.0):
        return super().loss(x, y, clip) + self.text.weight.square().sum()


class Plain(TwoSided):
    """The class features are a parameter themselves."""

    def class_features(self, clip):
        return self.text.weight


class Fixed(TwoSided):
    """Nothing is learned of the language side."""

    def class_features(self, clip):
        return self.text.weight.detach()


@pytest.mark.parametrize("kind", [Penalised, Plain])
def test_what_the_loss_reads_of_the_language_side_waits_too(kind):
    by_hand = kind()
    (x, y), = Source().batches(training_order(Source().labels, 1, 0, 40), 0)
    by_hand.loss(x, y, None).backward()
    method = trained(replace(RECIPE, batch_size=40, text_every=2), kind())
    moved = by_hand.text.weight - RECIPE.learning_rate * by_hand.text.weight.grad
    torch.testing.assert_close(method.text.weight, moved)
    several = trained(replace(RECIPE, text_every=3), kind())
    assert not torch.equal(several.text.weight, kind().text.weight)


def test_a_language_side_without_gradient_leaves_the_rest_as_it_was():
    plain, shared = trained(RECIPE, Fixed()), trained(replace(RECIPE, text_every=3), Fixed())
    assert torch.equal(plain.image.weight, shared.image.weight)
    assert torch.equal(shared.text.weight, Fixed().text.weight)


def test_a_failure_gives_the_method_its_own_class_features_back():
    class Failing(TwoSided):
        def loss(self, x, y, clip, *, label_smoothing=0.0):
            raise KeyboardInterrupt

    method = Failing()
    with pytest.raises(KeyboardInterrupt):
        fit(method, Tower(), Source(), replace(RECIPE, text_every=3), seed=1)
    assert "class_features" not in vars(method)


def test_the_text_tower_alone_runs_once_and_the_head_learns_in_every_step():
    clip = tiny_vit()
    method = XRVLM(clip, class_text(("jay", "red wren")), hidden=8, context="shared")
    bank = bank_of(clip.encode_image(images(40), method.needs), torch.arange(40) % 2)
    before = {name: value.clone() for name, value in method.named_parameters()}
    fit(method, clip, bank, replace(RECIPE, text_every=3), seed=1)
    head = method.relations.relations.text_space
    assert head.in_norm.num_batches_tracked == 5, "prompts enter the relation space in every step"
    assert "forward" not in vars(method.class_prompts)
    assert all(not torch.equal(value, before[name]) for name, value in method.named_parameters()
               if value.abs().max() > 0), "all of them learn"
