"""Every kind of text tower says what its own library says of a sentence, of a class prompt, of learned vectors."""

import pytest
import torch
import torch.nn.functional as F
from towers import TEXT_KINDS, hf_siglip, simple_tokenizer, tiny_vit, words_tokenizer

from xrvlm.backbones.text_encoder import Tokens
from xrvlm.errors import UserError

TEXTS = ["a photo of the dog.", "Two cats,  and a House", "bird", ""]


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


SAID = ["a photo of a bird.", "two red sparrow, and baird's wing"]


@pytest.fixture(params=TEXT_KINDS)
def text_kind(request):
    return TEXT_KINDS[request.param]()


def test_token_ids_are_the_librarys(text_kind):
    assert torch.equal(text_kind.clip.tokens.sentences(TEXTS)[0], text_kind.tokenize(TEXTS))


@torch.no_grad()
def test_text_features_are_the_librarys(text_kind):
    features = text_kind.text(text_kind.tokenize(TEXTS))
    expected = F.normalize(features, dim=-1)
    assert (expected @ expected.T).min() < 0.999, "the texts must look different to the tower"
    assert_close(text_kind.clip.encode_text(TEXTS), expected)
    assert_close(text_kind.clip.text_lengths(TEXTS), features.norm(dim=-1))


@torch.no_grad()
@pytest.mark.parametrize(("position", "sentences"), [
    ("end", ["red dog a bird.", "red dog the cat."]),
    ("front", ["a bird red dog.", "the cat red dog."]),
    ("middle", ["red a bird dog.", "red the cat dog."])])
def test_learned_vectors_that_equal_words_give_the_sentence(text_kind, position, sentences):
    clip = text_kind.clip
    words = clip.embed_words("red dog")
    assert words.shape == (2, clip.text_width)
    found = clip.encode_prompts(words[None, None], clip.layout(["a_bird", "the cat"], 2, position))
    expected = F.normalize(text_kind.text(text_kind.tokenize(sentences)), dim=-1)
    assert_close(found, expected[None])
    open_ended = clip.encode_prompts(words[None, None], clip.layout(["a_bird", "the cat"], 2, position, False))
    expected = F.normalize(text_kind.text(text_kind.tokenize([text.rstrip(".") for text in sentences])), dim=-1)
    assert_close(open_ended, expected[None])


def test_gradients_reach_the_context_alone(text_kind):
    clip = text_kind.clip
    vectors = (0.1 * torch.randn(2, 1, 3, clip.text_width)).requires_grad_()
    clip.encode_prompts(vectors, clip.layout(["bird", "the cat"], 3))[..., 0].sum().backward()
    assert vectors.grad.abs().min() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in clip.parameters())


def test_a_text_that_does_not_fit_is_named(text_kind):
    clip = text_kind.clip
    longest = clip.context_length - len(clip.tokens.start) - 1
    assert clip.encode_text(["dog " * longest]).shape == (1, clip.embed_dim)
    with pytest.raises(UserError, match=rf"'dog dog .*{clip.context_length + 1} tokens.*reads {clip.context_length}"):
        clip.encode_text(["bird", "dog " * (longest + 1)])


def test_a_class_that_does_not_fit_is_named(text_kind):
    clip = text_kind.clip
    room = clip.context_length - len(clip.tokens.start) - 1 - len(clip.tokens.words("dog."))
    assert clip.layout(["dog"], room).ends.tolist() == [clip.context_length - 1]
    with pytest.raises(UserError, match=rf"class 'red_dog' has {clip.context_length + 1} tokens .*shorten.* by 1"):
        clip.layout(["dog", "red_dog"], room)


@pytest.mark.parametrize(("position", "expected"), [
    ("end", "<start_of_text>{}{}{}{}{}baird 's sparrow . <end_of_text>"),
    ("front", "<start_of_text>baird 's sparrow {}{}{}{}{}. <end_of_text>"),
    ("middle", "<start_of_text>{}{}baird 's sparrow {}{}{}. <end_of_text>")])
def test_where_the_name_stands(position, expected):
    clip = tiny_vit()
    layout = clip.layout(["Baird's_Sparrow"], 5, position)
    pieces = [simple_tokenizer().decode([token]) for token in layout.tokens[0, :int(layout.ends[0]) + 1].tolist()]
    for slot in layout.slots[0].tolist():
        pieces[slot] = "{}"
    assert "".join(pieces) == expected


