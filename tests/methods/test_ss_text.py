import numpy as np
import pytest
import torch
from banks import CLASSES, LABELS, bank_of, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import SSText
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import class_text

UNEQUAL = torch.tensor([0, 0, 0, 1])     # the third class has no image


def unit(row) -> np.ndarray:
    return np.asarray(row) / np.linalg.norm(row)


def wide(rows, clip) -> torch.Tensor:
    """The few numbers of `rows` as features."""
    return torch.nn.functional.pad(torch.tensor(rows), (0, clip.embed_dim - len(rows[0])))


@pytest.mark.parametrize("close_gap", [True, False])
def test_unequal_shots_by_hand(clip, close_gap):
    bank = made_bank(clip, CLASSES, UNEQUAL)
    method = prepared(SSText, clip, bank, text_weight=2.0, close_gap=close_gap)
    images, text = features_of(bank).pooled.double().numpy(), method.weights.double().numpy()
    first = (images[0] + images[1] + images[2]) / 3
    gap = ((first - text[0]) + (images[3] - text[1])) / 2 if close_gap else 0.0
    expected = [unit(2 * unit(text[0] + gap) + images[0] + images[1] + images[2]),
                unit(2 * unit(text[1] + gap) + images[3]), unit(text[2] + gap)]
    found = method.class_features(clip)
    torch.testing.assert_close(found.double(), torch.tensor(np.array(expected)), rtol=1e-4, atol=1e-5)
    x = features_of(made_bank(clip, CLASSES, LABELS, seed=5))
    torch.testing.assert_close(method.logits(x, found), clip.logit_scale * x.pooled @ found.T)


def test_the_fewer_its_shots_the_nearer_a_class_is_to_its_text(clip):
    bank = made_bank(clip, CLASSES, torch.tensor([0] * 9 + [1]))
    method = prepared(SSText, clip, bank, close_gap=False)
    near = (method.class_features(clip) * method.weights).sum(dim=1)
    assert near[0] < near[1] < near[2]
    assert near[2].item() == pytest.approx(1.0)


def test_a_class_without_shots_is_found_although_photos_lie_far_from_all_text(clip):
    """Photos share one direction, text another; each class has its own besides, the same in both."""
    def photos(labels, seed):
        noise = 0.05 * torch.randn(len(labels), clip.embed_dim, generator=torch.Generator().manual_seed(seed))
        shown = wide([[1.0, 0.0]], clip) + 0.5 * torch.eye(clip.embed_dim)[labels + 2] + noise
        return bank_of(Features(torch.nn.functional.normalize(shown, dim=1)), labels)

    test = photos(LABELS, 1)
    right = {}
    for close_gap in (True, False):
        method = SSText(clip, CLASSES, close_gap=close_gap)
        text = torch.nn.functional.normalize(wide([[0.0, 1.0]], clip) + 0.5 * torch.eye(clip.embed_dim)[2:5], dim=1)
        method.encoded = lambda clip, classes, text=text: text
        method.prepare(clip, photos(UNEQUAL, 0))
        right[close_gap] = (probabilities(method, clip, test).argmax(dim=1) == LABELS)[LABELS == 2].float().mean()
    assert right[True] == 1
    assert right[False] == 0


def test_new_classes_are_their_text_and_old_ones_keep_their_shots(clip):
    method = prepared(SSText, clip, made_bank(clip, CLASSES, LABELS, text=1.0))
    turned = method.for_classes(clip, class_text(("emu", "cat", "bird")))
    before, after = method.class_features(clip), turned.class_features(clip)
    torch.testing.assert_close(after[1:], before[[2, 0]])
    torch.testing.assert_close(after[0], torch.nn.functional.normalize(turned.weights[0] + method.gap, dim=0))
    assert len(method.class_features(clip)) == 3


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_bad_options_are_told(clip, value):
    with pytest.raises(UserError, match=f"text_weight must be above 0, .*found {value}"):
        SSText(clip, CLASSES, text_weight=value)
