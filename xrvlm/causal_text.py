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

from xrvlm.text_tower import Prompts, TextTower

PADDING = {"cuda": 2048}                 # rows of padding that cost about as much as one more bucket
CPU_PADDING = 8
REMEMBERED = 64                          # arrangements: chunks of the prompts that a run trains


@dataclass(frozen=True)
class Bucket:
    """Classes that are padded to one length: rows `start` to `start + k * s`."""

    start: int
    length: int                          # s
    last: Tensor                         # (k,) where [EOS] stands among the s positions


@dataclass(frozen=True)
class Rows:
    """Which position of which prompt stands in which row."""

    prefix: int                          # rows of the common beginning
    ids: Tensor                          # (r,) token ids
    positions: Tensor                    # (r,) places in the window
    learned: Tensor                      # (v,) rows that hold learned vectors instead
    vectors: Tensor                      # (v,) which of the c * l vectors
    buckets: tuple[Bucket, ...]
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

    def _positions(self, prompts: Prompts, *, shared: bool) -> tuple[int, Tensor]:
        prefix = common_prefix(prompts, shared=shared)
        return prefix, prompts.ends + 1 - prefix

    def _features(self, context: Tensor, prompts: Prompts) -> Tensor:
        g, c, device = len(context), len(prompts.ends), self.embedding.weight.device
        padding = PADDING.get(device.type, CPU_PADDING) // g
        rows = arrange(prompts, shared=context.shape[1] == 1, padding=padding, device=device)
        x = self.embedding(rows.ids).expand(g, -1, -1)                                 # (g, r, w)
        vectors = context.to(x.dtype).expand(g, c, -1, -1).flatten(1, 2)               # (g, c * l, w)
        x = x.index_copy(1, rows.learned, vectors.index_select(1, rows.vectors))
        x = x + self.text.positional_embedding[rows.positions]
        *blocks, last = self.text.transformer.resblocks
        for block in blocks:
            x = _block(block, x, rows, only_ends=False)
        x = self.text.ln_final(_block(last, x, rows, only_ends=True))[:, rows.order]   # (g, c, w)
        projection = self.text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection  # (g, c, d)


def common_prefix(prompts: Prompts, *, shared: bool) -> int:
    """At how many positions, from the first on, all prompts hold the same; `shared`: the learned vectors too."""
    tokens, slots, ends = prompts
    c, window = tokens.shape
    places = slots.clamp(max=window)                                                   # some stand behind the window
    numbers = torch.arange(slots.shape[1]).expand(c, -1)
    slot_at = torch.full((c, window + 1), -1).scatter(1, places, numbers)[:, :window]  # (c, t) -1 at a constant token
    held = torch.where(slot_at < 0, tokens, -1 - slot_at)                              # (c, t)
    same = (held == held[:1]).all(0) & (shared | (slot_at < 0).all(0))                 # (t,)
    return int(same[:int(ends.min())].long().cumprod(0).sum())


def remembered(arrange: Callable[..., Rows]) -> Callable[..., Rows]:
    """Prompts come back in every training step: their rows are found, and copied to a GPU, once."""
    known: dict[tuple[object, ...], Rows] = {}

    def found(prompts: Prompts, **options: Any) -> Rows:
        key = *(part.shape for part in prompts), *(part.numpy().tobytes() for part in prompts), *options.items()
        if key not in known:
            with torch.inference_mode(mode=False):    # or no later step could learn through them
                known[key] = arrange(prompts, **options)
            while len(known) > REMEMBERED:
                known.pop(next(iter(known)), None)       # another thread may have been faster
        return known[key]

    return found