def test_names_that_are_no_names():
    clip = hf_siglip().clip
    with pytest.raises(UserError, match="class name '_' has no word"):
        clip.layout(["dog", "_"], 2)
    with pytest.raises(UserError, match="unknown position of the class name 'begin'; available: end, front, middle"):
        clip.layout(["dog"], 2, "begin")


def test_texts_padded_on_the_left_stand_where_the_library_puts_them():
    inner = words_tokenizer("<s>", padding_side="left")
    tokens = Tokens.of_hf(inner, window=10)
    ids, ends = tokens.sentences(["a dog", "bird"])
    expected = inner(["a dog", "bird"], padding="max_length", max_length=10, return_tensors="pt").input_ids
    assert torch.equal(ids, expected)
    assert ends.tolist() == [9, 9]
    layout = tokens.layout(["dog"], 2, "end")
    assert layout.slots.tolist() == [[5, 6]]    # <s> v v dog . </s>
    assert layout.ends.tolist() == [9]


def test_a_tokenizer_that_never_ends_is_refused():
    with pytest.raises(UserError, match=r"not with its \[EOS\] id 7, .* use the tokenizer that belongs"):
        Tokens(lambda text: [5, 6], window=10, pad=0, end=7, decode=str, special=())


@torch.no_grad()
def test_the_nearest_words_are_those_of_the_vectors(text_kind):
    clip, embeddings = text_kind.clip, text_kind.clip.text.embedding.weight
    wanted = ["bird", "the", "dog"]
    vectors = torch.cat([clip.embed_words(word) for word in wanted]) + 1e-3
    found = clip.nearest_words(vectors, 4)
    assert [row[0][0] for row in found] == wanted
    for vector, row in zip(vectors, found, strict=True):
        assert len(row) == 4
        assert row[0][1] == pytest.approx(1e-3 * clip.text_width ** 0.5, rel=0.05)
        distances = [distance for _, distance in row]
        assert distances == sorted(distances)
        ours = (embeddings - vector).norm(dim=1)                         # (v,)
        nearer = {clip.tokens.word(token) for token in (ours < distances[3] - 1e-5).nonzero()[:, 0].tolist()}
        assert nearer - {""} == {word for word, _ in row[:3]}


def test_special_tokens_are_no_words(text_kind):
    tokens, embeddings = text_kind.clip.tokens, text_kind.clip.text.embedding.weight
    special = [tokens.end, *tokens.start]
    assert [tokens.word(token) for token in special] == [""] * len(special)
    for row in text_kind.clip.nearest_words(embeddings[special], 3):
        assert len(row) == 3
        assert all(distance > 0.1 for _, distance in row)


@torch.no_grad()
def test_words_have_unit_features_that_longer_neighbours_do_not_change(text_kind):
    words = text_kind.clip.encode_words(SAID)
    counts = words.there.sum(dim=1).tolist()
    assert counts == [len(spelt) for spelt in words.spelt]
    assert words.spelt[0] == ("a", "photo", "of", "a", "bird")
    assert words.spelt[1][:3] == ("two", "red", "sparrow")
    assert words.spelt[1][-1] == "wing", "a comma is no word"
    torch.testing.assert_close(words.features.norm(dim=-1), words.there.float())
    alone = text_kind.clip.encode_words(SAID[:1]).features
    torch.testing.assert_close(words.features[:1, :counts[0]], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"the text '\.' has no word that the tokenizer knows"):
        text_kind.clip.encode_words(["."])


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in TEXT_KINDS if kind.startswith("causal") or kind == "hf clip"])
def test_a_state_is_projected_as_the_whole_text_is_and_stands_at_its_word(kind):
    tiny = TEXT_KINDS[kind]()
    tokens, ends = tiny.clip.tokens.sentences(SAID)
    states = tiny.clip._word_states(tokens)
    assert_close(states[torch.arange(2), ends], tiny.text(tiny.tokenize(SAID)))
    words, other = (tiny.clip.encode_words([text]).features[0] for text in ("a red bird and dog", "a red cat and dog"))
    torch.testing.assert_close(words[:2], other[:2])     # a causal tower has not read what follows
    assert ((words[2:] - other[2:]).abs().amax(dim=1) > 1e-3).all()


def test_a_word_of_several_tokens_is_one():
    clip = tiny_vit()
    spelt = clip.encode_words(["a prothonotary warbler's eye-ring."]).spelt[0]
    assert spelt == ("a", "prothonotary", "warbler", "'s", "eye", "ring")
    assert len(clip.tokens.words("prothonotary")) > 1
