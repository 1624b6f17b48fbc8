"""The two ways through a text tower agree, in value and in gradient, and compute no more than they must."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn
from towers import TEXT, VIT, hf_clip, openclip, openclip_model, simple_tokenizer

from xrvlm.backbones import causal_text_encoder, wrap_openclip
from xrvlm.backbones import text_encoder as text_tower
from xrvlm.backbones.causal_text_encoder import CausalTextEncoder
from xrvlm.backbones.library_text_encoder import LibraryTextEncoder
from xrvlm.backbones.text_encoder import Prompts, saved_bytes
from xrvlm.errors import UserError

NAMES = ("dog", "Baird's_Sparrow", "a rather long name of a bird")


@pytest.fixture(scope="module")
def tiny():
    return openclip("vit")


@pytest.fixture(scope="module")
def library(tiny):
    """The library's own encoder, with the vectors put in behind its embedding."""
    return LibraryTextEncoder(partial(tiny.model.encode_text, normalize=False), tiny.model.token_embedding)


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
    assert isinstance(tiny.clip.text, CausalTextEncoder)
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


@pytest.mark.parametrize(("classes", "shared"), [(1, 4), (len(NAMES), 0), (len(NAMES), 3)],
                         ids=["shared", "own", "shared_then_own"])
def test_only_real_positions_are_computed_and_a_common_beginning_once(tiny, monkeypatch, classes, shared):
    monkeypatch.setattr(causal_text_encoder, "CPU_PADDING", 0)
    counts = []
    layers = (tiny.model.transformer.resblocks[0].mlp, tiny.model.transformer.resblocks[-1].mlp)
    hooks = [mlp.register_forward_hook(lambda _module, _inputs, output: counts.append(output.shape[:2].numel()))
             for mlp in layers]
    layout = tiny.clip.layout(NAMES, 4)
    tiny.clip.text.encode_prompts(context(2, classes), *parts(layout), shared=shared)
    for hook in hooks:
        hook.remove()
    common = 1 + shared                                                  # [SOS] and what is shared of the context
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

    way = LibraryTextEncoder(fails, tiny.model.token_embedding)
    with pytest.raises(RuntimeError, match="broken"):
        way.encode_prompts(context(), *parts(tiny.clip.layout(NAMES, 4)))
    assert not tiny.model.token_embedding._forward_hooks


def test_blocks_with_layer_scale_and_a_projection_with_bias():
    tiny = openclip("vit", VIT, TEXT | {"ls_init_value": 0.5, "proj_bias": True})
    assert isinstance(tiny.clip.text, CausalTextEncoder)
    tokens, ends = tiny.clip.tokens.sentences(NAMES)
    assert_close(tiny.clip.text.encode_tokens(tokens, ends), tiny.text(tokens))


def blocks_run(way, model, vectors, layout):
    """How often the first block runs in a forward and a backward pass."""
    calls = []
    hook = model.transformer.resblocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    way.encode_prompts(vectors, *parts(layout)).sum().backward()
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "library"])
@pytest.mark.parametrize("classes", [1, 24], ids=["shared", "own"])
def test_memory_decides_how_many_chunks_are_computed_twice(tiny, fast, classes):
    layout = tiny.clip.layout(NAMES * 8, 4)
    vectors = context(2, classes).requires_grad_()

    def way(memory_gb):
        if fast:
            return CausalTextEncoder(tiny.model, memory_gb=memory_gb)
        return LibraryTextEncoder(partial(tiny.model.encode_text, normalize=False), tiny.model.token_embedding,
                           memory_gb=memory_gb)

    roomy = way(100)
    roomy.encode_prompts(vectors, *parts(layout))                        # measures what a position keeps
    assert blocks_run(roomy, tiny.model, vectors, layout) == 1, "all fits: nothing is computed again"
    prompts = Prompts(*parts(layout), shared=4 if classes == 1 else 0)
    common, alone = roomy._positions(prompts)
    whole = 2 * (2.5 * common + int(alone.sum())) * roomy.bytes_per_position[torch.float32] / 2**30
    tight = way(whole / 2.5)
    tight.encode_prompts(vectors, *parts(layout))
    beginnings = 1 if fast else 0
    assert blocks_run(tight, tiny.model, vectors, layout) == beginnings + 3 + 2, "all but the last of three chunks"
    first, *full = tight._chunks(vectors, prompts)
    assert (first < full[0], len(full), first + sum(full)) == (True, 2, 24), "the first chunk takes what is left"


