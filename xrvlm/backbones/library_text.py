"""The text side of any tower: the library's own encoder."""

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.text_encoder import Prompts, TextTower


class LibraryText(TextTower):
    """Any tower: the library's own encoder, with the learned vectors put in behind its token embedding.

    Args:
        encode: (n, t) token ids -> (n, d).
        shortens: the tower is causal and its encoder takes fewer tokens than the window.
        memory_gb: see `TextTower`.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], embedding: nn.Embedding, *, shortens: bool = False,
                 memory_gb: float | None = None):
        super().__init__(embedding, memory_gb=memory_gb)
        self.encode, self.shortens = encode, shortens

    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        return 0, torch.full_like(prompts.ends, self._length(prompts))

    def _length(self, prompts: Prompts) -> int:
        return int(prompts.ends.max()) + 1 if self.shortens else prompts.tokens.shape[1]

    def _features(self, prompts: Prompts, context: Tensor, beginning: Tensor | None = None) -> Tensor:
        (g, _, length, width), c = context.shape, len(prompts.ends)
        tokens, slots = (part.repeat(g, 1).to(self.embedding.weight.device) for part in prompts[:2])    # (n, t), (n, l)
        tokens = tokens[:, :self._length(prompts)]
        if not length:
            return self.encode(tokens).unflatten(0, (g, c))

        vectors, caller = context.expand(g, c, length, width).flatten(0, 1), get_ident()    # (n, l, w)

        def put_in(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return _put(embedded, slots, vectors) if get_ident() == caller else embedded

        hook = self.embedding.register_forward_hook(put_in)
        try:
            return self.encode(tokens).unflatten(0, (g, c))                            # (g, c, d)
        finally:
            hook.remove()


def _put(embedded: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """(n, t, w) with `vectors` (n, l, w) at `slots` (n, l); those at positions that are not computed are left out."""
    at = slots[..., None].expand(-1, -1, embedded.shape[-1])
    length = embedded.shape[1]
    left_out = max(0, int(slots.max()) + 1 - length)
    return F.pad(embedded, (0, 0, 0, left_out)).scatter(1, at, vectors.to(embedded.dtype))[:, :length]
