"""A causal text encoder that computes only the necessary positions.

It skips padding, computes the common prefix of all prompts once, and the last block at [EOS] only. All computed
positions are the r rows of one tensor (g, r, w): first the common prefix, then the rest of each prompt. Classes of
similar length are padded to one length and form a bucket. Letters as in base.py; `h` heads, `n` positions of the common
prefix, `k` classes of a bucket, `s` rows of each class, `q` queries of each class.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.text_encoder import Prompts, TextEncoder

PADDING = {"cuda": 2048}                 # rows of padding that cost about as much as another bucket
CPU_PADDING = 8
CACHE_SIZE = 64                          # cached `Rows`, one for each chunk of the prompts that a run trains


@dataclass(frozen=True)
class Bucket:
    """k classes padded to one length of s rows."""

    rows: int                            # k * s
    mask: Tensor                         # (s, s) causal mask: minus infinity at later positions
    end_mask: Tensor                     # (k, 1, s) the row of the mask at [EOS]


@dataclass(frozen=True)
class Rows:
    """The prompt position of each row."""

    mask: Tensor                         # (n, n) causal mask of the common prefix, the first n rows; n = 0 if `known`
    buckets: tuple[Bucket, ...]          # the other rows
    ids: Tensor                          # (r,) token ids
    positions: Tensor                    # (r,) positions in the window
    learned: Tensor                      # (v,) rows with a learned vector instead of a token
    vectors: Tensor                      # (v,) the index of that vector among all c * l
    ends: Tensor                         # (c,) rows of [EOS], in the order of the buckets
    order: Tensor                        # (c,) the index in `ends` of each class


class CausalTextEncoder(TextEncoder):
    """A causal pre-norm transformer, read at [EOS]; positions after [EOS] cannot change the result.

    Args:
        text: a module with `token_embedding`, `positional_embedding` (window, w), `transformer.resblocks` (each with
            `ln_1`, `attn`: nn.MultiheadAttention, `ls_1`, `ln_2`, `mlp`, `ls_2`), `ln_final` and `text_projection`.
        memory_gb: see `TextEncoder`.
    """

    def __init__(self, text: Any, *, memory_gb: float | None = None):
        super().__init__(text.token_embedding, memory_gb=memory_gb)
        self.text = text

    def encode_window(self, tokens: Tensor) -> Tensor:
        encode = getattr(self.text, "encode_text", self.text)    # a CLIP's own method, else the text tower as it is
        features = encode(tokens)
        return features[0] if isinstance(features, tuple) else features                # (n, d)

    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        common = common_prefix(prompts)
        return common, prompts.ends + 1 - common

    def _prefix(self, prompts: Prompts, context: Tensor) -> Tensor | None:
        """(blocks, 2, g, h, n, w / h) keys and values of the common prefix in every block; None: no common prefix."""
        common = common_prefix(prompts)
        if not common:
            return None
        tokens, slots, ends, shared = prompts
        single = Prompts(tokens[:1], slots[:1], torch.full_like(ends[:1], common - 1), shared)
        x, rows = self._embedded(single, context[:, :1], known=0, common=0)            # (g, n, w)
        blocks, computed = self.text.transformer.resblocks, []
        for block in blocks:
            x, key_value = _block(block, x, rows, None, only_ends=block is blocks[-1])
            computed.append(key_value)                                                 # (2, g, h, n, w / h)
        return torch.stack(computed)

    def _features(self, prompts: Prompts, context: Tensor, prefix: Tensor | None = None) -> Tensor:
        known = 0 if prefix is None else prefix.shape[-2]
        x, rows = self._embedded(prompts, context, known=known, common=known or common_prefix(prompts))
        blocks = self.text.transformer.resblocks
        prefixes = [None] * len(blocks) if prefix is None else prefix
        for block, key_value in zip(blocks, prefixes, strict=True):
            x, _ = _block(block, x, rows, key_value, only_ends=block is blocks[-1])
        return projected(self.text, self.text.ln_final(x)[:, rows.order])              # (g, c, d)

    def _embedded(self, prompts: Prompts, context: Tensor, *, known: int, common: int) -> tuple[Tensor, Rows]:
        """(g, r, w) input of the first block, and its rows; `known` and `common` as in `arrange`."""
        (g, _, length, _), c, weight = context.shape, len(prompts.ends), self.embedding.weight
        padding = PADDING.get(weight.device.type, CPU_PADDING) // g
        rows = arrange(prompts, known=known, common=common, padding=padding, like=weight)
        x = self.embedding(rows.ids).expand(g, -1, -1)                                 # (g, r, w)
        if len(rows.learned):
            vectors = context.to(x.dtype).expand(g, c, length, -1).flatten(1, 2)       # (g, c * l, w)
            x = x.index_copy(1, rows.learned, vectors.index_select(1, rows.vectors))
        return x + self.text.positional_embedding[rows.positions], rows


def projected(text: Any, states: Tensor) -> Tensor:
    """(..., w) -> (..., d): the last map of a text tower of open_clip, where it has one."""
    projection = text.text_projection
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Module) else states @ projection


def common_prefix(prompts: Prompts) -> int:
    """Length of the prefix in which all prompts have the same tokens and the same learned vectors."""
    tokens, slots, ends, shared = prompts
    c, window = tokens.shape
    positions = slots.clamp(max=window)                                                # some are outside the window
    numbers = torch.arange(slots.shape[1]).expand(c, -1)
    slot_at = torch.full((c, window + 1), -1).scatter(1, positions, numbers)[:, :window]    # (c, t) -1 at tokens
    content = torch.where(slot_at < 0, tokens, -1 - slot_at)                           # (c, t)
    same = (content == content[:1]).all(0) & (slot_at < shared).all(0)                 # (t,)
    return int(same[:int(ends.min())].long().cumprod(0).sum())


def cached(arrange: Callable[..., Rows]) -> Callable[..., Rows]:
    """Cache the rows of prompts: every training step needs the same ones, already on the GPU."""
    cache: dict[tuple[object, ...], Rows] = {}

    def cached_rows(prompts: Prompts, **options: Any) -> Rows:
        key = tuple(map(_key, (*prompts, *options.values())))
        if key not in cache:
            with torch.inference_mode(mode=False):               # autograd cannot save inference tensors
                cache[key] = arrange(prompts, **options)
            while len(cache) > CACHE_SIZE:
                cache.pop(next(iter(cache)), None)               # another thread may have removed it
        return cache[key]

    return cached_rows


def _key(value: Any) -> object:
    """Cache key of an argument of `arrange`: the values of an index tensor, device and dtype of a float tensor."""
    if not isinstance(value, Tensor):
        return value
    return (value.device, value.dtype) if value.is_floating_point() else (value.shape, value.numpy().tobytes())


@cached
def arrange(prompts: Prompts, *, known: int, common: int, padding: int, like: Tensor) -> Rows:
    """The rows of `prompts`.

    Args:
        known: positions before it get no rows, because their keys and values are known.
        common: length of the common prefix; its positions from `known` on get one row each for all prompts.
        padding: maximal number of padding rows in a bucket.
        like: the result is on its device, and the masks have its dtype.
    """
    tokens, slots, ends, _ = prompts
    (c, window), start = tokens.shape, common - known
    flat, lasts, buckets = [torch.arange(known, common)], [], []                       # flat: class * window + position
    for classes in _buckets(ends, padding):
        last = ends[classes] - common                                                  # (k,)
        span = torch.arange(int(last.max()) + 1)                                       # (s,)
        flat.append((classes[:, None] * window + common + span).flatten())
        lasts.append(start + torch.arange(len(classes)) * len(span) + last)
        mask = _causal_mask(len(span), like)
        buckets.append(Bucket(len(classes) * len(span), mask, mask[last.to(like.device)][:, None]))
        start += len(classes) * len(span)
    source = torch.cat(flat)                                                           # (r,)
    row_of = torch.full((c * window + 1,), -1).scatter(0, source, torch.arange(len(source)))
    inside = slots < window
    learned = row_of[(slots + torch.arange(c)[:, None] * window).where(inside, c * window)].flatten()    # (c * l,)
    computed = (learned >= 0).nonzero().squeeze(1)                                     # (v,)
    order = torch.cat(list(_buckets(ends, padding))).argsort()
    ids, positions, learned, computed, rows_of_ends, order = (index.to(like.device) for index in (
        tokens.flatten()[source], source % window, learned[computed], computed, torch.cat(lasts), order))
    mask = _causal_mask(common - known, like)
    return Rows(mask, tuple(buckets), ids, positions, learned, computed, rows_of_ends, order)


def _buckets(ends: Tensor, padding: int) -> Iterator[Tensor]:
    """Classes (k,) of each bucket, longest prompts first, with at most `padding` padding rows in a bucket."""
    order = ends.argsort(descending=True, stable=True)
    begin, spare, lengths = 0, 0, ends[order].tolist()
    for number, length in enumerate(lengths):
        spare += lengths[begin] - length
        if spare > padding:
            yield order[begin:number]
            begin, spare = number, 0
    yield order[begin:]


def _block(block: Any, x: Tensor, rows: Rows, prefix: Tensor | None, *, only_ends: bool) -> tuple[Tensor, Tensor]:
    """Apply one residual block to `x` (g, r, w); returns its keys and values (2, g, h, r, w / h) too.

    Args:
        prefix: (2, g, h, n, w / h) keys and values of the common prefix; None: its rows are in `x`.
        only_ends: compute the result (g, c, w) at the rows of [EOS] only.
    """
    normed = block.ln_1(x)                                                             # (g, r, w)
    queries = normed
    if only_ends:
        x, queries = x[:, rows.ends], normed[:, rows.ends]                             # (g, c, w)
    attended, key_value = _attention(block.attn, queries, normed, rows, prefix, only_ends=only_ends)
    x = x + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x))), key_value


def _attention(attention: nn.MultiheadAttention, queries: Tensor, x: Tensor, rows: Rows, prefix: Tensor | None, *,
               only_ends: bool) -> tuple[Tensor, Tensor]:
    """Causal attention of `queries` (g, r or c, w) to the rows `x` (g, r, w) of their own prompt and to the prefix.

    Returns the result (g, r or c, w), and the keys and values that `_block` returns.
    """
    weight, bias, width, heads = attention.in_proj_weight, attention.in_proj_bias, x.shape[-1], attention.num_heads
    query = (width // heads) ** -0.5 * F.linear(queries, weight[:width], bias[:width])  # (g, r or c, w)
    both = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))     # (g, r, 2, h, w / h)
    sizes = [len(rows.mask), *(bucket.rows for bucket in rows.buckets)]
    counts = [0, *(len(bucket.end_mask) for bucket in rows.buckets)] if only_ends else sizes
    of_prefix, *of_buckets = query.unflatten(-1, (heads, -1)).split(counts, dim=1)     # (g, k * q, h, w / h)
    common, *own = both.split(sizes, dim=1)                                            # (g, k * s, 2, h, w / h)
    if prefix is None:                   # a view would save all of `both` for the backward pass
        prefix = common.permute(2, 0, 3, 1, 4).clone()                                 # (2, g, h, n, w / h)
    attended = [_attend(of_prefix, prefix, rows.mask)] if of_prefix.shape[1] else []
    for bucket, chosen, key_value in zip(rows.buckets, of_buckets, own, strict=True):
        mask = bucket.end_mask if only_ends else bucket.mask
        attended.append(_attend_with_prefix(chosen, prefix, key_value, len(bucket.end_mask), mask))
    return attention.out_proj(torch.cat(attended, dim=1).flatten(2)), both.permute(2, 0, 3, 1, 4)


def _causal_mask(length: int, like: Tensor) -> Tensor:
    """(length, length): minus infinity at later positions."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _attend(query: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    """(g, n, h, w / h): attention of the common prefix, with queries `query` (g, n, h, w / h), to itself."""
    # matrix products: on a CPU in bfloat16 the backward pass of the fused attention takes twice as long
    key, value = prefix                                                                # (g, h, n, w / h)
    return ((query.transpose(1, 2) @ key.mT + mask).softmax(dim=-1) @ value).transpose(1, 2)


def _attend_with_prefix(query: Tensor, prefix: Tensor, own: Tensor, k: int, mask: Tensor) -> Tensor:
    """(g, k * q, h, w / h): attention of the k classes of a bucket to the common prefix and to their own positions.

    Args:
        query: (g, k * q, h, w / h)
        prefix: (2, g, h, n, w / h) keys and values of the common prefix.
        own: (g, k * s, 2, h, w / h) keys and values of the positions of each class. One softmax is over both.
        mask: (s, s), or (k, 1, s) if the queries are those of [EOS].
    """
    key, value = prefix
    own_key, own_value = own.unflatten(1, (k, -1)).permute(3, 0, 4, 1, 2, 5)           # (g, h, k, s, w / h)
    query = query.transpose(1, 2).contiguous()                                         # (g, h, k * q, w / h)
    to_common = (query @ key.mT).unflatten(2, (k, -1))                                 # (g, h, k, q, n)
    to_own = query.unflatten(2, (k, -1)) @ own_key.mT + mask                           # (g, h, k, q, s)
    weights = torch.cat([to_common, to_own], dim=-1).softmax(dim=-1)
    on_common, on_own = weights.split([key.shape[2], own_key.shape[3]], dim=-1)
    attended = on_common.flatten(2, 3) @ value + (on_own @ own_value).flatten(2, 3)    # (g, h, k * q, w / h)
    return attended.transpose(1, 2)
