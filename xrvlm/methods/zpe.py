"""Zero-shot prompt ensembling (Allingham et al., ICML 2023, arXiv:2302.06235): templates weighted without labels."""

import logging

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import check_told_apart

log = logging.getLogger(__name__)


class ZPE(OnZeroShot):
    """Zero-shot with templates weighted by their confidence on images, whose labels are not read.

    With the logits l(i, p, c) of image i, template p and class c, at the tower's scale: `s_p = mean over i of max over
    c of (l(i, p, c) - mean over i of l(i, p, c))`, the max-logit score. Subtracting the mean of each prompt corrects
    for words that are similar to all images. The weights are `softmax(s / temperature)`. The logit of a class is the
    weighted mean of its logits over the templates; so its feature is the weighted mean of its sentences' features,
    without normalisation.

    Score, scale, temperature 1 and the mean of logits are those of the authors' notebook (google/uncertainty-baselines,
    experimental/multimodal). There the subtracted means are taken half over all test images, half over 20,000 images of
    LAION-400M; here over the training images only. Their labels are not read, but the images were sampled by class, so
    the record counts them as labels. (On the test images it would be transductive.) The authors' second variant, which
    selects templates instead of weighting them, is not implemented.

    It needs several templates, such as text.templates=ensemble; with a single one it equals zero-shot, and warns.

    Args:
        temperature: the larger, the more equal the weights.
    """

    recipe, open_classes = TRAINING_FREE, True
    label = "ZPE"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, temperature: float = 1.0):
        super().__init__(clip, classes)
        if not temperature > 0:
            raise UserError(f"{option('method.temperature')} must be above 0, found {temperature}")
        self.temperature = temperature
        self.template_weights: Tensor
        self.register_buffer("template_weights", torch.ones(_templates(classes)))          # (t,)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        if len(self.template_weights) == 1:
            log.warning("zpe weighs templates, and there is only one: this equals zero_shot; give several, such as %s",
                        option("text.templates", "ensemble"))
        sentences = _encoded(clip, self.classes)                                           # (t, c, d)
        images, _ = pooled_features(support, clip.device)                                  # (n, d)
        scores = torch.stack([self._score(images, prompts) for prompts in sentences])      # (t,)
        self.template_weights.copy_((scores / self.temperature).softmax(dim=0))
        self.zero_shot.weights.copy_(self._weighted(sentences))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        if _templates(classes) != len(self.template_weights):
            raise UserError(f"the model has weights of {len(self.template_weights)} templates, the new classes have "
                            f"{_templates(classes)}: give them the same {option('text.templates')}")
        self.prompts, self.zero_shot.weights = classes.kind, self._weighted(_encoded(clip, classes))

    def _score(self, images: Tensor, prompts: Tensor) -> Tensor:
        """() the max-logit score of one template: its `prompts` (c, d) on `images` (n, d)."""
        logits = self.zero_shot.logits(Features(images), prompts)                          # (n, c)
        return (logits - logits.mean(dim=0)).amax(dim=1).mean()

    def _weighted(self, sentences: Tensor) -> Tensor:
        """(c, d) from (t, c, d) of unit norm. Not normalised: the less the sentences of a class agree, the shorter."""
        return torch.einsum("t,tcd->cd", self.template_weights, sentences)


def _templates(classes: ClassText) -> int:
    """The number of templates, which all classes share; UserError where the classes have descriptions."""
    counts = {len(prompts) for prompts in classes.prompts}
    if classes.kind != "names" or len(counts) != 1:
        raise UserError("zpe weighs templates that all classes share, and descriptions differ between classes: leave "
                        f"{option('text.descriptions')} out and set {option('text.templates')}, or use "
                        f"{option('method', 'dclip')}")
    return counts.pop()


def _encoded(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(t, c, d) unit norm."""
    check_told_apart(clip, classes.names)
    return torch.stack([clip.encode_text(sentences) for sentences in zip(*classes.prompts, strict=True)])
