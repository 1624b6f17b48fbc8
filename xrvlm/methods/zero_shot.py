"""Zero-shot CLIP (Radford et al., ICML 2021, arXiv:2103.00020): the class whose sentences are nearest to the image.

Also the base classes of the methods that share its logits: `CosineLogits`, and `OnZeroShot` of those that correct them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, ClassFeatures, Method
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ensemble

PRIOR_PENALTY = 0.001                    # on the squared logarithm of a prior weight above 1


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
    """Base of the methods that hold a zero-shot classifier and correct it; what they do not override is zero-shot's.

    Args:
        fit_prior: weight the zero-shot logits, by `fitted_weight` of the training images, so that names that say
            nothing of the photos, or are wrong with confidence, do no harm. False: they count as they are.
    """

    prior_weight: Tensor                 # () with `fit_prior` alone

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, fit_prior: bool = False):
        super().__init__(clip, classes)
        self.zero_shot, self.prompts, self.fit_prior = ZeroShot(clip, classes), classes.kind, fit_prior
        if fit_prior:
            self.register_buffer("prior_weight", torch.ones(()))

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        self.zero_shot.prepare(clip, None)
        if self.fit_prior:
            assert support is not None
            self.prior_weight.copy_(fitted_weight(*zero_shot_logits(self.zero_shot, support, clip.device)))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.zero_shot.turn(clip, classes)
        self.prompts = classes.kind

    def class_features(self, clip: FrozenCLIP) -> ClassFeatures:
        return self.zero_shot.class_features(clip)                                         # (c, d)

    @property
    def learned_parameters(self) -> int:
        return super().learned_parameters + self.fit_prior

    def prior(self, x: Features, class_features: ClassFeatures) -> Tensor:
        """(b, c) the zero-shot logits, weighted where the weight is fitted."""
        return self.weighted(self.zero_shot.logits(x, class_features))

    def weighted(self, logits: Tensor) -> Tensor:
        """Zero-shot logits, times their weight where it is fitted."""
        return self.prior_weight * logits if self.fit_prior else logits

    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        return self.zero_shot.logits(x, class_features)                                    # (b, c)


@torch.no_grad()
def zero_shot_logits(zero_shot: ZeroShot, source: FeatureSource, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (n, c) of all images of `source`, and their labels (n,)."""
    rows = [zero_shot.logits(x.to(device), zero_shot.weights) for x, _ in source.in_order()]
    return torch.cat(rows), source.labels.to(device)


def fitted_weight(prior: Tensor, y: Tensor) -> Tensor:
    """() the maximum-likelihood weight of the zero-shot logits (n, c) on labelled images, near 0 where they mislead.

    Where zero-shot is right on all of them, the likelihood has no maximum: weights above 1 get a small penalty.
    """
    log_weight = torch.zeros((), device=prior.device, requires_grad=True)
    minimise(log_weight, lambda: F.cross_entropy(log_weight.exp() * prior, y)
             + PRIOR_PENALTY * log_weight.relu().square(), steps=30)
    return log_weight.detach().exp()


def minimise(variable: Tensor, loss: Callable[[], Tensor], *, steps: int) -> None:
    """Bring a leaf tensor to the minimum of a smooth function of it, in place, by L-BFGS."""
    optimizer = torch.optim.LBFGS([variable], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)    # pyright: ignore[reportArgumentType]
