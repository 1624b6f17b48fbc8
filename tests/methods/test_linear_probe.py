import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, prepared
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from towers import hf_siglip, tiny_vit

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import LinearProbe
from xrvlm.methods.inputs import ImageInputs
from xrvlm.methods.linear_probe import LONE_STRENGTH, STRENGTHS, best_strength, folds, path


@pytest.fixture(scope="module")
def clip():
    return tiny_vit()


def noisy_bank(clip, labels=LABELS, seed=0, one_sided=False):
    """Features in which a class is a direction, and noise."""
    draws, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    wide = torch.randn(3, clip.unprojected_width, generator=fixed)[labels]
    wide = 5 * (wide + 3 * torch.randn(wide.shape, generator=draws))
    wide = wide.relu() if one_sided else wide
    pooled = F.normalize(wide @ torch.randn(clip.unprojected_width, clip.embed_dim, generator=fixed), dim=1)
    return bank_of(Features(pooled, unprojected=wide, mid_tokens=wide[:, None, :clip.image_width] + 9), labels)


def rooted(x):
    root = np.sign(x) * np.abs(x) ** 0.5
    return root / np.linalg.norm(root, axis=1, keepdims=True)


def united(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("inputs", "scaling", "scaled"), [
    ("unprojected", "root_l2", rooted), ("unprojected", "l2", united), ("unprojected", "none", lambda x: x),
    ("pooled", "standard", lambda x: (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)), ("pooled", "none", lambda x: x)])
def test_it_is_scikit_learns_logistic_regression(clip, inputs, scaling, scaled):
    bank = noisy_bank(clip)
    x = features_of(bank)
    raw = (x.pooled if inputs == "pooled" else x.unprojected).double().numpy()
    expected = LogisticRegression(C=2.0, max_iter=5000, tol=1e-8).fit(scaled(raw), LABELS.numpy())
    method = prepared(LinearProbe, clip, bank, inputs=inputs, scaling=scaling, strength=2.0)
    logits = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(logits.softmax(dim=1), torch.from_numpy(expected.predict_proba(scaled(raw))).float(),
                               rtol=0, atol=2e-3)


def test_two_classes_are_the_logistic_function(clip):
    labels = torch.arange(2).repeat(6)
    bank = noisy_bank(clip, labels)
    raw = rooted(features_of(bank).unprojected.double().numpy())
    expected = LogisticRegression(C=5.0, max_iter=5000, tol=1e-8).fit(raw, labels.numpy())
    (weight, bias), = path(torch.from_numpy(raw), labels, [5.0])
    found = (torch.from_numpy(raw) @ weight.T + bias).softmax(dim=1)
    torch.testing.assert_close(found, torch.from_numpy(expected.predict_proba(raw)), rtol=0, atol=2e-3)


def test_a_path_in_the_span_of_few_images_is_the_path_of_all_dimensions():
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 40, generator=draws).double(), torch.arange(3).repeat(4)
    for (weight, bias), strength in zip(path(x, y, STRENGTHS[:6]), STRENGTHS, strict=False):
        straight = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
        torch.testing.assert_close(weight, torch.from_numpy(straight.coef_), rtol=0, atol=2e-3)
        torch.testing.assert_close(bias, torch.from_numpy(straight.intercept_), rtol=0, atol=2e-3)


def test_one_image_of_each_of_many_classes_warns_of_nothing(recwarn):
    """scikit-learn takes as many classes as images for a regression."""
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(next(path(x, torch.arange(40), (1.0,)))[0]) == 40
    assert not recwarn.list


def test_folds_hold_out_each_image_once_and_never_the_only_one_of_a_class():
    y = torch.tensor([0] * 7 + [1] * 3 + [2])
    x = torch.arange(len(y))[:, None].double()
    splits = folds(x, y)
    assert len(splits) == 5
    held = torch.cat([rows[:, 0] for _, (rows, _) in splits]).sort().values
    assert held.tolist() == list(range(10))
    for (train, y_train), (rest, y_rest) in splits:
        assert len(train) + len(rest) == len(y)
        assert set(y_train.tolist()) == {0, 1, 2}
        assert F.one_hot(y_rest, 3).sum(dim=0)[1] <= 1
    assert folds(x[:3], torch.arange(3)) == []


def held_out_loss(splits, strength):
    return sum(-np.log(LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
                       .predict_proba(rest.numpy())[np.arange(len(held)), held.numpy()]).sum()
               for (x, y), (rest, held) in splits)


