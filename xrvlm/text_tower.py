"""The text side of a frozen CLIP: prompts of constant tokens and learned vectors in, features at [EOS] out.

Two ways, equal in value and gradient: `LibraryText` calls a library's own encoder whatever it is, `CausalText` computes
a causal transformer only as far as the longest prompt reaches. Letters as in xrvlm/backbone.py; `n` prompts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROMPTS_AT_ONCE = 256                    # bounds the memory where no gradient is kept


class TextTower(ABC):
    """Holds references to modules of the tower, owns nothing: it is no module itself."""

    def __init__(self, embedding: nn.Embedding):
        self.embedding = embedding

    def encode_tokens(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """(n, t) token ids with [EOS] at `ends` (n,) -> (n, d), not normalised."""
        parts = zip(tokens.split(PROMPTS_AT_ONCE), ends.split(PROMPTS_AT_ONCE), strict=True)
        return torch.cat([self._features(part, part_ends, None) for part, part_ends in parts])

    def encode_prompts(self, context: Tensor, tokens: Tensor, slots: Tensor, ends: Tensor) -> Tensor:
        """Learned vectors `context` (g, c or 1, l, w) at the positions `slots` (c, l) of `tokens` (c, t) -> (g, c, d).

        Differentiable in `context`; not normalised.
        """
        g, c = len(context), len(tokens)
        keeps_graph = torch.is_grad_enabled() and context.requires_grad
        step = c if keeps_graph else max(1, PROMPTS_AT_ONCE // g)
        features = []
        for start in range(0, c, step):
            part = slice(start, start + step)
            vectors = (context[:, part] if context.shape[1] > 1 else context).expand(g, len(tokens[part]), -1, -1)
            learned = slots[part].repeat(g, 1), vectors.flatten(0, 1)                  # (n, l), (n, l, w)
            encoded = self._features(tokens[part].repeat(g, 1), ends[part].repeat(g), learned)
            features.append(encoded.unflatten(0, (g, -1)))                             # (g, c of this part, d)
        return torch.cat(features, dim=1)

    @abstractmethod
    def _features(self, tokens: Tensor, ends: Tensor, learned: tuple[Tensor, Tensor] | None) -> Tensor:
        """(n, t), (n,), ((n, l), (n, l, w)) or None -> (n, d)."""


class LibraryText(TextTower):
    """Any tower: the library's own encoder, with the learned vectors put in behind its token embedding.

    Args:
        encode: (n, t) token ids -> (n, d).
        shortens: the tower is causal and its encoder takes fewer tokens than the window.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], embedding: nn.Embedding, *, shortens: bool = False):
        super().__init__(embedding)
        self.encode, self.shortens = encode, shortens

    def _features(self, tokens: Tensor, ends: Tensor, learned: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.shortens:
            tokens = tokens[:, :int(ends.max()) + 1]
        if learned is None:
            return self.encode(tokens)

        caller = get_ident()

        def put_in(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return _put(embedded, *learned) if get_ident() == caller else embedded

        hook = self.embedding.register_forward_hook(put_in)
        try:
            return self.encode(tokens)
        finally:
            hook.remove()


class CausalText(TextTower):
    """A causal pre-norm transformer read at [EOS]: positions behind the last [EOS] cannot matter and are left out.

    Args:
        text: holds `token_embedding`, `positional_embedding` (window, w), `transformer.resblocks` (each with `ln_1`,
            `attn`: nn.MultiheadAttention, `ls_1`, `ln_2`, `mlp`, `ls_2`), `ln_final` and `text_projection`.
    """

    def __init__(self, text: Any):
        super().__init__(text.token_embedding)
        self.text = text

    def _features(self, tokens: Tensor, ends: Tensor, learned: tuple[Tensor, Tensor] | None) -> Tensor:
        length = int(ends.max()) + 1
        x = self.embedding(tokens[:, :length])                                         # (n, t, w)
        if learned is not None:
            x = _put(x, *learned)
        x = x + self.text.positional_embedding[:length]
        future = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        *blocks, last = self.text.transformer.resblocks
        for block in blocks:
            x = _block(block, x, future)
        x = self.text.ln_final(_block(last, x, future, ends)[:, 0])                    # (n, w)
        projection = self.text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection  # (n, d)


def _put(embedded: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """(n, t, w) with `vectors` (n, l, w) at `slots` (n, l); those at positions that are not computed are left out."""
    at = slots[..., None].expand(-1, -1, embedded.shape[-1])
    length = embedded.shape[1]
    left_out = max(0, int(slots.max()) + 1 - length)
    return F.pad(embedded, (0, 0, 0, left_out)).scatter(1, at, vectors.to(embedded.dtype))[:, :length]


def _block(block: Any, x: Tensor, future: Tensor, only: Tensor | None = None) -> Tensor:
    """One residual block on (n, t, w); with `only` (n,) the result (n, 1, w) at that position of each prompt alone."""
    normed = block.ln_1(x)                                                             # (n, t, w)
    asking = normed
    if only is not None:
        rows = torch.arange(len(x), device=x.device)
        x, asking, future = x[rows, only][:, None], normed[rows, only][:, None], future[only][:, None, None]
    x = x + block.ls_1(_attention(block.attn, asking, normed, future))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attention(attention: nn.MultiheadAttention, asking: Tensor, x: Tensor, future: Tensor) -> Tensor:
    """(n, q, w): of the positions `asking` (n, q, w) to all of `x` (n, t, w)."""
    # plain products: on a CPU in bfloat16 the backward pass of the fused attention takes twice as long
    weight, bias, width, heads = attention.in_proj_weight, attention.in_proj_bias, x.shape[-1], attention.num_heads
    query = F.linear(asking, weight[:width], bias[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    both = F.linear(x, weight[width:], bias[width:])                                   # (n, t, 2 w)
    key, value = both.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)             # (n, heads, t, w / heads)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT + future                       # (n, heads, q, t)
    mixed = scores.softmax(dim=-1) @ value                                             # (n, heads, q, w / heads)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))                        # (n, q, w)
