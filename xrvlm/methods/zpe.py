"""Zero-shot prompt ensembling (Allingham et al., ICML 2023, arXiv:2302.06235): templates weighted without labels."""

import logging

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText

log = logging.getLogger(__name__)


class ZPE(Method):
    """Zero-shot whose templates count by how sure they are of images without labels.

    With the logits l(i, p, c) of image i, template p and class c, at the tower's scale: `s_p = mean over i of max over
    c of (l(i, p, c) - mean over i of l(i, p, c))`, the max-logit score. Taking away each prompt's mean corrects for
    words that are near to all images. The weights are `softmax(s / temperature)`. The logit of a class is the weighted
    mean of its logits in the templates, so that its feature is the weighted mean of its sentences' features, which is
    not brought to unit norm.

    Score, scale, temperature 1 and the mean of logits are those of the authors' notebook (google/uncertainty-baselines,
    experimental/multimodal). There the means that are taken away are half over all test images, half over 20,000
    images of LAION-400M; here they are over the training images alone. Their labels are not read, though they were
    drawn by class and the record counts them as labels. (On the test images it would be transductive.) The authors'
    second way, which keeps the templates that stand out and leaves the others, is not built.

    It needs several templates, text.templates=ensemble for one: with a single one it is zero-shot, and says so.

    Args:
        temperature: the larger, the more equal the weights.
    """

    recipe, open_classes = TRAINING_FREE, True
    label = "ZPE"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, temperature: float = 1.0):
        super().__init__(clip, classes)
        if not temperature > 0:
            raise UserError(f"method.temperature must be above 0, found {temperature}")
        self.zero_shot, self.prompts, self.temperature = ZeroShot(clip, classes), classes.kind, temperature
        self.template_weights: Tensor
        self.register_buffer("template_weights", torch.ones(_templates(classes)))          # (t,)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        if len(self.template_weights) == 1:
            log.warning("method=zpe weighs templates, and there is one alone: this is zero_shot; give several, such as "
                        "text.templates=ensemble")
        sentences = _encoded(clip, self.classes)                                           # (t, c, d)
        images, _ = pooled_features(support, clip.device)                                  # (n, d)
        scores = torch.stack([self._score(images, prompts) for prompts in sentences])      # (t,)
        self.template_weights.copy_((scores / self.temperature).softmax(dim=0))
        self.zero_shot.weights.copy_(self._weighted(sentences))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        if _templates(classes) != len(self.template_weights):
            raise UserError(f"the model has weights of {len(self.template_weights)} templates, the new classes have "
                            f"{_templates(classes)}: give them the same text.templates")
        self.prompts, self.zero_shot.weights = classes.kind, self._weighted(_encoded(clip, classes))

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.zero_shot.class_features(clip)                                         # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.zero_shot.logits(x, class_features)                                    # (b, c)

    def _score(self, images: Tensor, prompts: Tensor) -> Tensor:
        """() how sure of `images` (n, d) the classes' sentences (c, d) in one template are."""
        logits = self.zero_shot.logits(Features(images), prompts)                          # (n, c)
        return (logits - logits.mean(dim=0)).amax(dim=1).mean()

    def _weighted(self, sentences: Tensor) -> Tensor:
        """(c, d) from (t, c, d) unit norm: the shorter, the less the sentences of a class agree."""
        return torch.einsum("t,tcd->cd", self.template_weights, sentences)


def _templates(classes: ClassText) -> int:
    """How many templates all classes share; UserError where their sentences are their own."""
    counts = {len(prompts) for prompts in classes.prompts}
    if classes.kind != "names" or len(counts) != 1:
        raise UserError("method=zpe weighs templates that all classes share, and text.descriptions gives each class "
                        "sentences of its own: leave it out and name text.templates, or use method=dclip")
    return counts.pop()


def _encoded(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(t, c, d) unit norm."""
    return torch.stack([clip.encode_text(sentences) for sentences in zip(*classes.prompts, strict=True)])
