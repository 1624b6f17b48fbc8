"""Text parts made of part descriptions and of free vectors, on every kind of text tower."""

import pytest
import torch
from torch.nn.functional import normalize
from towers import TEXT_KINDS, tiny_vit, words_tokenizer

from xrvlm.backbones import text_encoder as text_tower
from xrvlm.backbones.text_encoder import Tokens
from xrvlm.errors import UserError
from xrvlm.methods.zpe import _encoded
from xrvlm.text.class_text import ClassText, class_text
from xrvlm.text.fixed_prompts import (
    FreeVectors,
    LearnedDescriptions,
    PartDescriptions,
    described_parts,
    ensemble,
    raw_means,
)
from xrvlm.text.learned_prompts import ContextPrompts

PARTS = {"cat": {"wing": "a photo of a cat in the house.", "beak": "red cat."},
         "dog": {"wing": "a dog", "beak": "the dog with a red beak and blue wing"},
         "bird": {"wing": "two blue bird.", "beak": "the bird"}}


@pytest.fixture(params=TEXT_KINDS)
def clip(request):
    return TEXT_KINDS[request.param]().clip


def classes(parts=PARTS):
    return class_text(list(parts), parts=parts)


def spread(prompts, clip):
    """A loss that every feature has a say in."""
    features = prompts(clip)
    return (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum()


def test_raw_means_are_of_features_at_the_towers_length(clip):
    """The first class has two sentences, the second one."""
    two = class_text(("cat", "dog"), descriptions={"cat": ["a photo of a cat.", "red cat in the house."],
                                                   "dog": ["the dog with a blue wing."]})
    tokens, ends = clip.tokens.sentences([sentence for row in two.prompts for sentence in row])
    raw = clip.text.encode_tokens(tokens, ends).float()
    found = raw_means(clip, two)
    torch.testing.assert_close(found, torch.stack([(raw[0] + raw[1]) / 2, raw[2]]))
    torch.testing.assert_close(normalize(found[1], dim=-1), ensemble(clip, two)[1])


def test_descriptions_are_encoded_once(clip):
    prompts = PartDescriptions(clip, classes())
    prompts.prepare(clip)
    assert prompts(clip).shape == (2, 3, clip.embed_dim)
    for part, name in enumerate(("wing", "beak")):
        expected = clip.encode_text([row[name] for row in PARTS.values()])
        torch.testing.assert_close(prompts(clip)[part], expected)
    assert not list(prompts.parameters())


def test_learned_descriptions_start_as_the_descriptions(clip):
    fixed, learned = PartDescriptions(clip, classes()), LearnedDescriptions(clip, classes())
    fixed.prepare(clip)
    learned.prepare(clip)
    assert learned.text_parts == fixed.text_parts == 2
    torch.testing.assert_close(learned(clip), fixed(clip), rtol=0, atol=1e-5)
    longest = max(len(clip.tokens.words(text)) for row in PARTS.values() for text in row.values())
    assert learned.vectors.shape == (2, 3, longest, clip.text_width)


def test_the_gradient_reaches_the_words_of_each_sentence(clip):
    learned = LearnedDescriptions(clip, classes())
    spread(learned, clip).backward()
    size = learned.vectors.grad.abs().amax(dim=-1)                                         # (g, c, l)
    for c, row in enumerate(PARTS.values()):
        for g, text in enumerate(row.values()):
            assert size[g, c, :len(clip.tokens.words(text))].min() > 0


@pytest.mark.parametrize("kind", [kind for kind in TEXT_KINDS if kind.startswith("causal")] + ["hf clip", "roberta"])
def test_slots_without_a_word_get_no_gradient_where_padding_is_not_read(kind):
    clip = TEXT_KINDS[kind]().clip
    learned = LearnedDescriptions(clip, classes())
    spread(learned, clip).backward()
    for c, row in enumerate(PARTS.values()):
        for g, text in enumerate(row.values()):
            assert torch.all(learned.vectors.grad[g, c, len(clip.tokens.words(text)):] == 0)


@pytest.mark.parametrize("kind", ["bidirectional", "hf siglip"])
def test_slots_without_a_word_start_as_the_padding_that_the_tower_reads(kind):
    clip = TEXT_KINDS[kind]().clip
    learned = LearnedDescriptions(clip, classes())
    words = len(clip.tokens.words(PARTS["dog"]["wing"]))
    unused = learned.vectors[0, 1, words:]
    assert len(unused) > 3
    assert torch.equal(unused, clip.text.embedding.weight[clip.tokens.pad].expand_as(unused))
    spread(learned, clip).backward()
    assert learned.vectors.grad[0, 1, words:].abs().min() > 0


@torch.no_grad()
def test_prompts_of_unequal_length_may_be_encoded_in_chunks(clip, monkeypatch):
    learned = LearnedDescriptions(clip, classes())
    whole = learned(clip)
    monkeypatch.setattr(text_tower, "PROMPTS_AT_ONCE", 1)
    torch.testing.assert_close(learned(clip), whole, rtol=1e-5, atol=1e-6)


def test_where_the_slots_of_a_sentence_stand():
    for side, expected in (("right", [[1, 2, 3], [1, 3, 4]]), ("left", [[6, 7, 8], [8, 5, 6]])):
        tokens = Tokens.of_hf(words_tokenizer("<s>", padding_side=side), window=10)
        layout = tokens.sentence_layout(["a red dog", "bird"])
        assert layout.slots.tolist() == expected
        assert torch.equal(layout.tokens, tokens.sentences(["a red dog", "bird"])[0])
        assert layout.tokens[1, layout.slots[1, 1:]].tolist() == [tokens.pad] * 2


def test_free_vectors_know_no_text():
    clip = tiny_vit()
    vectors = FreeVectors(clip, classes(), text_parts=5)
    assert vectors(clip).shape == (5, 3, clip.embed_dim)
    torch.testing.assert_close(vectors.vectors.detach(), normalize(vectors.vectors.detach(), dim=-1))
    with torch.no_grad():
        vectors.vectors *= 7
    torch.testing.assert_close(vectors(clip).norm(dim=-1), torch.ones(5, 3))
    spread(vectors, None).backward()
    assert vectors.vectors.grad.abs().min() > 0


@pytest.mark.parametrize("kind", ["descriptions", "learned_from_descriptions"])
@pytest.mark.parametrize(("sentence", "message"), [
    ("dog " * 90, r"part 'beak' of class 'dog': the text 'dog .* has 92 tokens .* reads 77; shorten it by 15"),
    ("\x00", "part 'beak' of class 'dog': the text .* has no word that the tokenizer knows")])
def test_a_sentence_that_cannot_be_read_names_its_class_and_part(kind, sentence, message):
    parts = PARTS | {"dog": {"wing": "a dog", "beak": sentence}}
    with pytest.raises(UserError, match=message):
        described_parts(kind, tiny_vit(), classes(parts))


def test_descriptions_that_are_not_there_are_told():
    clip = tiny_vit()
    for kind in ("descriptions", "learned_from_descriptions"):
        with pytest.raises(UserError, match="needs a sentence for each part of each class: .*parts='NAME'"):
            described_parts(kind, clip, class_text(["cat", "dog"]))
    with pytest.raises(UserError, match="unknown part_prompts 'described'; available: descriptions, learned, "):
        described_parts("described", clip, classes())


def test_parts_need_no_names():
    text = ClassText(("cat", "dog"), (("a cat",), ("a dog",)), parts=(("x" * 400,), ("a dog",)))
    with pytest.raises(UserError, match="part 'number 1' of class 'cat'"):
        PartDescriptions(tiny_vit(), text)


READ = {"ensemble": ensemble, "plain means": raw_means, "templates apart": _encoded,
        "learned context": lambda clip, text: ContextPrompts(clip, text.names, length=2, context="shared")}


@pytest.mark.parametrize("kind", ["hf clip", "hf siglip", "roberta"])
@pytest.mark.parametrize("read", READ)
def test_names_that_the_tokenizer_cannot_tell_apart_are_told(kind, read):
    """Neither is a word of this vocabulary: every photo would be of the first of them."""
    wanted = "the text tower reads the classes 'zebra' and 'quagga' as the same.*class_names.*descriptions"
    with pytest.raises(UserError, match=wanted):
        READ[read](TEXT_KINDS[kind]().clip, class_text(["cat", "zebra", "quagga"]))


def test_such_names_may_be_described():
    clip = TEXT_KINDS["hf clip"]().clip
    text = class_text(["zebra", "quagga"], descriptions={"zebra": ["a blue bird"], "quagga": ["a red dog"]})
    assert ensemble(clip, text).shape == (2, clip.embed_dim)


def test_punctuation_that_siglip_leaves_out_tells_no_classes_apart():
    with pytest.raises(UserError, match=r"reads the classes 'cat' and 'cat\+\+' as the same"):
        ensemble(TEXT_KINDS["bidirectional"]().clip, class_text(["cat", "cat++"]))
