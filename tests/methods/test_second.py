"""Methods on a tower with a second one: AMU-Tuning by hand, and what every method that reads it must keep."""

from functools import partial
from itertools import islice

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from slow import slow
from towers import IMAGE_KINDS, tiny_vit
from zoo import SHORT, classes

from xrvlm.backbones.base import Features
from xrvlm.backbones.composed.look import second_look
from xrvlm.backbones.composed.pair import paired
from xrvlm.distributed import seeded
from xrvlm.errors import UserError
from xrvlm.features.bank import FeatureBank
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.inference.explain import explain
from xrvlm.inference.export import export_onnx
from xrvlm.methods import registry
from xrvlm.methods.amu_tuning import AMUTuning
from xrvlm.methods.inputs import ImageInputs
from xrvlm.methods.registry import check_second_is_read
from xrvlm.training.fit import fit

READERS = {
    "amu_tuning": ("amu_tuning", {}), "linear_probe": ("linear_probe", {}),
    "tip_adapter": ("tip_adapter", {"inputs": "pooled+second", "scaling": "auto"}),
    "gda": ("gda", {"inputs": "second"}), "lp_plus_plus": ("lp_plus_plus", {"inputs": "unprojected+second"}),
    "xr_vlm": ("xr_vlm", {"hidden": 8}), "xr_vlm alignment": ("xr_vlm", {"head": "alignment", "image_parts": 3}),
    "xr_vlm_plus": ("xr_vlm_plus", {"image_parts": 3, "pairs": 4}),
}
NEEDS = {"pooled", "tokens", "mid_tokens", "unprojected", "second"}


@pytest.fixture(scope="module")
def pair():
    return paired(tiny_vit(), IMAGE_KINDS["timm efficientnet"]().clip)


@pytest.fixture(scope="module")
def bank(pair):
    return encoded(pair)


def encoded(clip) -> FeatureBank:
    with seeded("bank"):
        labels, size = torch.arange(4).repeat(4), clip.transform.image_size
        images = torch.randn(4, 3, size, size)[labels] + 0.5 * torch.randn(16, 3, size, size)
    x = clip.encode_image(images, NEEDS)
    shard = {name: value[:, None] for name, value in vars(x).items() if value is not None}
    return FeatureBank([shard], 16, tuple(f"{i}.png" for i in range(16)), labels, views=0, seed=1)


def made(name, clip, bank):
    method, options = READERS[name]
    factory = registry.find(method, **options)
    with seeded(1, "initial weights"):
        model = factory(clip, classes())
    model.prepare(clip, bank)
    fit(model, clip, bank, SHORT, seed=1)
    return Classifier(clip, model, ModelHeader.of(clip, factory, classes()))


def whole(bank) -> Features:
    return bank.select(torch.arange(16), torch.zeros(16, dtype=torch.long))


@pytest.mark.parametrize("name", READERS)
def test_what_it_says_depends_on_the_second_tower_and_is_saved_whole(name, pair, bank, tmp_path):
    model, x = made(name, pair, bank), whole(bank)
    said = model.from_features(x)
    changed = Features(**vars(x) | {"second": x.second.flip(0)})
    assert not torch.allclose(said, model.from_features(changed), atol=1e-4)
    again = Classifier.load(model.save(tmp_path / "model.safetensors"), pair)
    assert torch.equal(again.from_features(x), said)


@pytest.mark.parametrize("name", ["amu_tuning", *slow("xr_vlm_plus")])
def test_a_graph_holds_both_towers(name, pair, bank, tmp_path):
    model = made(name, pair, bank)
    path = export_onnx(model, tmp_path / "model.onnx")
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    said = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {
        "images": batch.numpy()})
    np.testing.assert_allclose(said[0], model.probabilities(batch).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("use", ["parts", *slow("average")])
def test_a_graph_looks_again(use, tmp_path):
    clip = second_look(tiny_vit(), 2, use=use)
    bank = encoded(clip)
    model = made("linear_probe", clip, bank)
    path = export_onnx(model, tmp_path / "model.onnx")
    batch = F.interpolate(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)), 64)
    said = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {
        "images": batch.numpy()})
    np.testing.assert_allclose(said[0], model.probabilities(batch).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["xr_vlm", "xr_vlm_plus"])
