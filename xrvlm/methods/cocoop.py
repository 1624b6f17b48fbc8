"""CoCoOp (Zhou et al., CVPR 2022, arXiv:2203.05557): a learned context that each image shifts.

Formula and settings are those of the authors' program (KaiyangZhou/CoOp, trainers/cocoop.py, configs/trainers/CoCoOp).
With the pooled feature x of unit norm and learned vectors v_1 ... v_l:

    h(x) = W_2 relu(W_1 x + b_1) + b_2, hidden width d / 16;  prompt of class k: v_1 + h(x) ... v_l + h(x), its name
    logit_k = logit_scale * cos(x, text tower of that prompt)

So every image has class features of its own, and the text tower runs for each of them, in training and afterwards:
it costs the number of images times the number of classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, NamePosition, PromptLayout
from xrvlm.errors import UserError
from xrvlm.methods.base import Method, Recipe
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ContextPrompts


@dataclass(frozen=True)
class BoundPrompts:
    """The prompts of all classes, still without a context: what `CoCoOp.class_features` hands to `logits`."""

    clip: FrozenCLIP
    layout: PromptLayout

    def __call__(self, context: Tensor) -> Tensor:
        """(b, c, d) unit norm, of a context (b, 1, l, w) for each image: to the tower, images are text parts."""
        return self.clip.encode_prompts(context, self.layout)


class CoCoOp(Method):
    """Cosine of the pooled feature with prompts whose context depends on it.

    The recipe is the authors' but for the batch, one image a step (here two are the fewest), and the first epoch at
    1e-5, which is left out.

    Args:
        context_length: learned vectors in a prompt, where `context_words` is null; ignored otherwise.
        context_words: what the context starts from; null: noise.
        reduction: the joint dimension over the width of the network's hidden layer.
        name_position: where the class name stands.
    """

    recipe = Recipe("cocoop", epochs=10, batch_size=2, learning_rate=2e-3, weight_decay=5e-4, warmup_epochs=1)
    label = "CoCoOp"
    prompts, open_classes = "learned", True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, context_length: int = 4,
                 context_words: str | None = "a photo of a", reduction: int = 16, name_position: NamePosition = "end"):
        super().__init__(clip, classes)
        if not 1 <= reduction <= clip.embed_dim:
            raise UserError(f"method.reduction must be from 1 to the joint dimension of {clip.name}, {clip.embed_dim}; "
                            f"found {reduction}")
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
