"""Zero-shot CLIP (Radford et al., ICML 2021, arXiv:2103.00020): the class whose sentences are nearest to the image.

Also the base classes of the methods that share its logits: `CosineLogits`, and `OnZeroShot` of those that correct them.
"""

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, ClassFeatures, Method
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ensemble


class CosineLogits(Method):
    """Base: a logit is the cosine of the pooled feature with one class feature, at the scale and bias of the tower."""

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        return self.logit_scale * x.pooled @ class_features.T + self.logit_bias            # (b, c)


class ZeroShot(CosineLogits):
    """Cosine with the mean of a class's sentence features: its name in each template, or its descriptions."""

    recipe, learns, open_classes = TRAINING_FREE, False, True
    label = "CLIP zero-shot"

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.prompts = classes.kind
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(len(classes.names), clip.embed_dim))   # (c, d)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        self.weights.copy_(self.encoded(clip, self.classes))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.prompts, self.weights = classes.kind, self.encoded(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.weights                                                                # (c, d)

    def encoded(self, clip: FrozenCLIP, classes: ClassText) -> Tensor:
        """(c, d) one feature for each of `classes`."""
        return ensemble(clip, classes)


class OnZeroShot(Method):
    """Base of the methods that hold a zero-shot classifier and correct it; what they do not override is zero-shot's."""

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.zero_shot, self.prompts = ZeroShot(clip, classes), classes.kind

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        self.zero_shot.prepare(clip, None)

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.zero_shot.turn(clip, classes)
        self.prompts = classes.kind

    def class_features(self, clip: FrozenCLIP) -> ClassFeatures:
        return self.zero_shot.class_features(clip)                                         # (c, d)

    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        return self.zero_shot.logits(x, class_features)                                    # (b, c)
