"""Whatever the prompts: the fast text side gives the values and the gradients of the plain one, whole or in chunks."""

from functools import cache, partial

import hypothesis.strategies as some
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from towers import TEXT, openclip

from xrvlm.backbones.causal_text_encoder import CausalTextEncoder
from xrvlm.backbones.library_text_encoder import LibraryTextEncoder
from xrvlm.backbones.text_encoder import Prompts, TextEncoder

settings.register_profile("stable", deadline=None, derandomize=True, database=None, max_examples=40,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("stable")
WORDS = ("red", "dog", "sparrow", "baird", "of", "house")                # a token each
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
ENOUGH, LITTLE = 1e3, 1e-5                                               # GiB; the second holds a few prompts

lengths = some.lists(some.integers(1, 20), min_size=1, max_size=50)      # tokens of each name
prompts = {"lengths": lengths, "parts": some.integers(1, 4), "length": some.integers(1, 8),
           "position": some.sampled_from(["front", "middle", "end"]),
           "shared": some.sampled_from(["none", "one", "all"]),          # of the vectors, by all classes
           "dtype": some.sampled_from([torch.float64, torch.float32])}


@cache
def tiny(dtype: torch.dtype):
    made = openclip("vit")
    made.model.to(dtype)
    return made


def fast(dtype: torch.dtype, memory_gb: float = ENOUGH) -> TextEncoder:
    return CausalTextEncoder(tiny(dtype).model, memory_gb=memory_gb)


def plain(dtype: torch.dtype) -> TextEncoder:
    """77 positions, every block at every one."""
    model = tiny(dtype).model
    return LibraryTextEncoder(partial(model.encode_text, normalize=False), model.token_embedding, memory_gb=ENOUGH)


def layout_of(lengths: list[int], length: int, position: str, shared: str, dtype: torch.dtype) -> Prompts:
    names = [" ".join(WORDS[(index + place) % len(WORDS)] for place in range(count))
             for index, count in enumerate(lengths)]
    layout = tiny(dtype).clip.layout(names, length, position)
    return Prompts(layout.tokens, layout.slots, layout.ends, shared=1 if shared == "one" else 0)


def context_of(lengths: list[int], parts: int, length: int, shared: str, dtype: torch.dtype) -> Tensor:
    """(g, c, l, w), or (g, 1, l, w) where all vectors are shared."""
    size = parts, 1 if shared == "all" else len(lengths), length, TEXT["width"]
    return (0.1 * torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=dtype)).requires_grad_()


def value_and_gradient(way: TextEncoder, context: Tensor, layout: Prompts, uses: int = 1) -> tuple[Tensor, Tensor]:
    """Of the sum of `uses` different losses in one graph."""
    generator, loss = torch.Generator().manual_seed(5), torch.zeros((), dtype=context.dtype)
    given = context
    if layout.shared:                                                    # what the first class has
        same = context[:, :1, :layout.shared].expand(-1, context.shape[1], -1, -1)
        given = torch.cat([same, context[:, :, layout.shared:]], dim=2)
    for use in range(1, 1 + uses):
        features = way.encode_prompts(given * use, *layout[:3], shared=layout.shared)
        loss = loss + (features * torch.randn(features.shape, generator=generator, dtype=context.dtype)).sum()
    return features.detach(), torch.autograd.grad(loss, context)[0]


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() <= TOLERANCE[theirs.dtype] * theirs.abs().max()


@given(**prompts)
def test_fast_equals_plain(lengths, parts, length, position, shared, dtype):
    layout = layout_of(lengths, length, position, shared, dtype)
    context = context_of(lengths, parts, length, shared, dtype)
    assert_equal(value_and_gradient(fast(dtype), context, layout), value_and_gradient(plain(dtype), context, layout))


@given(**prompts, memory_gb=some.sampled_from([1e-9, LITTLE, 10 * LITTLE]))
def test_chunks_equal_the_whole(lengths, parts, length, position, shared, dtype, memory_gb):
    layout = layout_of(lengths, length, position, shared, dtype)
    context = context_of(lengths, parts, length, shared, dtype)
    chunked, whole = fast(dtype, memory_gb), fast(dtype)
    assert_equal(value_and_gradient(chunked, context, layout), value_and_gradient(whole, context, layout))


@settings(max_examples=15)
@given(**prompts, memory_gb=some.sampled_from([LITTLE, ENOUGH]))
def test_a_graph_may_hold_it_twice(lengths, parts, length, position, shared, dtype, memory_gb):
    layout = layout_of(lengths, length, position, shared, dtype)
    context = context_of(lengths, parts, length, shared, dtype)
    assert_equal(value_and_gradient(fast(dtype, memory_gb), context, layout, uses=2),
                 value_and_gradient(plain(dtype), context, layout, uses=2))


@settings(max_examples=15)
@given(**prompts)
def test_without_gradients_the_values_are_the_same(lengths, parts, length, position, shared, dtype):
    layout = layout_of(lengths, length, position, shared, dtype)
    context = context_of(lengths, parts, length, shared, dtype)
    with torch.no_grad():
        found = fast(dtype).encode_prompts(context, *layout[:3])
    assert not found.requires_grad
    assert_equal((found,), (plain(dtype).encode_prompts(context, *layout[:3]).detach(),))
