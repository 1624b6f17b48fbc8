"""The two ways through a text tower agree, in value and in gradient, and compute no more than they must."""

from functools import partial

import pytest
import torch
from torch import nn
from towers import TEXT, VIT, openclip

from xrvlm import causal_text, text_tower
from xrvlm.causal_text import CausalText
from xrvlm.text_tower import LibraryText

NAMES = ("dog", "Baird's_Sparrow", "a rather long name of a bird")


@pytest.fixture(scope="module")
def tiny():
    return openclip("vit")


@pytest.fixture(scope="module")
def library(tiny):
    """The library's own encoder, with the vectors put in behind its embedding."""
    return LibraryText(partial(tiny.model.encode_text, normalize=False), tiny.model.token_embedding)


def context(g=2, c=1, length=4, seed=0):
    return torch.randn(g, c, length, TEXT["width"], generator=torch.Generator().manual_seed(seed)) * 0.1


def parts(layout):
    return layout.tokens, layout.slots, layout.ends


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("position", ["end", "front", "middle"])
@pytest.mark.parametrize("classes", [1, len(NAMES)], ids=["shared", "own"])
def test_the_fast_way_equals_the_library_in_value_and_gradient(tiny, library, position, classes):
    assert isinstance(tiny.clip.text, CausalText)
    layout = tiny.clip.layout(NAMES, 5, position)
    wanted = torch.randn(2, len(NAMES), tiny.clip.embed_dim, generator=torch.Generator().manual_seed(1))
    results = []
    for way in (tiny.clip.text, library):
        vectors = context(c=classes, length=5).requires_grad_()
        features = way.encode_prompts(vectors, *parts(layout))
        gradient, = torch.autograd.grad((features * wanted).sum(), vectors)
        results.append((features.detach(), gradient))
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1])
    assert results[1][1].abs().min() > 0


def test_sentences_equal_the_library(tiny, library):
    tokens, ends = tiny.clip.tokens.sentences(["a photo of a dog.", "", "two cats and a house with a red roof"])
    assert_close(tiny.clip.text.encode_tokens(tokens, ends), library.encode_tokens(tokens, ends))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "library"])
@pytest.mark.parametrize("classes", [1, len(NAMES)], ids=["shared", "own"])
def test_chunks_change_nothing(tiny, library, monkeypatch, fast, classes):
    way = tiny.clip.text if fast else library
    layout = tiny.clip.layout(NAMES, 3)
    tokens, ends = tiny.clip.tokens.sentences(NAMES)
    with torch.no_grad():
        prompts, sentences = way.encode_prompts(context(3, classes, 3), *parts(layout)), way.encode_tokens(tokens, ends)
        monkeypatch.setattr(text_tower, "PROMPTS_AT_ONCE", 2)
        assert_close(way.encode_prompts(context(3, classes, 3), *parts(layout)), prompts)
        assert_close(way.encode_tokens(tokens, ends), sentences)


def test_each_text_part_and_class_gets_its_own_vectors(tiny):
    layout = tiny.clip.layout(NAMES, 4)
    vectors = context(2, len(NAMES))
    together = tiny.clip.text.encode_prompts(vectors, *parts(layout))
    for g in range(2):
        for c in range(len(NAMES)):
            alone = tiny.clip.text.encode_prompts(vectors[g:g + 1, c:c + 1], *(part[c:c + 1] for part in parts(layout)))
            assert_close(alone[0, 0], together[g, c])


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "library"])
def test_ids_under_the_slots_and_behind_the_end_do_not_matter(tiny, library, fast):
    way = tiny.clip.text if fast else library
    layout = tiny.clip.layout(NAMES, 4)
    other = layout.tokens.scatter(1, layout.slots, 500)
    behind = torch.arange(other.shape[1]) > layout.ends[:, None]
    other[behind] = 300
    assert_close(way.encode_prompts(context(), other, layout.slots, layout.ends),
                 way.encode_prompts(context(), *parts(layout)))


@pytest.mark.parametrize("classes", [1, len(NAMES)], ids=["shared", "own"])
def test_only_real_positions_are_computed_and_a_common_beginning_once(tiny, monkeypatch, classes):
    monkeypatch.setattr(causal_text, "CPU_PADDING", 0)
    counts = []
    layers = (tiny.model.transformer.resblocks[0].mlp, tiny.model.transformer.resblocks[-1].mlp)
    hooks = [mlp.register_forward_hook(lambda _module, _inputs, output: counts.append(output.shape[:2].numel()))
             for mlp in layers]
    layout = tiny.clip.layout(NAMES, 4)
    tiny.clip.text.encode_prompts(context(2, classes), *parts(layout))
    for hook in hooks:
        hook.remove()
    common = 1 + 4 if classes == 1 else 1                                # [SOS] and a shared context
    real = common + int((layout.ends + 1 - common).sum())
    assert counts == [2 * real, 2 * len(NAMES)]


def test_half_precision_keeps_direction_and_gradient():
    layout = openclip("vit").clip.layout(NAMES, 4)
    results = {}
    for precision in ("fp32", "bf16"):
        clip = openclip("vit", precision=precision).clip
        vectors = context().requires_grad_()
        features = clip.encode_prompts(vectors, layout)
        features[..., 0].sum().backward()
        assert features.dtype == vectors.grad.dtype == torch.float32
        results[precision] = features.detach(), vectors.grad
    for exact, half in zip(results["fp32"], results["bf16"], strict=True):
        assert nn.functional.cosine_similarity(exact.flatten(), half.flatten(), dim=0) > 0.999


def test_the_hook_goes_even_where_the_encoder_fails(tiny):
    def fails(tokens):
        raise RuntimeError("broken")

    way = LibraryText(fails, tiny.model.token_embedding)
    with pytest.raises(RuntimeError, match="broken"):
        way.encode_prompts(context(), *parts(tiny.clip.layout(NAMES, 4)))
    assert not tiny.model.token_embedding._forward_hooks


def test_blocks_with_layer_scale_and_a_projection_with_bias():
    tiny = openclip("vit", VIT, TEXT | {"ls_init_value": 0.5, "proj_bias": True})
    assert isinstance(tiny.clip.text, CausalText)
    tokens, ends = tiny.clip.tokens.sentences(NAMES)
    assert_close(tiny.clip.text.encode_tokens(tokens, ends), tiny.text(tokens))
