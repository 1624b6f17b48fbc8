import pytest
import torch
from banks import bank_of, features_of
from towers import images, tiny_vit

from xrvlm.methods import XRVLM, XRVLMPlus
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text

NAMES = ("jay", "red wren", "kite")


@pytest.mark.parametrize("make", [XRVLM, XRVLMPlus])
def test_what_depends_on_the_classes_alone_is_computed_once(make, monkeypatch):
    clip = tiny_vit()
    method = make(clip, class_text(NAMES))
    bank = bank_of(clip.encode_image(images(12), method.needs), torch.arange(12) % 3)
    method.prepare(clip, bank)
    calls, of_prompts = [], method.relations.of_prompts
    monkeypatch.setattr(method.relations, "of_prompts", lambda features: calls.append(1) or of_prompts(features))
    in_order = bank.in_order
    monkeypatch.setattr(bank, "in_order", lambda batch_size=256: in_order(5))    # three batches
    found = probabilities(method, clip, bank)
    assert len(calls) == 1
    with torch.no_grad():
        x = features_of(bank_of(clip.encode_image(images(12), method.needs), bank.labels))
        expected = method.logits(x, method.class_features(clip)).softmax(dim=1)
    assert found.shape == (12, 3)
    assert torch.allclose(found, expected, atol=1e-6)
