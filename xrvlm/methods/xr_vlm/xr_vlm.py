"""XR-VLM (Wang et al., preprint 2025, arXiv:2503.07075): relations of every image part with every prompt of a class.

`PartPooling` makes m part features of an image; a `ClassPrompts` makes g features of each class from learned prompts; a
`RelationHead` (relations.py) computes their m * g relations for every class, and the logits from them.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, NamePosition
from xrvlm.errors import UserError, option, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.xr_vlm.parts import ImageParts
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
PAIRED = ("diagonal", "per_class_diagonal", "alignment")         # heads that relate image part i with text part i only
OPEN_HEADS = ("per_class", "per_class_diagonal", "alignment")    # heads without class-specific weights
MOST_PARTS = 16


class PartPooling(ImageParts):
    """m part features of an image: attention maps from an earlier block pool the projected positions of the last block.

    m + 1 maps are learned. The last one is meant for the background and is dropped, so that no gradient reaches it.

    Args:
        image_width: e, width of `mid_tokens`.
        image_parts: m.
        live: use the attention as the maps, without the paper's BatchNorm and ReLU after it. With these a map can
            become zero everywhere, and its part is dead: it gets no gradient.
        second: the tower, where it has a second one or a second look: its feature, mapped to d by a trained matrix, is
            one part more, of the mean length of the others.
    """

    def __init__(self, image_width: int, image_parts: int, *, live: bool = False, second: FrozenCLIP | None = None):
        super().__init__()
        self.second = None if second is None else nn.Sequential(
            BatchNorm(second.second_width), nn.Linear(second.second_width, second.embed_dim, bias=False))
        self.second_name = second.second_name if second else ""
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
        scaled = F.normalize(rooted.flatten(1), dim=1).view_as(rooted)     # one norm over all parts of an image
        return scaled[:, :-1]                                                              # (b, m, d)

    def names(self) -> Iterator[str]:
        parts = self.attend.out_features - 1
        yield from islice(super().names(), parts)
        yield from [self.second_name] * (self.second is not None)

    def part_maps(self, x: Features) -> Tensor:
        """(b, m, p) the maps without the background's; that of a second tower is uniform."""
        assert x.mid_tokens is not None
        maps = self.maps(x.mid_tokens)[:, :-1]
        if self.second is None:
            return maps
        return torch.cat([maps, torch.full_like(maps[:, :1], 1 / maps.shape[2])], dim=1)

    def of(self, x: Features) -> Tensor:
        assert x.mid_tokens is not None and x.tokens is not None
        parts = self(x.mid_tokens, x.tokens)                                               # (b, m, d)
        if self.second is None:
            return parts
        assert x.second is not None
        more = F.normalize(self.second(x.second), dim=1) / self.attend.out_features ** 0.5 # (b, d)
        return torch.cat([parts, more[:, None]], dim=1)                                    # (b, m + 1, d)


