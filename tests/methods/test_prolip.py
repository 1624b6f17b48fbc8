import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, bank_of, prepared
from towers import IMAGE_KINDS, images, tiny_resnet, tiny_vit

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import ProLIP, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.training.fit import fit

LABELS = torch.arange(3).repeat(4)


@pytest.fixture(scope="module", params=[tiny_vit, tiny_resnet], ids=["vit", "resnet"])
def clip(request):
    return request.param()


@pytest.fixture(scope="module")
def bank(clip):
    return bank_of(clip.encode_image(images(12, clip.transform.image_size), {"pooled", "unprojected"}), LABELS)


def test_it_starts_as_zero_shot(clip, bank):
    method, zero_shot = prepared(ProLIP, clip, bank), prepared(ZeroShot, clip)
    expected = probabilities(zero_shot, clip, bank)
    torch.testing.assert_close(probabilities(method, clip, bank), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-4, "the images differ"
    assert method.prompts == "names"


def test_the_loss_by_hand(clip, bank):
    """A projection that reads two numbers, at a distance from its start that is known."""
    method = prepared(ProLIP, clip, bank, strength=0.6)
    assert method.pull.item() == pytest.approx(0.6 / 4), "by the shots"
    with torch.no_grad():
        method.zero_shot.weights.copy_(torch.eye(16)[:3])
        for value in (method.projection, method.start, method.bias):
            value.zero_()
        method.projection[0, 0], method.projection[1, 1], method.start[1, 2] = 2.0, 3.0, 0.5
        method.bias[1] = 1.0
    u = torch.zeros(1, len(method.projection))
    u[0, :2] = torch.tensor([2.0, 2 / 3])                    # (4, 2), with the bias (4, 3), of unit norm (0.8, 0.6)
    x = Features(torch.zeros(1, 16), unprojected=u)
    logits = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(logits, clip.logit_scale * torch.tensor([[0.8, 0.6, 0.0]]))
    pulled = 0.15 * (2.0 ** 2 + 3.0 ** 2 + 0.5 ** 2)
    expected = F.cross_entropy(logits, torch.tensor([1])).item() + pulled
    assert method.loss(x, torch.tensor([1]), clip).item() == pytest.approx(expected, rel=1e-5)
    smoothed = F.cross_entropy(logits, torch.tensor([1]), label_smoothing=0.2).item() + pulled
    assert method.loss(x, torch.tensor([1]), clip, label_smoothing=0.2).item() == pytest.approx(smoothed, rel=1e-5)


def test_the_projection_alone_is_learned_and_the_pull_holds_it(clip, bank):
    before = clip.state_hash()
    free, held = prepared(ProLIP, clip, bank, strength=0.0), prepared(ProLIP, clip, bank, strength=1e4)
    assert [name for name, value in free.named_parameters() if value.requires_grad] == ["projection"]
    losses = fit(free, clip, bank, free.recipe, seed=1).losses
    assert losses[-1]["loss"] < losses[0]["loss"]
    fit(held, clip, bank, held.recipe, seed=1)
    moved = (free.projection - free.start).norm()
    assert moved > 0
    assert (held.projection - held.start).norm() < 0.1 * moved
    assert torch.equal(free.start, clip.image_projection()[0])
    assert torch.equal(free.bias, clip.image_projection()[1])
    assert clip.state_hash() == before


def test_a_saved_model_labels_images(clip, bank, tmp_path):
    method = prepared(ProLIP, clip, bank)
    fit(method, clip, bank, method.recipe, seed=1)
    model = Classifier(clip, method, ModelHeader.of(clip, ProLIP, CLASSES))
    loaded = Classifier.load(model.save(tmp_path), clip)
    batch = images(12, clip.transform.image_size)
    torch.testing.assert_close(loaded.probabilities(batch), probabilities(method, clip, bank), rtol=1e-4, atol=1e-5)


def test_a_tower_without_a_projection_is_told():
    with pytest.raises(UserError, match="ends in no linear projection .* prolip has nothing to train"):
        ProLIP(IMAGE_KINDS["hf siglip"]().clip, CLASSES)


def test_bad_options_are_told():
    with pytest.raises(UserError, match="strength must be at least 0, found -1"):
        ProLIP(tiny_vit(), CLASSES, strength=-1.0)