@pytest.mark.parametrize("classes", [1, 24], ids=["shared", "own"])
def test_chunks_compute_a_common_beginning_once(tiny, classes):
    """Forward and backward: so many rows as the whole has, and those of all chunks but the last once more."""
    layout, vectors = tiny.clip.layout(NAMES * 8, 4), context(2, classes).requires_grad_()
    common, alone = 1 + (4 if classes == 1 else 0), layout.ends + 1 - (5 if classes == 1 else 1)
    counts = []
    hook = tiny.model.transformer.resblocks[0].mlp.register_forward_hook(
        lambda _module, _inputs, output: counts.append(output.shape[:2].numel()))
    way = CausalTextEncoder(tiny.model, memory_gb=1e-9)                         # a class at a time
    way.bytes_per_position = {torch.float32: 1.0}
    way.encode_prompts(vectors, *parts(layout)).sum().backward()
    hook.remove()
    rows = alone.tolist()
    assert counts == [2 * count for count in [common, *rows, *rows[-2::-1]]]


@pytest.mark.parametrize("classes", [1, 24], ids=["shared", "own"])
def test_what_is_kept_for_the_backward_pass_stays_within_the_memory(tiny, classes):
    layout = tiny.clip.layout(NAMES * 8, 4)
    vectors = context(2, classes).requires_grad_()
    weights = sum(weight.nbytes for weight in tiny.model.transformer.parameters())
    kept = {}
    for memory in (1e9, 3e5, 1e5):
        way = CausalTextEncoder(tiny.model, memory_gb=memory / 2**30)
        way.encode_prompts(vectors, *parts(layout))
        kept[memory] = saved_bytes(lambda way=way: way.encode_prompts(vectors, *parts(layout)))
    for memory in (3e5, 1e5):
        assert kept[memory] < min(kept[1e9], 1.2 * memory + weights + 2 * vectors.nbytes)    # a fifth for padding


def wrapped(**options):
    return wrap_openclip(openclip_model(), simple_tokenizer(), name="vit", device="cpu", **options)


def test_memory_must_be_some():
    with pytest.raises(UserError, match="text_memory_gb=0 leaves no memory"):
        wrapped(text_memory_gb=0)


def test_the_plain_path_is_a_switch(tiny, caplog):
    caplog.set_level("DEBUG", "xrvlm")
    plain = wrapped(text="plain")
    assert isinstance(plain.text, LibraryTextEncoder) and "text side: plain" in caplog.text
    assert isinstance(wrapped().text, CausalTextEncoder) and "text side: fast" in caplog.text
    layout = plain.layout(NAMES, 4)
    assert_close(plain.encode_prompts(context(), layout), tiny.clip.encode_prompts(context(), layout))
    with pytest.raises(UserError, match="unknown text 'slow'; available: fast, plain"):
        wrapped(text="slow")


def test_the_switch_and_the_memory_reach_towers_of_transformers():
    plain, fast = (hf_clip(text=path, text_memory_gb=2).clip for path in ("plain", "fast"))
    assert (plain.text.shortens, fast.text.shortens, fast.text.memory_gb) == (False, True, 2)


def test_counting_what_is_kept_keeps_nothing():
    results = []

    def remembered():
        output = (torch.randn(3, 4, requires_grad=True) * 2).softmax(-1)    # kept by its own graph
        results.append(weakref.ref(output))
        return output.sum()

    assert saved_bytes(remembered) == 3 * 4 * 4
    assert results[0]() is None


def test_rows_are_arranged_once(tiny):
    layout, other = tiny.clip.layout(NAMES, 4), tiny.clip.layout(NAMES, 5)
    options = {"known": 0, "common": 1, "padding": 0, "like": torch.zeros(1)}
    rows = causal_text_encoder.arrange(Prompts(*parts(layout), 0), **options)
    again = Prompts(*(part.clone() for part in parts(layout)), 0)
    assert causal_text_encoder.arrange(again, **options | {"like": torch.ones(2)}) is rows
    for changed in ({"padding": 9}, {"common": 0}, {"like": torch.zeros(1, dtype=torch.bfloat16)}):
        assert causal_text_encoder.arrange(again, **options | changed) is not rows
    assert causal_text_encoder.arrange(Prompts(*parts(other), 0), **options) is not rows


def test_rows_that_were_arranged_without_gradients_serve_training(tiny):
    layout, vectors = tiny.clip.layout(("a name seen here alone",), 4), context().requires_grad_()
    with torch.inference_mode():
        tiny.clip.encode_prompts(vectors, layout)
    tiny.clip.encode_prompts(vectors, layout).sum().backward()
    assert vectors.grad.abs().max() > 0
