"""Classification by description (Menon & Vondrick, ICLR 2023, arXiv:2210.07183), and CuPL's way beside it."""

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import sentence_means

log = logging.getLogger(__name__)


class DCLIP(Method):
    """The class whose sentences fit the image best on average; no image is learned from.

    `pooling=scores` is Menon & Vondrick's `s(c, x) = mean over d in D(c) of phi(d, x)`, phi the similarity of image and
    sentence as the tower scales it. `pooling=features` is CuPL's (Pratt et al., ICCV 2023, arXiv:2209.03320): the
    similarity with the mean of the sentences' features, brought to unit norm. The mean of the similarities is the
    similarity with the mean *before* it is brought to unit norm: the two differ by the length of that mean alone,
    which is the shorter the less a class's sentences agree.

    The sentences are `text.descriptions`; without them the templates. `features` says what `zero_shot` says of the
    same sentences; with one sentence a class all three are the same. Both formulas are those of the authors' programs
    (sachit-menon/classify_by_description_release, load.py; sarahpratt/CuPL, classify_imagenet.py). The papers' own
    sentences, which a language model wrote, are not part of this.

    Args:
        pooling: of what the mean is taken.
    """

    recipe, learns, open_classes = TRAINING_FREE, False, True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, pooling: Literal["scores", "features"] = "scores"):
        super().__init__(clip, classes)
        if pooling not in ("scores", "features"):
            raise unknown("method.pooling", pooling, ("scores", "features"))
        self.pooling, self.prompts = pooling, classes.kind
        self.label = "classification by description" if pooling == "scores" else "CuPL"
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(len(classes.names), clip.embed_dim))   # (c, d)
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        if self.classes.kind == "names":
            log.warning("method=dclip reads descriptions, and there are none: this is zero_shot with its templates; "
                        "give text.descriptions=FILE.json")
        self.weights.copy_(self._pooled(clip, self.classes))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.prompts, self.weights = classes.kind, self._pooled(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.weights                                                                # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.logit_scale * x.pooled @ class_features.T + self.logit_bias            # (b, c)

    def _pooled(self, clip: FrozenCLIP, classes: ClassText) -> Tensor:
        means = sentence_means(clip, classes)                                              # (c, d)
        return means if self.pooling == "scores" else F.normalize(means, dim=-1)
