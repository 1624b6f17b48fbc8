"""CoOp (Zhou et al., IJCV 2022, arXiv:2109.01134): learned vectors in place of the words around a class name."""

from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP, NamePosition
from xrvlm.methods.base import Recipe
from xrvlm.methods.zero_shot import CosineLogits
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import OWN_PROMPTS, ContextKind, ContextPrompts


class CoOp(CosineLogits):
    """Cosine of the pooled feature with one learned prompt a class.

    The recipe is the authors' (KaiyangZhou/CoOp, configs/trainers/CoOp): SGD, 2e-3, the first epoch at 1e-5, then half
    a cosine that is counted over 200 further epochs, in batches of 32. They train in float16; here a GPU takes bfloat16
    for the frozen towers, and what is learned is float32.

    Args:
        context_length: number of learned vectors in a prompt. Ignored with `context_words`.
        context: one for all classes (`shared`, the paper's default), one for each (`specific`), or the first vectors
            shared and the rest specific (`shared_then_specific`).
        shared_length: with `shared_then_specific`, the number of shared vectors; None: half.
        context_words: initialise with the token embeddings of these words instead of noise.
        name_position: of the class name in the prompt: `end`, `front` or `middle`.
    """

    recipe = Recipe("coop", epochs=200, batch_size=32, learning_rate=2e-3, weight_decay=5e-4, warmup_epochs=1,
                    warmup_rate=1e-5, full_cosine=True)
    revision = 2                         # the authors' schedule
    label = "CoOp"
    prompts = "learned"
    splits_batches, opens_with = True, "a shared context"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, context_length: int = 16,
                 context: ContextKind = "shared", shared_length: int | None = None, context_words: str | None = None,
                 name_position: NamePosition = "end"):
        super().__init__(clip, classes)
        self.context = ContextPrompts(clip, classes.names, length=context_length, context=context,
                                      shared_length=shared_length, words=context_words, position=name_position)
        self.open_classes, self.bound_by = self.context.open_classes, OWN_PROMPTS

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.context = self.context.for_classes(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.context(clip).squeeze(0)                                               # (c, d)