def test_the_second_tower_is_a_part_of_the_explanation(name, pair, bank):
    from PIL import Image

    model = made(name, pair, bank)
    found, = explain(model, [Image.new("RGB", (50, 40), "red")])
    parts = {"xr_vlm": 4 + 1, "xr_vlm_plus": 1 + 3 + 1 + 1}[name]
    names = [name for name, _ in zip(model.method.pooling.names(), found.maps, strict=False)]
    assert (len(names), names[-1]) == (parts, "second tower")
    assert found.maps[-1].min() == found.maps[-1].max() > 0, "it has no place in the photo"
    assert found.logit.contributions.shape[1] == parts
    assert found.logit.gap < 0.05 * max(1, abs(found.logit.value))


@pytest.mark.parametrize("name", ["xr_vlm", "xr_vlm_plus"])
def test_a_second_look_is_called_so(name):
    clip = second_look(tiny_vit(), 2, use="parts")
    pooling = made(name, clip, encoded(clip)).method.pooling
    assert "second look" in islice(pooling.names(), 6) and "second tower" not in islice(pooling.names(), 6)


def test_amu_tuning_by_hand(pair):
    """Zero-shot less the more its logits look like noise; W starts at the centred mean features of the classes."""
    labels = torch.tensor([0, 0, 1, 2, 3])
    with seeded("by hand"):
        pooled, second = F.normalize(torch.randn(5, pair.embed_dim), dim=1), torch.randn(5, pair.second_width).abs()
    bank = FeatureBank([{"pooled": pooled[:, None], "second": second[:, None]}], 5, tuple("abcde"), labels, 0, 1)
    method = AMUTuning(pair, classes(), alpha=2.0, power=0.5, fit_prior=False)
    method.prepare(pair, bank)
    x = Features(pooled, second=second)
    found = method.logits(x, method.class_features(pair)).detach().numpy()
    root = np.sqrt(second.numpy())                               # one-sided features are rooted
    a = root / np.linalg.norm(root, axis=1, keepdims=True)
    means = np.stack([(a - a.mean(axis=0))[labels == label].mean(axis=0) for label in range(4)])
    w = means / np.linalg.norm(means, axis=1, keepdims=True)
    for image in range(5):
        z = method.zero_shot.logits(x, method.zero_shot.weights)[image].numpy()
        kurtosis = ((z - z.mean()) ** 4).mean() / z.var() ** 2
        expected = z + 2 * np.sqrt(3 / kurtosis) * float(pair.logit_scale) * (w @ a[image])
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-3)
    alone = F.cross_entropy(method.of_second(x), labels)
    plain = F.cross_entropy(torch.tensor(found), labels)
    torch.testing.assert_close(method.loss(x, labels, pair), plain + alone)


def test_inputs_of_two_towers_are_scaled_each_by_itself(pair, bank):
    inputs = ImageInputs(pair, "pooled+second", "l2")
    found, _ = inputs.fit(bank)
    first, second = found[:, :pair.embed_dim], found[:, pair.embed_dim:]
    for part in (first, second):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(16, dtype=torch.double))
    assert ImageInputs(pair).chosen == ["unprojected", "second"]
    assert ImageInputs(pair, second=False).chosen == ["unprojected"]
    assert ImageInputs(tiny_vit()).chosen == ["unprojected"]


def test_a_second_tower_that_is_not_there_or_not_read_is_told(pair):
    with pytest.raises(UserError, match="reads a second tower, and there is none"):
        registry.find("linear_probe", inputs="second")(tiny_vit(), classes())
    with pytest.raises(UserError, match="adds the features of a second tower"):
        registry.find("amu_tuning")(tiny_vit(), classes())
    for name, reads in (("zero_shot", False), ("tip_adapter", False), ("xr_vlm_plus", True)):
        method = registry.find(name)(pair, classes())
        check = partial(check_second_is_read, method.needs, name)
        if reads:
            check()
        else:
            with pytest.raises(UserError, match=f"{name} reads nothing of a second tower"):
                check()
