"""CoCoOp (Zhou et al., CVPR 2022, arXiv:2203.05557): a learned context, shifted by a function of the image.

Formula and settings are those of the authors' program (KaiyangZhou/CoOp, trainers/cocoop.py, configs/trainers/CoCoOp).
With the pooled feature x of unit norm and learned vectors v_1 ... v_l:

    h(x) = W_2 relu(W_1 x + b_1) + b_2, hidden width d / 16;  prompt of class k: v_1 + h(x) ... v_l + h(x), its name
    logit_k = logit_scale * cos(x, text tower of that prompt)

The class features depend on the image: the text tower encodes every class for every image, in training and in
evaluation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, NamePosition, PromptLayout
from xrvlm.errors import UserError, option
from xrvlm.methods.base import Method, Recipe
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ContextPrompts


@dataclass(frozen=True)
class BoundPrompts:
    """The prompts of all classes without their context: `CoCoOp.logits` calls it with the context of each image."""

    clip: FrozenCLIP
    layout: PromptLayout

    def __call__(self, context: Tensor) -> Tensor:
        """(b, c, d) unit norm, from one context (b, 1, l, w) an image, in the tower's dimension of text parts."""
        return self.clip.encode_prompts(context, self.layout)


class CoCoOp(Method):
    """Cosine of the pooled feature with prompts whose context depends on it.

    The recipe is the authors' except for the batch: theirs has one image, here the minimum is two.

    Args:
        context_length: number of learned vectors in a prompt. Ignored with `context_words`.
        context_words: initialise with the token embeddings of these words; None: with noise.
        reduction: d over the width of the network's hidden layer.
        name_position: of the class name in the prompt: `end`, `front` or `middle`.
    """

    recipe = Recipe("cocoop", epochs=10, batch_size=2, learning_rate=2e-3, weight_decay=5e-4, warmup_epochs=1,
                    warmup_rate=1e-5, full_cosine=True)
    revision = 2                         # the authors' schedule
    label = "CoCoOp"
    prompts, open_classes = "learned", True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, context_length: int = 4,
                 context_words: str | None = "a photo of a", reduction: int = 16, name_position: NamePosition = "end"):
        super().__init__(clip, classes)
        if not 1 <= reduction <= clip.embed_dim:
            raise UserError(f"{option('method.reduction')} must be from 1 to the feature dimension of {clip.name}, "
                            f"{clip.embed_dim}; found {reduction}")
        self.context = ContextPrompts(clip, classes.names, length=context_length, context="shared",
                                      words=context_words, position=name_position)
        hidden = clip.embed_dim // reduction
        self.shift = nn.Sequential(nn.Linear(clip.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, clip.text_width))
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.context = self.context.for_classes(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> BoundPrompts:
        return BoundPrompts(clip, self.context.layout)

    def logits(self, x: Features, class_features: BoundPrompts) -> Tensor:
        context = self.context.vectors[0] + self.shift(x.pooled)[:, None, None]            # (b, 1, l, w)
        cosine = torch.einsum("bd,bcd->bc", x.pooled, class_features(context))
        return self.logit_scale * cosine + self.logit_bias                                 # (b, c)
