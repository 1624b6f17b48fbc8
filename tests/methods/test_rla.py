import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared
from towers import IMAGE_KINDS

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import RLA, ZeroShot
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit


def test_the_loss_by_hand(clip):
    """A map that reads two numbers, at a distance from the identity that is known."""
    method = prepared(RLA, clip, made_bank(clip, CLASSES, LABELS), strength=0.6)
    with torch.no_grad():
        method.zero_shot.weights.copy_(torch.eye(16)[:3])
        method.projection[0, 0], method.projection[0, 1] = 3.0, 2.0
    x = Features(torch.zeros(1, 16))
    x.pooled[0, :2] = torch.tensor([0.8, 0.6])               # to (2.4, 2.2)
    length = (2.4 ** 2 + 2.2 ** 2) ** 0.5
    logits = method.logits(x, method.class_features(clip))
    torch.testing.assert_close(logits, clip.logit_scale * torch.tensor([[2.4, 2.2, 0.0]]) / length)
    pulled = 0.6 / 8 * (2.0 ** 2 + 2.0 ** 2)                 # 8 shots
    for smoothing in (0.0, 0.2):
        expected = F.cross_entropy(logits, torch.tensor([1]), label_smoothing=smoothing).item() + pulled
        found = method.loss(x, torch.tensor([1]), clip, label_smoothing=smoothing).item()
        assert found == pytest.approx(expected, rel=1e-5)


def test_it_starts_as_zero_shot_and_learns_what_the_text_does_not_tell(clip):
    """Each class shows the next one's text."""
    shown = made_bank(clip, CLASSES, (LABELS + 1) % 3, text=2.0)
    bank = bank_of(features_of(shown), LABELS)
    method, zero_shot = prepared(RLA, clip, bank, strength=0.01), prepared(ZeroShot, clip)
    torch.testing.assert_close(probabilities(method, clip, bank), probabilities(zero_shot, clip, bank))
    held = prepared(RLA, clip, bank, strength=1e4)
    assert [name for name, value in method.named_parameters() if value.requires_grad] == ["projection"]
    for each in (method, held):
        fit(each, clip, bank, each.recipe, seed=1)
    accuracy = (probabilities(method, clip, bank).argmax(dim=1) == LABELS).float().mean()
    assert accuracy > (probabilities(zero_shot, clip, bank).argmax(dim=1) == LABELS).float().mean() + 0.3
    assert (held.projection - held.start).norm() < 0.1 * (method.projection - method.start).norm()
    assert torch.equal(method.start, torch.eye(16))


def test_the_map_serves_new_classes(clip):
    method = prepared(RLA, clip, made_bank(clip, CLASSES, LABELS))
    with torch.no_grad():
        method.projection[0, 1] = 2.0
    turned, x = method.for_classes(clip, class_text(("emu", "kite"))), features_of(made_bank(clip, CLASSES, LABELS))
    text = prepared(ZeroShot, clip, classes=class_text(("emu", "kite"))).weights
    mapped = F.normalize(x.pooled @ method.projection, dim=1)
    torch.testing.assert_close(turned.logits(x, turned.class_features(clip)), clip.logit_scale * mapped @ text.T)


def test_a_tower_without_a_projection_will_do():
    tower = IMAGE_KINDS["hf siglip"]().clip
    method, bank = RLA(tower, CLASSES), made_bank(tower, CLASSES, LABELS)
    method.prepare(tower, bank)
    torch.testing.assert_close(probabilities(method, tower, bank),
                               probabilities(prepared(ZeroShot, tower), tower, bank))


def test_bad_options_are_told(clip):
    with pytest.raises(UserError, match="strength must be at least 0, found -1"):
        RLA(clip, CLASSES, strength=-1.0)