@pytest.mark.parametrize("with_val", [False, True])
def test_the_penalty_is_the_one_of_lowest_held_out_loss(clip, with_val):
    bank, val = noisy_bank(clip), noisy_bank(clip, seed=5) if with_val else None
    method = LinearProbe(clip, CLASSES)
    train = method.inputs.fit(bank)
    splits = folds(*train) if val is None else [(train, method.inputs.of(val))]
    losses = {strength: held_out_loss(splits, strength) for strength in STRENGTHS}
    best = min(losses, key=lambda strength: losses[strength])
    assert STRENGTHS[0] < best < STRENGTHS[-1], "the grid holds the minimum"
    assert best_strength(splits) == best
    method.prepare(clip, bank, val)
    expected, = path(*train, [best])
    torch.testing.assert_close(method.linear.weight.double(), expected[0], rtol=0, atol=1e-5)


def test_one_image_a_class_has_a_fixed_penalty(clip):
    bank = noisy_bank(clip, torch.arange(3))
    method = prepared(LinearProbe, clip, bank)
    expected, = path(*method.inputs.of(bank), [LONE_STRENGTH])
    torch.testing.assert_close(method.linear.weight.double(), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_root_is_taken_of_one_sided_features_alone(clip, one_sided):
    bank = noisy_bank(clip, one_sided=one_sided)
    inputs = ImageInputs(clip)
    found, labels = inputs.fit(bank)
    raw = features_of(bank).unprojected.double().numpy()
    assert torch.equal(labels, LABELS)
    torch.testing.assert_close(found, torch.from_numpy((rooted if one_sided else united)(raw)), rtol=0, atol=1e-6)
    again = ImageInputs(clip)
    again.load_state_dict(inputs.state_dict())
    torch.testing.assert_close(again.of(bank)[0], found)


@pytest.mark.parametrize("scaling", ["l2", "root_l2", "auto"])
def test_numbers_of_an_earlier_block_do_not_hide_the_pooled_feature(clip, scaling):
    inputs = ImageInputs(clip, "pooled+mid", scaling)
    bank = noisy_bank(clip)
    x = next(bank.in_order())[0]
    assert x.mid_tokens is not None
    x.mid_tokens.mul_(1000)
    inputs.fit(bank)
    pooled, mid = inputs(x).split([clip.embed_dim, clip.image_width], dim=1)
    assert torch.allclose(pooled.norm(dim=1), torch.ones(len(pooled)))
    assert torch.allclose(mid.norm(dim=1), torch.ones(len(mid)))


def test_a_model_in_which_the_earlier_block_hid_the_rest_is_refused(clip):
    probe = prepared(partial(LinearProbe, inputs="pooled+mid"), clip, noisy_bank(clip))
    before = {name: value for name, value in probe.state_dict().items() if "widths_of_each" not in name}
    with pytest.raises(RuntimeError, match="widths_of_each"):
        probe.load_state_dict(before)


def test_a_tower_without_a_projection_gives_the_pooled_feature():
    clip = hf_siglip().clip
    assert (clip.unprojected_width, ImageInputs(clip).inputs) == (0, "pooled")
    with pytest.raises(UserError, match="ends in no linear projection, .*: use inputs='pooled' or inputs='auto'"):
        LinearProbe(clip, CLASSES, inputs="unprojected")


@pytest.mark.parametrize(("options", "message"), [
    ({"inputs": "poled"}, "unknown inputs 'poled'; did you mean 'pooled'"),
    ({"scaling": "l1"}, "unknown scaling 'l1'"), ({"strength": 0.0}, "strength must be above 0 or null, found 0.0"),
    ({"strength": float("nan")}, "strength must be above 0")])
def test_wrong_options_are_told(clip, options, message):
    with pytest.raises(UserError, match=message):
        LinearProbe(clip, CLASSES, **options)


def test_a_model_of_revision_1_keeps_its_features(clip, tmp_path):
    """It read the pooled feature as it is; its header names no scaling."""
    bank, old = noisy_bank(clip), {"inputs": "pooled", "scaling": "none"}
    method = prepared(LinearProbe, clip, bank, **old)
    Classifier(clip, method, ModelHeader.of(clip, partial(LinearProbe, **old), CLASSES, "split")).save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["xrvlm"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}    # noqa: SIM118
    header["method"] |= {"revision": 1, "options": {"inputs": "pooled"}}
    save_file(tensors, tmp_path / "model.safetensors", {"xrvlm": json.dumps(header)})
    again, x = Classifier.load(tmp_path, clip).method, features_of(bank)
    torch.testing.assert_close(again.logits(x, again.class_features(clip)),
                               method.logits(x, method.class_features(clip)))
