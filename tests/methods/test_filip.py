import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, LABELS, features_of, made_bank, prepared

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.methods import FILIP, ZeroShot, filip
from xrvlm.methods.base import Recipe, probabilities
from xrvlm.methods.filip import class_words
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit

SEVERAL = class_text(CLASSES.names, descriptions={
    "bird": ["a bird with a red beak.", "it has wings."], "dog": "a dog.", "cat": "a cat, black and white"})


def late_interaction(positions, words) -> float:
    """The score of one photo and one class, cosine by cosine."""
    def cosine(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True)) / (
            sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5)

    of_positions = [max(cosine(position, word) for word in words) for position in positions]
    of_words = [max(cosine(position, word) for position in positions) for word in words]
    return (sum(of_positions) / len(of_positions) + sum(of_words) / len(of_words)) / 2


def test_the_score_by_hand(clip):
    """Two positions at right angles, of any length; the first class has two words, the second one."""
    method = prepared(FILIP, clip, classes=class_text(("bird", "dog")))
    axes = torch.eye(clip.embed_dim)
    method.words = torch.stack([torch.stack([axes[0], 0.6 * axes[0] + 0.8 * axes[1]]),
                                torch.stack([-axes[0], torch.zeros(clip.embed_dim)])])
    method.there = torch.tensor([[True, True], [True, False]])
    x = Features(axes[:1], torch.stack([5 * axes[0], 0.5 * axes[1]])[None])
    first = ((1 + 0.8) / 2 + (1 + 0.8) / 2) / 2
    second = ((-1 + 0) / 2 + 0) / 2      # the missing word would be the best of the first position
    torch.testing.assert_close(method.score(x), torch.tensor([[first, second]]))


def test_the_logits_are_zero_shots_and_the_weighted_score(clip):
    bank = made_bank(clip, SEVERAL, LABELS[:6], text=1.0)
    method, x = prepared(FILIP, clip, bank, classes=SEVERAL), features_of(bank)
    zero_shot = prepared(ZeroShot, clip, classes=SEVERAL)
    base = zero_shot.logits(x, zero_shot.weights)
    assert torch.equal(method.logits(x, method.class_features(clip)), base), "before training"
    with torch.no_grad():
        method.weight.fill_(0.5)
        method.map.copy_(0.2 * torch.randn(method.map.shape, generator=torch.Generator().manual_seed(0)))
    mapped = (x.tokens + x.tokens @ method.map).tolist()
    words = [class_words(clip, SEVERAL, label).features.tolist() for label in range(3)]
    assert [len(each) for each in words] == [9, 2, 5]
    expected = torch.tensor([[late_interaction(photo, each) for each in words] for photo in mapped])
    torch.testing.assert_close(method.logits(x, zero_shot.weights), base + 0.5 * clip.logit_scale * expected,
                               rtol=1e-4, atol=1e-4)


def test_chunks_change_nothing(clip, monkeypatch):
    x = features_of(made_bank(clip, CLASSES, LABELS))
    method = prepared(FILIP, clip)
    whole = method.score(x)
    monkeypatch.setattr(filip, "CELLS", 2 * 17 * method.there.numel())
    torch.testing.assert_close(method.score(x), whole)


def test_it_learns_what_stands_at_the_positions(clip):
    """Patterns that no text knows: the pooled feature says nothing, A turns the patterns to the words."""
    bank, other = (made_bank(clip, CLASSES, LABELS, parts=2.0, seed=seed) for seed in (0, 5))
    method = prepared(FILIP, clip, bank)
    fit(method, clip, bank, Recipe("test", epochs=30, batch_size=8, optimizer="adamw", learning_rate=0.03), seed=1)
    right = (probabilities(method, clip, other).argmax(dim=1) == LABELS).float().mean()
    alone = prepared(ZeroShot, clip)
    assert right > 0.9
    assert (probabilities(alone, clip, other).argmax(dim=1) == LABELS).float().mean() < 0.6


def test_without_labels_nothing_is_learned(clip):
    method = prepared(FILIP, clip, labelled=False, weight=0.3)
    assert method.learned_parameters == 0
    assert not method.learns
    x = features_of(made_bank(clip, CLASSES, LABELS))
    positions = F.normalize(x.tokens, dim=-1)
    torch.testing.assert_close(method.positions(x), positions)
    added = method.logits(x, method.zero_shot.weights) - method.zero_shot.logits(x, method.zero_shot.weights)
    torch.testing.assert_close(added, 0.3 * clip.logit_scale * method.score(x), rtol=1e-3, atol=1e-4)


def test_a_weight_that_cannot_be_is_refused(clip):
    with pytest.raises(UserError, match=r"weight must be above 0, found 0"):
        FILIP(clip, CLASSES, weight=0)
