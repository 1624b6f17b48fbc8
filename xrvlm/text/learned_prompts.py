"""Learnable prompts (CoOp, Zhou et al., IJCV 2022, arXiv:2109.01134): context vectors around a class name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP, NamePosition, PromptLayout
from xrvlm.distributed import active_group
from xrvlm.errors import UserError, option, unknown
from xrvlm.text.class_text import ClassText

ContextKind = Literal["specific", "shared", "shared_then_specific"]
OWN_PROMPTS = "a learned prompt for each class"    # why a method cannot be used for other classes


class ClassPrompts(nn.Module, ABC):
    """Computes g text features of each class. Does not hold the tower."""

    text_parts: int                      # g
    label: str                           # name in a run's record
    open_classes: bool = False           # nothing learned is specific to a class: `for_classes` works

    def prepare(self, clip: FrozenCLIP) -> None:
        """Encode fixed text once, before training; skipped when a saved model is loaded."""

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> Self:
        """A copy for other classes that shares the learned parameters. Only if `open_classes`."""
        raise NotImplementedError(f"{type(self).__name__} has open_classes but no `for_classes`")

    @abstractmethod
    def forward(self, clip: FrozenCLIP) -> Tensor:
        """(g, c, d) unit norm."""


class ContextPrompts(ClassPrompts):
    """`[SOS] v_1 ... v_l Class Name . [EOS]`, g prompts per class.

    Args:
        text_parts: g, prompts per class.
        length: l, learned vectors per prompt. Ignored with `words`.
        context: each class has its own vectors, all classes share them, or they share the first of them.
        shared_length: with `shared_then_specific`, the number of shared vectors; None: half.
        words: initialise with the token embeddings of these words ("a photo of a") instead of N(0, 0.02).
        position: position of the class name.
        full_stop: a full stop ends the prompt.

    Raises:
        UserError: a prompt does not fit the window of the text tower, there is nothing to learn, or `shared_length`
            does not fit the other options.
    """

    label = "learned"

    def __init__(self, clip: FrozenCLIP, names: tuple[str, ...], *, text_parts: int = 1, length: int = 16,
                 context: ContextKind = "specific", shared_length: int | None = None, words: str | None = None,
                 position: NamePosition = "end", full_stop: bool = True):
        super().__init__()
        if length < 1 or text_parts < 1:
            raise UserError("a learned prompt needs at least one vector and one text part, found "
                            f"{option('method.context_length', length)} and {option('method.text_parts', text_parts)}")
        start = None if words is None else clip.embed_words(words)                         # (l, w)
        length = length if start is None else len(start)
        if length < 1:
            raise UserError(f"{option('method.context_words', words)} holds no word that the tokenizer knows; give "
                            f"other words, or {option('method.context_words', None)}")
        self.text_parts, shared = text_parts, _shared_vectors(context, length, shared_length)
        self.position: NamePosition = position
        self.full_stop = full_stop
        self.open_classes = shared == length
        if self.open_classes:
            check_told_apart(clip, names)
        self.layout = replace(clip.layout(names, length, position, full_stop), shared=shared)
        self.shared = _vectors(text_parts, 1, shared, clip.text_width)                     # (g, 1, l_s, w)
        self.specific = _vectors(text_parts, len(names), length - shared, clip.text_width)    # (g, c, l_c, w)
        if start is not None:
            for vectors, begin in ((self.shared, start[:shared]), (self.specific, start[shared:])):
                if vectors is not None:
                    vectors.data.copy_(begin.expand_as(vectors))

    @property
    def vectors(self) -> Tensor:
        """(g, c or 1, l, w) all learned vectors, in the order of the prompt."""
        learned = [vectors for vectors in (self.shared, self.specific) if vectors is not None]
        classes = max(vectors.shape[1] for vectors in learned)
        return torch.cat([vectors.expand(-1, classes, -1, -1) for vectors in learned], 2)  # (g, c or 1, l, w)

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> Self:
        assert self.specific is None, "vectors of one class cannot be used for another"
        converted, length = copy(self), self.layout.shared
        check_told_apart(clip, classes.names)
        converted.layout = replace(clip.layout(classes.names, length, self.position, self.full_stop), shared=length)
        return converted

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return encode_prompts(clip, self.vectors, self.layout)                             # (g, c, d)


def check_told_apart(clip: FrozenCLIP, names: Sequence[str]) -> None:
    """UserError if the text tower reads two names as the same, so that each photo of one may as well be the other's."""
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, clip.layout(names, 0).tokens.tolist(), strict=True):
        other = seen.setdefault(tuple(row), name)
        if other != name:
            raise UserError(f"the text tower reads the classes {other!r} and {name!r} as the same: its tokenizer "
                            "leaves out or does not know what tells them apart; give them other names "
                            f"({option('data.class_names')}), or descriptions ({option('text.descriptions')})")


def encode_prompts(clip: FrozenCLIP, context: Tensor, layout: PromptLayout) -> Tensor:
    """(g, c, d) `clip.encode_prompts`; the classes are sharded over the ranks of the active group."""
    if not torch.is_grad_enabled():          # in evaluation, each rank encodes all classes
        return clip.encode_prompts(context, layout)
    group, count = active_group(), len(layout.tokens)
    if not 1 < group.world <= count:
        return clip.encode_prompts(context, layout)
    own = group.share(count)
    shard = replace(layout, tokens=layout.tokens[own], slots=layout.slots[own], ends=layout.ends[own])
    features = clip.encode_prompts(context[:, own] if context.shape[1] > 1 else context, shard)
    return group.gather(features, count, dim=1)


def _shared_vectors(context: ContextKind, length: int, shared_length: int | None) -> int:
    """The number of the `length` vectors that all classes share."""
    if context not in get_args(ContextKind):
        raise unknown(option("method.context"), context, get_args(ContextKind))
    if context != "shared_then_specific":
        if shared_length is not None:
            raise UserError(f"{option('method.shared_length', shared_length)} needs "
                            f"{option('method.context', 'shared_then_specific')}, found "
                            f"{option('method.context', context)}; leave it out, or change the context")
        return length if context == "shared" else 0
    if length < 2:
        raise UserError(f"{option('method.context', 'shared_then_specific')} needs at least two learned vectors, found "
                        "one; choose a longer context, or another kind")
    shared = length // 2 if shared_length is None else shared_length
    if not 1 <= shared < length:
        raise UserError(f"{option('method.shared_length')} must be from 1 to {length - 1}, so that some of the "
                        f"{length} learned vectors are shared and some specific, found {shared}")
    return shared


def _vectors(text_parts: int, classes: int, length: int, width: int) -> nn.Parameter | None:
    return nn.Parameter(torch.randn(text_parts, classes, length, width) * 0.02) if length else None
