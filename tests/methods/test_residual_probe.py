from dataclasses import replace

import torch
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.methods import ResidualProbe, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit


def test_before_training_it_is_zero_shot(clip):
    bank = made_bank(clip, CLASSES, LABELS)
    x, zero_shot = features_of(bank), prepared(ZeroShot, clip)
    weighted = prepared(ResidualProbe, clip, bank)
    method = prepared(ResidualProbe, clip, bank, fit_prior=False)
    logits = method.logits(x, method.class_features(clip))
    assert torch.equal(logits, zero_shot.logits(x, zero_shot.class_features(clip)))
    assert torch.equal(weighted.logits(x, weighted.class_features(clip)), weighted.prior_weight * logits)
    assert logits.std(dim=1).min() > 0, "zero-shot says something"
    assert method.prompts == zero_shot.prompts == "names"


def test_what_is_learned_is_a_linear_layer_on_the_pooled_feature(clip):
    bank = made_bank(clip, CLASSES, LABELS)
    method, zero_shot = prepared(ResidualProbe, clip, bank, fit_prior=False), prepared(ZeroShot, clip)
    learned = {name: tuple(value.shape) for name, value in method.named_parameters() if value.requires_grad}
    assert learned == {"residual.weight": (3, clip.embed_dim), "residual.bias": (3,)}
    x = features_of(bank)
    with torch.no_grad():
        method.residual.weight.copy_(torch.arange(3.0 * clip.embed_dim).view(3, -1))
        method.residual.bias.copy_(torch.tensor([5.0, -1.0, 2.0]))
        added = method.logits(x, method.class_features(clip)) - zero_shot.logits(x, zero_shot.weights)
    expected = [[sum(float(x.pooled[i, k]) * (c * clip.embed_dim + k) for k in range(clip.embed_dim))
                 + (5.0, -1.0, 2.0)[c] for c in range(3)] for i in range(len(LABELS))]
    torch.testing.assert_close(added, torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_training_separates_what_zero_shot_confuses(clip):
    """Each class shows what the text says of the next one."""
    shown = features_of(made_bank(clip, CLASSES, (LABELS + 1) % 3, text=4.0))
    bank = bank_of(shown, LABELS)
    method = prepared(ResidualProbe, clip, bank)
    assert (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean() < 0.2
    fit(method, clip, bank, replace(method.recipe, learning_rate=0.1, batch_size=8), seed=1)
    assert (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean() > 0.9
    assert torch.equal(method.zero_shot.weights, prepared(ZeroShot, clip).weights), "the text stays as it is"


def test_the_text_follows_the_classes_given(clip):
    bank = made_bank(clip, CLASSES, LABELS)
    turned = class_text(("cat", "bird", "dog"), templates="two {} in a house.")
    method = prepared(ResidualProbe, clip, bank, classes=turned)
    before = prepared(ResidualProbe, clip, bank, classes=CLASSES)
    assert torch.allclose(method.class_features(clip), prepared(ZeroShot, clip, classes=method.classes).weights)
    assert not torch.allclose(method.class_features(clip), before.class_features(clip))
    x = Features(torch.eye(clip.embed_dim))
    assert method.logits(x, method.class_features(clip)).shape == (clip.embed_dim, 3)


def test_the_recipe_is_its_own(clip):
    recipe = ResidualProbe(clip, CLASSES).recipe
    assert (recipe.name, recipe.optimizer, recipe.epochs) == ("residual_probe", "adamw", 60)
