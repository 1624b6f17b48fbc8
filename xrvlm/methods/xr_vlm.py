"""XR-VLM (Wang et al., 2025, arXiv:2503.07075): relations of every image part with every prompt of every class."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from xrvlm.backbone import Features, FrozenCLIP, NamePosition
from xrvlm.context import ContextPrompts
from xrvlm.errors import UserError, unknown
from xrvlm.features import FeatureSource
from xrvlm.method import Method
from xrvlm.parts import PartPooling
from xrvlm.recipe import Recipe
from xrvlm.relations import HIDDEN_WIDTH, Alignment, CrossRelations, PerClassRelations, VisualParts
from xrvlm.text import ClassText

Head = Literal["cross", "diagonal", "per_class", "per_class_diagonal", "alignment", "visual"]
PAIRED = ("diagonal", "per_class_diagonal", "alignment")    # image part i goes with text part i alone
OPEN_HEADS = ("per_class", "per_class_diagonal", "alignment")    # none of their weights belongs to a class
MOST_PARTS = 16


class XRVLM(Method):
    """Several part features of an image, several prompts of a class, and a classifier over all their relations.

    Args:
        head: what relates parts and prompts; `cross` is the paper's, the others are its ablations (relations.py).
        image_parts: m, part features of an image.
        text_parts: g, learned prompts of a class. Part descriptions bring their own number.
        part_prompts: `learned` context, or the fixed `descriptions` of the class's parts (`text.parts=`).
        context_length: learned vectors in a prompt. Ignored with `context_words`.
        shared_context: one context for all classes instead of one for each.
        context_words: start from these words instead of noise.
        name_position: where the class name stands.
        hidden: width of the head's hidden layer.
    """

    needs = frozenset({"pooled", "tokens", "mid_tokens"})
    recipe = Recipe("xr_vlm", epochs=100, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, warmup_epochs=5)
    label = "XR-VLM"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, head: Head = "cross",
                 image_parts: int = 4, text_parts: int = 4,
                 part_prompts: Literal["learned", "descriptions"] = "learned", context_length: int = 16,
                 shared_context: bool = False, context_words: str | None = None,
                 name_position: NamePosition = "end", hidden: int = HIDDEN_WIDTH):
        super().__init__(clip, classes)
        if head not in get_args(Head):
            raise unknown("method.head", head, get_args(Head))
        for name, count in (("image_parts", image_parts), ("text_parts", text_parts)):
            if not 1 <= count <= MOST_PARTS:
                raise UserError(f"method.{name} must be from 1 to {MOST_PARTS}, found {count}")
        if hidden < 1:
            raise UserError(f"method.hidden must be at least 1, found {hidden}")
        if not clip.image_width:
            raise UserError(f"{clip.name} shows no positions to attend to: xr_vlm needs another backbone, methods on "
                            "pooled features (zero_shot, linear_probe, coop) work with this one")
        self.head = head
        self.open_classes = head in OPEN_HEADS and (shared_context or part_prompts == "descriptions")
        self.bound_by = "a learned prompt for each class" if head in OPEN_HEADS else f"head={head}"
        self.pooling = PartPooling(clip.image_width, image_parts)
        if head == "visual":
            self.prompts = "none"
        elif part_prompts == "learned":
            self.prompts = "learned"
            self.context = ContextPrompts(clip, classes.names, text_parts=text_parts, length=context_length,
                                          shared=shared_context, words=context_words, position=name_position)
        elif part_prompts == "descriptions":
            self.prompts, text_parts = "part_descriptions", len(_part_sentences(classes)[0])
            self.described: Tensor
            self.register_buffer("described", torch.zeros(text_parts, len(classes.names), clip.embed_dim))
        else:
            raise unknown("method.part_prompts", part_prompts, ("descriptions", "learned"))
        if head in PAIRED and image_parts != text_parts:
            raise UserError(f"head={head} pairs image part i with text part i and needs as many of one as of the "
                            f"other, found image_parts={image_parts} and text_parts={text_parts}")
        self.relations = self._make_head(clip, image_parts, text_parts, len(classes.names), hidden)

    def _make_head(self, clip: FrozenCLIP, image_parts: int, text_parts: int, classes: int, hidden: int) -> nn.Module:
        width, diagonal = clip.embed_dim, self.head in PAIRED
        if self.head == "alignment":
            return Alignment(clip.logit_scale)
        if self.head == "visual":
            return VisualParts(width, image_parts, classes, hidden=hidden)
        if self.head in ("per_class", "per_class_diagonal"):
            return PerClassRelations(width, image_parts, text_parts, diagonal=diagonal)
        return CrossRelations(width, image_parts, text_parts, classes, diagonal=diagonal, hidden=hidden)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        if self.prompts == "part_descriptions":
            self.described.copy_(_described(clip, self.classes))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        if self.prompts == "learned":
            self.context = self.context.for_names(clip, classes.names)
        else:
            _check_same_parts(self.classes, classes)
            self.described = _described(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        if self.head == "visual":
            return torch.zeros(0, device=clip.device)
        return self.context(clip) if self.prompts == "learned" else self.described         # (g, c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        assert x.mid_tokens is not None and x.tokens is not None
        image_parts = self.pooling(x.mid_tokens, x.tokens)                                 # (b, m, d)
        return self.relations(image_parts, class_features)                                 # (b, c)


def _described(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(g, c, d) unit norm: the features of the part sentences."""
    return torch.stack([clip.encode_text(sentences) for sentences in zip(*_part_sentences(classes), strict=True)])


def _check_same_parts(trained: ClassText, found: ClassText) -> None:
    counts = [len(_part_sentences(classes)[0]) for classes in (trained, found)]
    if counts[0] != counts[1] or trained.part_names != found.part_names:
        known, given = (", ".join(names) if (names := classes.part_names) else f"{count} parts without names"
                        for classes, count in zip((trained, found), counts, strict=True))
        raise UserError(f"the model was trained with the parts {known}; the new classes have {given}; describe them "
                        "by the same parts in the same order")


def _part_sentences(classes: ClassText) -> tuple[tuple[str, ...], ...]:
    if classes.parts is None:
        raise UserError("method.part_prompts=descriptions needs a sentence for each part of each class: name a file "
                        "with text.parts=FILE.json ({class: {part: sentence}}), or use method.part_prompts=learned")
    return classes.parts