@remembered
def arrange(prompts: Prompts, *, shared: bool, padding: int, device: torch.device) -> Rows:
    """Rows of `prompts`; a bucket may hold `padding` rows that are none of any prompt."""
    tokens, slots, ends = prompts
    c, window = tokens.shape
    prefix = common_prefix(prompts, shared=shared)
    flat, lasts, buckets, start = [torch.arange(prefix)], [], [], prefix               # flat: class * window + position
    for classes in _buckets(ends, padding):
        last = ends[classes] - prefix                                                  # (k,)
        span = torch.arange(int(last.max()) + 1)                                       # (s,)
        flat.append((classes[:, None] * window + prefix + span).flatten())
        lasts.append(start + torch.arange(len(classes)) * len(span) + last)
        buckets.append(Bucket(start, len(span), last.to(device)))
        start += len(classes) * len(span)
    at = torch.cat(flat)                                                               # (r,)
    row_of = torch.full((c * window + 1,), -1).scatter(0, at, torch.arange(len(at)))
    inside = slots < window
    learned = row_of[(slots + torch.arange(c)[:, None] * window).where(inside, c * window)].flatten()    # (c * l,)
    computed = (learned >= 0).nonzero().squeeze(1)                                     # (v,)
    order = torch.cat(list(_buckets(ends, padding))).argsort()
    ids, positions, learned, computed, rows_of_ends, order = (part.to(device) for part in (
        tokens.flatten()[at], at % window, learned[computed], computed, torch.cat(lasts), order))
    return Rows(prefix, ids, positions, learned, computed, tuple(buckets), rows_of_ends, order)


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


def _block(block: Any, x: Tensor, rows: Rows, *, only_ends: bool) -> Tensor:
    """One residual block on (g, r, w); `only_ends`: the result (g, c, w) at the rows of [EOS] alone."""
    normed = block.ln_1(x)                                                             # (g, r, w)
    asking = normed
    if only_ends:
        x, asking = x[:, rows.ends], normed[:, rows.ends]                              # (g, c, w)
    x = x + block.ls_1(_attention(block.attn, asking, normed, rows, only_ends=only_ends))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attention(attention: nn.MultiheadAttention, asking: Tensor, x: Tensor, rows: Rows, *, only_ends: bool) -> Tensor:
    """(g, r or c, w): of the rows `asking` to those of `x` (g, r, w) that stand before them in their prompt."""
    weight, bias, width, heads = attention.in_proj_weight, attention.in_proj_bias, x.shape[-1], attention.num_heads
    scale, n = (width // heads) ** -0.5, rows.prefix
    query = (scale * F.linear(asking, weight[:width], bias[:width])).unflatten(-1, (heads, -1)).transpose(1, 2)
    both = F.linear(x, weight[width:], bias[width:])                                   # (g, r, 2 w)
    key, value = both.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)             # (g, h, r, w / h)
    before = key[:, :, :n], value[:, :, :n]
    mixed, done = [], 0
    if not only_ends:
        mixed, done = [_mix(query[:, :, :n], *before, _future(n, x))], n
    for bucket in rows.buckets:
        k, s = len(bucket.last), bucket.length
        q, future = (1, _future(s, x)[bucket.last][:, None]) if only_ends else (s, _future(s, x))
        own_key, own_value = (part[:, :, bucket.start:bucket.start + k * s].unflatten(2, (k, s))
                              for part in (key, value))                                # (g, h, k, s, w / h)
        asked = query[:, :, done:done + k * q].unflatten(2, (k, q))                    # (g, h, k, q, w / h)
        mixed.append(_mix_both(asked, *before, own_key, own_value, future))
        done += k * q
    return attention.out_proj(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))


def _future(length: int, like: Tensor) -> Tensor:
    """(length, length): minus infinity where a position would see a later one."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _mix(query: Tensor, key: Tensor, value: Tensor, future: Tensor) -> Tensor:
    # plain products: on a CPU in bfloat16 the backward pass of the fused attention takes twice as long
    return (query @ key.mT + future).softmax(dim=-1) @ value


def _mix_both(query: Tensor, key: Tensor, value: Tensor, own_key: Tensor, own_value: Tensor, future: Tensor) -> Tensor:
    """(g, h, k * q, w / h): of `query` (g, h, k, q, w / h) to the prefix (g, h, n, w / h) and to the positions of each
    class's own (g, h, k, s, w / h), one softmax over both.
    """
    k, q, n = *query.shape[2:4], key.shape[2]
    common = (query.flatten(2, 3) @ key.mT).unflatten(2, (k, q))                       # (g, h, k, q, n)
    weights = torch.cat([common, query @ own_key.mT + future], dim=-1).softmax(dim=-1)    # (g, h, k, q, n + s)
    from_own = weights[..., n:] @ own_value                                            # (g, h, k, q, w / h)
    return weights[..., :n].flatten(2, 3) @ value + from_own.flatten(2, 3)
