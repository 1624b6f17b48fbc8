"""Learnable prompts (CoOp, Zhou et al., IJCV 2022, arXiv:2109.01134): context vectors around a class name."""

from copy import copy

import torch
from torch import Tensor, nn

from xrvlm.backbone import FrozenCLIP, NamePosition
from xrvlm.errors import UserError


class ContextPrompts(nn.Module):
    """`[SOS] v_1 ... v_l Class Name . [EOS]`, g prompts a class, the context shared by the classes or one for each.

    Args:
        text_parts: g, prompts per class.
        length: l, learned vectors per prompt. Ignored with `words`.
        shared: one context for all classes instead of one for each.
        words: start from the token embeddings of these words ("a photo of a") instead of N(0, 0.02).
        position: where the class name stands.

    Raises:
        UserError: a prompt does not fit the window of the text tower, or there is nothing to learn.
    """

    def __init__(self, clip: FrozenCLIP, names: tuple[str, ...], *, text_parts: int = 1, length: int = 16,
                 shared: bool = False, words: str | None = None, position: NamePosition = "end"):
        super().__init__()
        if length < 1 or text_parts < 1:
            raise UserError(f"a learned prompt needs at least one vector and one text part, found context_length="
                            f"{length} and text_parts={text_parts}")
        start = None if words is None else clip.embed_words(words)                         # (l, w)
        length = length if start is None else len(start)
        if length < 1:
            raise UserError(f"context_words={words!r} holds no word that the tokenizer knows; give some, or null")
        self.position: NamePosition = position
        self.layout = clip.layout(names, length, position)
        self.context = nn.Parameter(torch.randn(text_parts, 1 if shared else len(names), length, clip.text_width)
                                    * 0.02)                                                # (g, c or 1, l, w)
        if start is not None:
            self.context.data.copy_(start.expand_as(self.context))

    def for_names(self, clip: FrozenCLIP, names: tuple[str, ...]) -> "ContextPrompts":
        """The same learned vectors around other names; for a shared context."""
        assert self.context.shape[1] == 1, "vectors of a class's own say nothing of another class"
        turned = copy(self)
        turned.layout = clip.layout(names, self.context.shape[2], self.position)
        return turned

    def forward(self, clip: FrozenCLIP) -> Tensor:
        """(g, c, d) unit norm."""
        return clip.encode_prompts(self.context, self.layout)