class XRVLM(Method):
    """Part features of an image, prompts of a class, and a classifier over the relations of all parts and prompts.

    Args:
        head: what relates parts and prompts: `cross` is the paper's, the others are its ablations (relations.py).
        image_parts: m, part features of an image; a second tower or look adds one.
        text_parts: g, learned prompts of a class. Part descriptions have their own number.
        part_prompts: `learned` context; `descriptions` of the parts of a class, fixed, or as the initial values of
            learned vectors (`learned_from_descriptions`); or free `vectors` without any language.
        context_length: number of learned vectors in a prompt; ignored with `context_words`. This option and those down
            to `name_position` are read with `part_prompts="learned"` only.
        context: learned vectors for each class (`specific`, the paper's), the same for all (`shared`), or the first
            shared and the rest specific (`shared_then_specific`).
        shared_length: with `shared_then_specific`, the number of shared vectors; None: half.
        context_words: initialise with the token embeddings of these words instead of noise.
        name_position: of the class name in the prompt: `end`, `front` or `middle`.
        hidden: width of the hidden layer of `cross`, `diagonal` and `visual`; the other heads do not read it.
        live_parts: no part can be dead: see `PartPooling`.
        prior_weight: weight of the zero-shot logits that are added to the head's; the paper's is 0.
        learn_prior_weight: train that weight, from `prior_weight` as its initial value.
    """

    needs = frozenset({"pooled", "tokens", "mid_tokens"})
    recipe = Recipe("xr_vlm", epochs=100, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, warmup_epochs=5,
                    full_cosine=True)
    revision = 2                         # the authors count the cosine from the end of the warm-up
    label = "XR-VLM"
    splits_batches = True
    opens_with = "head per_class, per_class_diagonal or alignment and a shared context or part descriptions"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, head: Head = "cross",
                 image_parts: int = 4, text_parts: int = 4,
                 part_prompts: PartPrompts = "learned", context_length: int = 16, context: ContextKind = "specific",
                 shared_length: int | None = None, context_words: str | None = None,
                 name_position: NamePosition = "end", hidden: int = HIDDEN_WIDTH, live_parts: bool = False,
                 prior_weight: float = 0.0, learn_prior_weight: bool = False):
        super().__init__(clip, classes)
        _check(head, image_parts, text_parts, hidden, part_prompts)
        self.head = head
        self.pooling = PartPooling(clip.image_width, image_parts, live=live_parts,
                                   second=clip if clip.second_width else None)
        if clip.second_width:
            self.needs = frozenset({*type(self).needs, "second"})
        self.class_prompts: ClassPrompts
        if head == "visual":
            self.class_prompts = NoPrompts(text_parts=text_parts)
        elif part_prompts == "learned":
            self.class_prompts = ContextPrompts(clip, classes.names, text_parts=text_parts, length=context_length,
                                                context=context, shared_length=shared_length, words=context_words,
                                                position=name_position)
        elif part_prompts == "vectors":
            self.class_prompts = FreeVectors(clip, classes, text_parts=text_parts)
        else:
            self.class_prompts = described_parts(part_prompts, clip, classes)
        parts = image_parts + bool(clip.second_width)
        self.relations = self._make_head(clip, parts, len(classes.names), hidden)
        self.open_classes = head in OPEN_HEADS and self.class_prompts.open_classes
        self.bound_by = OWN_PROMPTS if head in OPEN_HEADS else f"head {head}"
        self.prompts, self.zero_shot = self.class_prompts.label, None
        if prior_weight or learn_prior_weight:
            self.zero_shot = ZeroShot(clip, classes)
            self.prompts = " + ".join(dict.fromkeys((self.prompts, self.zero_shot.prompts)))
            self.prior_weight = nn.Parameter(torch.tensor(float(prior_weight)), requires_grad=learn_prior_weight)

    def _make_head(self, clip: FrozenCLIP, image_parts: int, classes: int, hidden: int) -> RelationHead:
        width, text_parts, diagonal = clip.embed_dim, self.class_prompts.text_parts, self.head in PAIRED
        if diagonal and image_parts != text_parts:
            own = image_parts - bool(clip.second_width)
            raise UserError(f"head {self.head} pairs image part i with text part i and needs as many of one as of the "
                            f"other, found {option('method.image_parts', own)} "
                            f"{'with one of the second tower ' if clip.second_width else ''}and "
                            f"{option('method.text_parts', text_parts)}")
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


def _check(head: Head, image_parts: int, text_parts: int, hidden: int, part_prompts: PartPrompts) -> None:
    if head not in get_args(Head):
        raise unknown(option("method.head"), head, get_args(Head))
    for name, count in (("image_parts", image_parts), ("text_parts", text_parts)):
        if not 1 <= count <= MOST_PARTS:
            raise UserError(f"{option(f'method.{name}')} must be from 1 to {MOST_PARTS}, found {count}")
    if hidden < 1:
        raise UserError(f"{option('method.hidden')} must be at least 1, found {hidden}")
    if head == "visual" and part_prompts != "learned":
        raise UserError(f"head visual reads no prompts: leave {option('method.part_prompts', part_prompts)} out")
