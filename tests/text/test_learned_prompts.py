"""Learned context of every kind: what is shared, what it starts from, and what the tower is given."""

import pytest
import torch

from xrvlm.errors import UserError
from xrvlm.text.learned_prompts import ContextPrompts

NAMES = ("dog", "Baird's_Sparrow", "cat")


def shapes(prompts):
    return {name: tuple(vectors.shape[:3]) for name, vectors in prompts.named_parameters()}


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {"specific": (2, 3, 7)}),
    ({"context": "shared"}, {"shared": (2, 1, 7)}),
    ({"context": "shared_then_specific"}, {"shared": (2, 1, 3), "specific": (2, 3, 4)}),
    ({"context": "shared_then_specific", "shared_length": 6}, {"shared": (2, 1, 6), "specific": (2, 3, 1)}),
])
def test_what_is_learned(clip, options, expected):
    prompts = ContextPrompts(clip, NAMES, text_parts=2, length=7, **options)
    assert shapes(prompts) == expected
    assert prompts(clip).shape == (2, 3, clip.embed_dim)
    prompts(clip)[..., 0].sum().backward()
    assert all(vectors.grad.abs().min() > 0 for vectors in prompts.parameters())


@torch.no_grad()
def test_the_shared_vectors_stand_before_those_of_a_class(clip):
    prompts = ContextPrompts(clip, NAMES, text_parts=2, length=5, context="shared_then_specific", shared_length=2)
    whole = ContextPrompts(clip, NAMES, text_parts=2, length=5)
    whole.specific[:, :, :2] = prompts.shared
    whole.specific[:, :, 2:] = prompts.specific
    torch.testing.assert_close(prompts(clip), whole(clip))
    assert (prompts.layout.shared, whole.layout.shared) == (2, 0), "what the tower computes once for all classes"


@torch.no_grad()
def test_a_shared_context_is_that_of_each_class(clip):
    shared, whole = (ContextPrompts(clip, NAMES, length=4, context=kind) for kind in ("shared", "specific"))
    whole.specific.copy_(shared.shared.expand_as(whole.specific))
    torch.testing.assert_close(shared(clip), whole(clip))


@pytest.mark.parametrize("options", [
    {"context": "specific"}, {"context": "shared"}, {"context": "shared_then_specific"},
    {"context": "shared_then_specific", "shared_length": 3}])
def test_words_fill_the_context_from_the_front(clip, options):
    words = clip.embed_words("a photo of a")
    prompts = ContextPrompts(clip, NAMES, text_parts=2, length=9, words="a photo of a", **options)
    found = torch.cat([vectors.expand(2, 3, -1, -1) for vectors in prompts.parameters()], dim=2)
    assert torch.equal(found, words.expand(2, 3, 4, -1))
    expected = clip.encode_text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(prompts(clip), expected.expand(2, 3, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"context": "both"}, "unknown context 'both'; available: shared, shared_then_specific, specific"),
    ({"shared_length": 2}, "shared_length=2 needs context='shared_then_specific', found .*='specific'"),
    ({"context": "shared", "shared_length": 2}, "shared_length=2 needs .*, found context='shared';"),
    ({"context": "shared_then_specific", "shared_length": 0}, "from 1 to 15, so that some of the 16 .*, found 0"),
    ({"context": "shared_then_specific", "shared_length": 16}, "from 1 to 15, .*, found 16"),
    ({"context": "shared_then_specific", "shared_length": 4, "words": "a photo of a"}, "from 1 to 3, .*, found 4"),
    ({"context": "shared_then_specific", "length": 1}, "needs at least two learned vectors, found one"),
    ({"length": 0}, "at least one vector and one text part, found context_length=0 and text_parts=1"),
    ({"text_parts": 0}, "found context_length=16 and text_parts=0"),
    ({"words": "  "}, "holds no word that the tokenizer knows"),
])
def test_wrong_options(clip, options, message):
    with pytest.raises(UserError, match=message):
        ContextPrompts(clip, NAMES, **options)
