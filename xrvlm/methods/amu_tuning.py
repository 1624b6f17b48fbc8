"""AMU-Tuning (Tang et al., CVPR 2024, arXiv:2404.08958): a second tower corrects zero-shot where that is unsure."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Recipe
from xrvlm.methods.inputs import ImageInputs
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

NORMAL = 3.0                             # kurtosis of normally distributed logits, which say nothing


class AMUTuning(OnZeroShot):
    """`logits = w * zero-shot + alpha * u(zero-shot) * s(x)`, `s(x) = scale * W a(x)`: a(x) is the second tower's.

    a(x) (q,) has unit length, W (c, q) is trained from the mean features of the classes, and `scale` is the tower's.
    u says how unsure zero-shot is: `(3 / kurtosis) ** power` of its logits over the classes, which is 1 where they look
    like noise and less where one of them stands out. The loss is the cross-entropy of the logits plus `alone` times
    that of s(x) by itself, so that W does not rest where zero-shot is right already.

    The residual, its classifier that starts from the features, the two losses and the fusion by kurtosis are the
    paper's. Ours: kurtosis counts relative to that of noise; w is fitted, so that names that say nothing do no harm; W
    is kept near its start by nothing but few epochs; alpha and the other figures are fixed for all data sets, chosen
    on drawn birds, where the paper searches alpha on each. There is no program to compare with: it has no licence.

    Args:
        alpha: weight of the second tower.
        power: how much less it weighs where zero-shot is sure; 0: the same everywhere.
        alone: weight of the second loss.
        fit_prior: weight the zero-shot logits by what they are worth on the training images; the paper does not.

    Raises:
        UserError: the tower has no second one.
    """

    recipe = Recipe("amu_tuning", epochs=30, batch_size=64, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
                    warmup_epochs=0, by_step=True)
    label = "AMU-Tuning"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 1.0, power: float = 0.5,
                 alone: float = 1.0, fit_prior: bool = True):
        if not clip.second_width:
            raise UserError(f"amu_tuning adds the features of a second tower: give one ({option('second', 'photo')}, "
                            "xrvlm.paired), or a second look as parts")
        super().__init__(clip, classes, fit_prior=fit_prior)
        for name, value in (("alpha", alpha), ("power", power), ("alone", alone)):
            if not value >= 0:
                raise UserError(f"{option(f'method.{name}')} must be at least 0, found {value}")
        self.alpha, self.power, self.alone = alpha, power, alone
        self.logit_scale = clip.logit_scale
        self.inputs = ImageInputs(clip, "second", "auto")
        self.needs = self.inputs.needs
        self.weight = nn.Parameter(torch.zeros(len(classes.names), self.inputs.width))     # (c, q)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support, val)
        features, labels = self.inputs.fit(support)                                        # (n, q), (n,)
        members = F.one_hot(labels, len(self.weight)).to(features)                         # (n, c)
        means = F.normalize(members.T @ (features - features.mean(dim=0)), dim=1)
        self.weight.data = means.to(self.weight)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        prior = self.prior(x, class_features)                                              # (b, c)
        return prior + self.alpha * self.unsure(prior) * self.of_second(x)

    def of_second(self, x: Features) -> Tensor:
        """(b, c) the logits of the second tower alone."""
        return self.logit_scale * self.inputs(x) @ self.weight.T

    def unsure(self, logits: Tensor) -> Tensor:
        """(b, 1)"""
        apart = logits - logits.mean(dim=1, keepdim=True)
        spread = apart.square().mean(dim=1, keepdim=True)
        kurtosis = apart.pow(4).mean(dim=1, keepdim=True) / spread.square().clamp(min=1e-12)
        return (NORMAL / kurtosis.clamp(min=1.0)) ** self.power

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        whole = super().loss(x, y, clip, label_smoothing=label_smoothing)
        return whole + self.alone * F.cross_entropy(self.of_second(x), y, label_smoothing=label_smoothing)
