"""A text encoder for any tower: calls the library's own encoder."""

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.text_encoder import Prompts, TextEncoder


class LibraryTextEncoder(TextEncoder):
    """Calls the library's encoder and inserts the learned vectors into the output of its token embedding.

    Args:
        encode: (n, t) token ids -> (n, d).
        shortens: the tower is causal and `encode` accepts fewer tokens than the window.
        memory_gb: see `TextEncoder`.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], embedding: nn.Embedding, *, shortens: bool = False,
                 memory_gb: float | None = None):
        super().__init__(embedding, memory_gb=memory_gb)
        self.encode, self.shortens = encode, shortens

    def encode_window(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens)

    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        return 0, torch.full_like(prompts.ends, self._length(prompts))

    def _length(self, prompts: Prompts) -> int:
        return int(prompts.ends.max()) + 1 if self.shortens else prompts.tokens.shape[1]

    def _features(self, prompts: Prompts, context: Tensor, prefix: Tensor | None = None) -> Tensor:
        (g, _, length, width), c = context.shape, len(prompts.ends)
        tokens, slots = (rows.repeat(g, 1).to(self.embedding.weight.device) for rows in prompts[:2])    # (n, t), (n, l)
        tokens = tokens[:, :self._length(prompts)]
        if not length:
            return self.encode(tokens).unflatten(0, (g, c))

        vectors, caller = context.expand(g, c, length, width).flatten(0, 1), get_ident()    # (n, l, w)

        def insert(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return _inserted(embedded, slots, vectors) if get_ident() == caller else embedded

        hook = self.embedding.register_forward_hook(insert)
        try:
            return self.encode(tokens).unflatten(0, (g, c))                            # (g, c, d)
        finally:
            hook.remove()


def _inserted(embedded: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """(n, t, w) with `vectors` (n, l, w) at `slots` (n, l); slots at positions that are not computed are ignored."""
    index = slots[..., None].expand(-1, -1, embedded.shape[-1])
    length = embedded.shape[1]
    ignored = max(0, int(slots.max()) + 1 - length)
    return F.pad(embedded, (0, 0, 0, ignored)).scatter(1, index, vectors.to(embedded.dtype))[:, :length]
