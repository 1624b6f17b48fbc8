"""Zero-shot CLIP (Radford et al., 2021, arXiv:2103.00020): the class whose sentences are nearest to the image."""

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ensemble


class ZeroShot(Method):
    """Cosine with the mean of a class's sentence features: templates around its name, or its descriptions."""

    recipe, learns, open_classes = TRAINING_FREE, False, True
    label = "CLIP zero-shot"

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.prompts = classes.kind
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(len(classes.names), clip.embed_dim))   # (c, d)
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        self.weights.copy_(ensemble(clip, self.classes))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.prompts, self.weights = classes.kind, ensemble(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.weights                                                                # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.logit_scale * x.pooled @ class_features.T + self.logit_bias            # (b, c)
