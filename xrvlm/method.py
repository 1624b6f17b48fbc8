"""What a method is: something that turns the features of a frozen CLIP into logits, and owns only what it learns."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbone import Features, FrozenCLIP, Need
from xrvlm.features import FeatureSource
from xrvlm.recipe import Recipe
from xrvlm.text import ClassText


class Method(nn.Module, ABC):
    """One way to adapt a frozen tower. Subclasses are final; runtime objects are positional, options keyword-only.

    `needs` names the features it reads; `recipe` is how it is trained unless another is asked for.
    """

    needs: frozenset[Need] = frozenset({"pooled"})
    learns: ClassVar[bool] = True                    # from labelled images; False: the text alone
    transductive: ClassVar[bool] = False             # sees the test images, without labels, in `prepare`
    recipe: ClassVar[Recipe]
    label: str                                       # as tables show it
    head: str | None = None                          # which head, where a method has several
    prompts: str                                     # "names", "descriptions", "learned", "none"; a ClassPrompts' label

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        """Allocates only. What depends on data or on the text tower is made in `prepare`."""
        super().__init__()

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        """Closed forms, data-dependent starts, text encoded once. Called once before training; skipped on load."""

    @abstractmethod
    def class_features(self, clip: FrozenCLIP) -> Tensor:
        """The language side, (..., c, d): computed once per evaluation and in every training step."""

    @abstractmethod
    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        """(b, c)"""

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        """() cross-entropy of `logits` on the labels `y` (b,)."""
        return F.cross_entropy(self.logits(x, self.class_features(clip)), y, label_smoothing=label_smoothing)
