"""A causal text tower computed where it must be: no padding, one common beginning, the last block at [EOS] alone.

All positions that are computed stand in one tensor (g, r, w) of r rows: first the `prefix` that all prompts have in
common, then the rest of each prompt, classes of about one length side by side as a bucket. Letters as in
xrvlm/backbone.py; `h` heads, `q` positions that ask, `k` classes of a bucket, `s` positions of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.text_encoder import Prompts, TextTower

PADDING = {"cuda": 2048}                 # rows of padding that cost about as much as one more bucket
CPU_PADDING = 8
REMEMBERED = 64                          # arrangements: chunks of the prompts that a run trains


@dataclass(frozen=True)
class Bucket:
    """k classes that are padded to one length: k * s rows."""

    rows: int                            # k * s
    future: Tensor                       # (s, s) minus infinity where a position would see a later one
    last: Tensor                         # (k, 1, s) the same for [EOS] alone


@dataclass(frozen=True)
class Rows:
    """Which position of which prompt stands in which row."""

    future: Tensor                       # (n, n) of the first n rows, the common beginning; none where it is known
    buckets: tuple[Bucket, ...]          # of the rows behind it
    ids: Tensor                          # (r,) token ids
    positions: Tensor                    # (r,) places in the window
    learned: Tensor                      # (v,) rows that hold learned vectors instead
    vectors: Tensor                      # (v,) which of the c * l vectors
    ends: Tensor                         # (c,) rows of [EOS], bucket by bucket
    order: Tensor                        # (c,) where each class stands among these


class CausalText(TextTower):
    """A causal pre-norm transformer read at [EOS]: a position sees what stands before it, so padding cannot matter.

    Args:
        text: holds `token_embedding`, `positional_embedding` (window, w), `transformer.resblocks` (each with `ln_1`,
            `attn`: nn.MultiheadAttention, `ls_1`, `ln_2`, `mlp`, `ls_2`), `ln_final` and `text_projection`.
        memory_gb: see `TextTower`.
    """

    def __init__(self, text: Any, *, memory_gb: float | None = None):
        super().__init__(text.token_embedding, memory_gb=memory_gb)
        self.text = text

    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        common = common_prefix(prompts)
        return common, prompts.ends + 1 - common

    def _beginning(self, prompts: Prompts, context: Tensor) -> Tensor | None:
        """(blocks, 2, g, h, n, w / h) keys and values of the n positions that all prompts have in common."""
        common = common_prefix(prompts)
        if not common:
            return None
        tokens, slots, ends, shared = prompts
        alone = Prompts(tokens[:1], slots[:1], torch.full_like(ends[:1], common - 1), shared)
        x, rows = self._embedded(alone, context[:, :1], known=0, common=0)             # (g, n, w)
        blocks, kept = self.text.transformer.resblocks, []
        for block in blocks:
            x, key_value = _block(block, x, rows, None, only_ends=block is blocks[-1])
            kept.append(key_value)                                                     # (2, g, h, n, w / h)
        return torch.stack(kept)

    def _features(self, prompts: Prompts, context: Tensor, beginning: Tensor | None = None) -> Tensor:
        known = 0 if beginning is None else beginning.shape[-2]
        x, rows = self._embedded(prompts, context, known=known, common=known or common_prefix(prompts))
        blocks = self.text.transformer.resblocks
        before = [None] * len(blocks) if beginning is None else beginning
        for block, key_value in zip(blocks, before, strict=True):
            x, _ = _block(block, x, rows, key_value, only_ends=block is blocks[-1])
        x = self.text.ln_final(x)[:, rows.order]                                       # (g, c, w)
        projection = self.text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection  # (g, c, d)

    def _embedded(self, prompts: Prompts, context: Tensor, *, known: int, common: int) -> tuple[Tensor, Rows]:
        """(g, r, w) what enters the first block: positions before `known` are left out, those before `common` stand
        there once.
        """
        (g, _, length, _), c, weight = context.shape, len(prompts.ends), self.embedding.weight
        padding = PADDING.get(weight.device.type, CPU_PADDING) // g
        rows = arrange(prompts, known=known, common=common, padding=padding, like=weight)
        x = self.embedding(rows.ids).expand(g, -1, -1)                                 # (g, r, w)
        if len(rows.learned):
            vectors = context.to(x.dtype).expand(g, c, length, -1).flatten(1, 2)       # (g, c * l, w)
            x = x.index_copy(1, rows.learned, vectors.index_select(1, rows.vectors))
        return x + self.text.positional_embedding[rows.positions], rows


def common_prefix(prompts: Prompts) -> int:
    """At how many positions, from the first on, all prompts hold the same tokens and the same learned vectors."""
    tokens, slots, ends, shared = prompts
    c, window = tokens.shape
    places = slots.clamp(max=window)                                                   # some stand behind the window
    numbers = torch.arange(slots.shape[1]).expand(c, -1)
    slot_at = torch.full((c, window + 1), -1).scatter(1, places, numbers)[:, :window]  # (c, t) -1 at a constant token
    held = torch.where(slot_at < 0, tokens, -1 - slot_at)                              # (c, t)
    same = (held == held[:1]).all(0) & (slot_at < shared).all(0)                       # (t,)
    return int(same[:int(ends.min())].long().cumprod(0).sum())


def remembered(arrange: Callable[..., Rows]) -> Callable[..., Rows]:
    """Prompts come back in every training step: their rows are found, and copied to a GPU, once."""
    known: dict[tuple[object, ...], Rows] = {}

    def found(prompts: Prompts, **options: Any) -> Rows:
        key = tuple(map(_contents, (*prompts, *options.values())))
        if key not in known:
            with torch.inference_mode(mode=False):               # or no later step could learn through them
                known[key] = arrange(prompts, **options)
            while len(known) > REMEMBERED:
                known.pop(next(iter(known)), None)               # another thread may have been faster
        return known[key]

    return found


def _contents(value: Any) -> object:
    """What makes an argument of `arrange` another one: of weights, their device and dtype alone."""
    if not isinstance(value, Tensor):
        return value
    return (value.device, value.dtype) if value.is_floating_point() else (value.shape, value.numpy().tobytes())


@remembered
def arrange(prompts: Prompts, *, known: int, common: int, padding: int, like: Tensor) -> Rows:
    """Rows of `prompts`: positions before `known` are left out, those before `common` stand there once.

    A bucket may hold `padding` rows that are none of any prompt. All is on the device of `like`, masks of its dtype.
    """
    tokens, slots, ends, _ = prompts
    (c, window), start = tokens.shape, common - known
    flat, lasts, buckets = [torch.arange(known, common)], [], []                       # flat: class * window + position
    for classes in _buckets(ends, padding):
        last = ends[classes] - common                                                  # (k,)
        span = torch.arange(int(last.max()) + 1)                                       # (s,)
        flat.append((classes[:, None] * window + common + span).flatten())
        lasts.append(start + torch.arange(len(classes)) * len(span) + last)
        future = _future(len(span), like)
        buckets.append(Bucket(len(classes) * len(span), future, future[last.to(like.device)][:, None]))
        start += len(classes) * len(span)
    at = torch.cat(flat)                                                               # (r,)
    row_of = torch.full((c * window + 1,), -1).scatter(0, at, torch.arange(len(at)))
    inside = slots < window
    learned = row_of[(slots + torch.arange(c)[:, None] * window).where(inside, c * window)].flatten()    # (c * l,)
    computed = (learned >= 0).nonzero().squeeze(1)                                     # (v,)
    order = torch.cat(list(_buckets(ends, padding))).argsort()
    ids, positions, learned, computed, rows_of_ends, order = (part.to(like.device) for part in (
        tokens.flatten()[at], at % window, learned[computed], computed, torch.cat(lasts), order))
    return Rows(_future(common - known, like), tuple(buckets), ids, positions, learned, computed, rows_of_ends, order)


def _buckets(ends: Tensor, padding: int) -> Iterator[Tensor]:
    """Classes (k,) by falling length, as many together as `padding` rows allow."""
    order = ends.argsort(descending=True, stable=True)
    begin, spare, lengths = 0, 0, ends[order].tolist()
    for number, length in enumerate(lengths):
        spare += lengths[begin] - length
        if spare > padding:
            yield order[begin:number]
            begin, spare = number, 0
    yield order[begin:]


def _block(block: Any, x: Tensor, rows: Rows, beginning: Tensor | None, *, only_ends: bool) -> tuple[Tensor, Tensor]:
    """One residual block on (g, r, w), and its keys and values (2, g, h, r, w / h).

    Args:
        beginning: (2, g, h, n, w / h) keys and values of the common beginning where no rows of `x` hold it.
        only_ends: the result (g, c, w) is that of the rows of [EOS] alone.
    """
    normed = block.ln_1(x)                                                             # (g, r, w)
    asking = normed
    if only_ends:
        x, asking = x[:, rows.ends], normed[:, rows.ends]                              # (g, c, w)
    mixed, key_value = _attention(block.attn, asking, normed, rows, beginning, only_ends=only_ends)
    x = x + block.ls_1(mixed)
    return x + block.ls_2(block.mlp(block.ln_2(x))), key_value


def _attention(attention: nn.MultiheadAttention, asking: Tensor, x: Tensor, rows: Rows, beginning: Tensor | None, *,
               only_ends: bool) -> tuple[Tensor, Tensor]:
    """(g, r or c, w): of the rows `asking` to those of `x` (g, r, w) that stand before them in their prompt; and
    `_block`'s keys and values.
    """
    weight, bias, width, heads = attention.in_proj_weight, attention.in_proj_bias, x.shape[-1], attention.num_heads
    query = (width // heads) ** -0.5 * F.linear(asking, weight[:width], bias[:width])  # (g, r or c, w)
    both = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))     # (g, r, 2, h, w / h)
    sizes = [len(rows.future), *(bucket.rows for bucket in rows.buckets)]
    asks = [0, *(len(bucket.last) for bucket in rows.buckets)] if only_ends else sizes
    first, *asked = query.unflatten(-1, (heads, -1)).split(asks, dim=1)                # (g, k * q, h, w / h)
    common, *own = both.split(sizes, dim=1)                                            # (g, k * s, 2, h, w / h)
    if beginning is None:                # a view would keep all of `both` for the backward pass
        beginning = common.permute(2, 0, 3, 1, 4).clone()                              # (2, g, h, n, w / h)
    mixed = [_mix(first, beginning, rows.future)] if first.shape[1] else []
    for bucket, asking, key_value in zip(rows.buckets, asked, own, strict=True):
        future = bucket.last if only_ends else bucket.future
        mixed.append(_mix_both(asking, beginning, key_value, len(bucket.last), future))    # (g, k * q, h, w / h)
    return attention.out_proj(torch.cat(mixed, dim=1).flatten(2)), both.permute(2, 0, 3, 1, 4)


def _future(length: int, like: Tensor) -> Tensor:
    """(length, length): minus infinity where a position would see a later one."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _mix(query: Tensor, before: Tensor, future: Tensor) -> Tensor:
    """(g, n, h, w / h): of `query` (g, n, h, w / h) to the common beginning that they are."""
    # plain products: on a CPU in bfloat16 the backward pass of the fused attention takes twice as long
    key, value = before                                                                # (g, h, n, w / h)
    return ((query.transpose(1, 2) @ key.mT + future).softmax(dim=-1) @ value).transpose(1, 2)


def _mix_both(query: Tensor, before: Tensor, own: Tensor, k: int, future: Tensor) -> Tensor:
    """(g, k * q, h, w / h): of as many `query` to the beginning (2, g, h, n, w / h) and to each class's own positions
    (g, k * s, 2, h, w / h), one softmax over both.
    """
    key, value = before
    own_key, own_value = own.unflatten(1, (k, -1)).permute(3, 0, 4, 1, 2, 5)           # (g, h, k, s, w / h)
    query = query.transpose(1, 2).contiguous()                                         # (g, h, k * q, w / h)
    to_common = (query @ key.mT).unflatten(2, (k, -1))                                 # (g, h, k, q, n)
    to_own = query.unflatten(2, (k, -1)) @ own_key.mT + future                         # (g, h, k, q, s)
    weights = torch.cat([to_common, to_own], dim=-1).softmax(dim=-1)
    on_common, on_own = weights.split([key.shape[2], own_key.shape[3]], dim=-1)
    mixed = on_common.flatten(2, 3) @ value + (on_own @ own_value).flatten(2, 3)       # (g, h, k * q, w / h)
    return mixed.transpose(1, 2)
