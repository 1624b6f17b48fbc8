"""XR-VLM (Wang et al., 2025, arXiv:2503.07075): relations of every image part with every prompt of every class."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, NamePosition
from xrvlm.errors import UserError, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.xr_vlm.parts import ImageParts, check_positions
from xrvlm.methods.xr_vlm.relations import (
    HIDDEN_WIDTH,
    Alignment,
    BatchNorm,
    CrossRelations,
    PerClassRelations,
    RelationHead,
    VisualParts,
)
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import FreeVectors, NoPrompts, PartPrompts, described_parts
from xrvlm.text.learned_prompts import OWN_PROMPTS, ClassPrompts, ContextKind, ContextPrompts

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
        part_prompts: `learned` context; the `descriptions` of the class's parts (`text.parts=`), fixed, or as what
            learned vectors start from (`learned_from_descriptions`); or free `vectors` without any language.
        context_length: learned vectors in a prompt; this option and those down to `name_position` are read with
            `learned` alone. Ignored with `context_words`.
        context: vectors for each class, for all, or `shared_then_specific`.
        shared_length: with `shared_then_specific`, how many of the vectors are shared; None: half.
        context_words: start from these words instead of noise.
        name_position: where the class name stands.
        hidden: width of the head's hidden layer.
        live_parts: no part can be dead: see `PartPooling`.
        prior_weight: how much of the tower's zero-shot logits is added to the head's, which then learns what those do
            not say; 0 is the paper's.
        learn_prior_weight: start from that weight and learn it.
    """

    needs = frozenset({"pooled", "tokens", "mid_tokens"})
    recipe = Recipe("xr_vlm", epochs=100, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, warmup_epochs=5)
    label = "XR-VLM"
    splits_batches = True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, head: Head = "cross",
                 image_parts: int = 4, text_parts: int = 4,
                 part_prompts: PartPrompts = "learned", context_length: int = 16, context: ContextKind = "specific",
                 shared_length: int | None = None, context_words: str | None = None,
                 name_position: NamePosition = "end", hidden: int = HIDDEN_WIDTH, live_parts: bool = False,
                 prior_weight: float = 0.0, learn_prior_weight: bool = False):
        super().__init__(clip, classes)
        _check(clip, head, image_parts, text_parts, hidden)
        self.head = head
        self.pooling = PartPooling(clip.image_width, image_parts, live=live_parts)
        self.class_prompts: ClassPrompts
        if head == "visual":
            if part_prompts != "learned":
                raise UserError(f"head=visual reads no prompts: leave method.part_prompts={part_prompts} out")
            self.class_prompts = NoPrompts(text_parts=text_parts)
        elif part_prompts == "learned":
            self.class_prompts = ContextPrompts(clip, classes.names, text_parts=text_parts, length=context_length,
                                                context=context, shared_length=shared_length, words=context_words,
                                                position=name_position)
        elif part_prompts == "vectors":
            self.class_prompts = FreeVectors(clip, classes, text_parts=text_parts)
        else:
            self.class_prompts = described_parts(part_prompts, clip, classes)
        self.prompts, text_parts = self.class_prompts.label, self.class_prompts.text_parts
        self.open_classes = head in OPEN_HEADS and self.class_prompts.open_classes
        self.bound_by = OWN_PROMPTS if head in OPEN_HEADS else f"head={head}"
        if head in PAIRED and image_parts != text_parts:
            raise UserError(f"head={head} pairs image part i with text part i and needs as many of one as of the "
                            f"other, found image_parts={image_parts} and text_parts={text_parts}")
        self.relations = self._make_head(clip, image_parts, text_parts, len(classes.names), hidden)
        self.zero_shot = ZeroShot(clip, classes) if prior_weight or learn_prior_weight else None
        if self.zero_shot is not None:
            self.prompts = " + ".join(dict.fromkeys((self.prompts, self.zero_shot.prompts)))
            self.prior_weight = nn.Parameter(torch.tensor(float(prior_weight)), requires_grad=learn_prior_weight)

    def _make_head(self, clip: FrozenCLIP, image_parts: int, text_parts: int, classes: int,
                   hidden: int) -> RelationHead:
        width, diagonal = clip.embed_dim, self.head in PAIRED
        if self.head == "alignment":
            return Alignment(clip.logit_scale)
        if self.head == "visual":
            return VisualParts(width, image_parts, classes, hidden=hidden)
        if self.head in ("per_class", "per_class_diagonal"):
            return PerClassRelations(width, image_parts, text_parts, diagonal=diagonal)
        return CrossRelations(width, image_parts, text_parts, classes, diagonal=diagonal, hidden=hidden)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        self.class_prompts.prepare(clip)
        if self.zero_shot is not None:
            self.zero_shot.prepare(clip, None)

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.class_prompts = self.class_prompts.for_classes(clip, classes)
        if self.zero_shot is not None:
            self.zero_shot = self.zero_shot.for_classes(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.relations.of_prompts(self.class_prompts(clip))                         # (g, c, r)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        image_parts = self.pooling.of(x)                                                   # (b, m, d)
        logits = self.relations(image_parts, class_features)                               # (b, c)
        if self.zero_shot is None:
            return logits
        return logits + self.prior_weight * self.zero_shot.logits(x, self.zero_shot.weights)


def _check(clip: FrozenCLIP, head: Head, image_parts: int, text_parts: int, hidden: int) -> None:
    if head not in get_args(Head):
        raise unknown("method.head", head, get_args(Head))
    for name, count in (("image_parts", image_parts), ("text_parts", text_parts)):
        if not 1 <= count <= MOST_PARTS:
            raise UserError(f"method.{name} must be from 1 to {MOST_PARTS}, found {count}")
    if hidden < 1:
        raise UserError(f"method.hidden must be at least 1, found {hidden}")
    check_positions(clip, "xr_vlm", "to attend to")


class PartPooling(ImageParts):
    """m part features of an image: attention maps from an earlier block pool the last block's projected positions.

    One more map than parts is learned; the last one takes the background and is dropped. `live`: the maps are the
    attention itself, without the paper's normalisation and ReLU behind it, which can leave a map zero everywhere.
    """

    def __init__(self, image_width: int, image_parts: int, *, live: bool = False):
        super().__init__()
        self.attend_norm = BatchNorm(image_width)
        self.attend = nn.Linear(image_width, image_parts + 1, bias=False)
        self.map_norm = None if live else BatchNorm(image_parts + 1)

    def maps(self, mid_tokens: Tensor) -> Tensor:
        """(b, m + 1, p) non-negative weights of the positions, from `mid_tokens` (b, p, e)."""
        batch, positions, _ = mid_tokens.shape
        x = self.attend_norm(mid_tokens.flatten(0, 1)).unflatten(0, (batch, positions))    # (b, p, e)
        attention = self.attend(x).softmax(dim=1)                                          # (b, p, m + 1)
        if self.map_norm is None:
            return attention.transpose(1, 2)                                               # (b, m + 1, p)
        maps = self.map_norm(attention.flatten(0, 1)).unflatten(0, (batch, positions))     # (b, p, m + 1)
        return F.relu(maps).transpose(1, 2)                                                # (b, m + 1, p)

    def forward(self, mid_tokens: Tensor, tokens: Tensor) -> Tensor:
        """(b, m, d) part features, from `mid_tokens` (b, p, e) and `tokens` (b, p, d)."""
        pooled = self.maps(mid_tokens) @ tokens                                            # (b, m + 1, d)
        rooted = pooled.sign() * torch.sqrt(pooled.abs() + 1e-6)                           # (b, m + 1, d)
        scaled = F.normalize(rooted.flatten(1), dim=1).view_as(rooted)     # one norm for all the parts of an image
        return scaled[:, :-1]                                                              # (b, m, d)

    def part_maps(self, x: Features) -> Tensor:
        """(b, m, p) the maps without the background's."""
        assert x.mid_tokens is not None
        return self.maps(x.mid_tokens)[:, :-1]

    def of(self, x: Features) -> Tensor:
        assert x.mid_tokens is not None and x.tokens is not None
        return self(x.mid_tokens, x.tokens)
