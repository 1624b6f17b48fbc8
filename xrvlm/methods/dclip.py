"""Classification by description (Menon & Vondrick, ICLR 2023, arXiv:2210.07183): mean over the sentences of a class."""

import logging
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import option, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import sentence_means

log = logging.getLogger(__name__)


class DCLIP(ZeroShot):
    """Zero-shot with another mean over the sentences of a class; nothing is learned from images.

    `pooling=scores` is Menon & Vondrick's `s(c, x) = mean over d in D(c) of phi(d, x)`, phi the scaled similarity of
    image and sentence. `pooling=features` is CuPL's (Pratt et al., ICCV 2023, arXiv:2209.03320): the similarity with
    the normalised mean of the sentences' features. The mean of the similarities is the similarity with that mean
    *before* normalisation, so the two differ by its length only: the less the sentences agree, the shorter it is.

    The sentences are the descriptions; without them the templates. `features` equals `zero_shot` on the same
    sentences; with one sentence a class all three are equal. Both formulas are those of the authors' programs
    (sachit-menon/classify_by_description_release, load.py; sarahpratt/CuPL, classify_imagenet.py). The papers'
    sentences, written by a language model, are not included.

    Args:
        pooling: mean of `scores` or of `features`.
    """

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, pooling: Literal["scores", "features"] = "scores"):
        super().__init__(clip, classes)
        if pooling not in ("scores", "features"):
            raise unknown(option("method.pooling"), pooling, ("scores", "features"))
        self.pooling = pooling
        self.label = "classification by description" if pooling == "scores" else "CuPL"

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        if self.classes.kind == "names":
            log.warning("dclip reads descriptions, and there are none: with templates it equals zero_shot; give %s",
                        option("text.descriptions", "FILE.json"))
        super().prepare(clip, support)

    def encoded(self, clip: FrozenCLIP, classes: ClassText) -> Tensor:
        means = sentence_means(clip, classes)                                              # (c, d)
        return means if self.pooling == "scores" else F.normalize(means, dim=-1)
