"""GDA (Wang et al., ICLR 2024, arXiv:2402.04087): zero-shot plus Gaussian discriminant analysis, training-free."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling
from xrvlm.methods.zero_shot import OnZeroShot, zero_shot_logits
from xrvlm.text.class_text import ClassText

WEIGHTS = tuple(10.0 ** power for power in range(-4, 3))    # candidates of alpha


class GDA(OnZeroShot):
    """Zero-shot logits plus `alpha * (x . w_c + b_c)`, the log-likelihoods of Gaussians with one shared covariance.

    With the class means mu_c (c, d), the covariance S (d, d) of the n training features around their class means and
    `P = d * ((n - 1) S + tr(S) I)^-1`, an empirical-Bayes ridge estimate of its inverse: `w_c = P mu_c`,
    `b_c = -mu_c . P mu_c / 2`. The classes count as equally frequent, so log pi_c cancels.

    Estimate (Kubokawa and Srivastava's), class frequencies and grid are those of the authors' program (mrflogs/ICLR24,
    main_few_shots.py): alpha is the best of 1e-4, 1e-3 ... 100 on the validation images where there are any, the
    smallest of ties. Without them it is the option's value; the authors have no default, ours was set on a drawn world.
    Where every feature equals its class mean, as with one image a class, S is zero: then P is `d / tr` times the
    identity, tr the trace of the features' covariance around the mean of all, and the nearest mean wins. The authors
    count 10 augmented views of an image as 10 images, which changes n and thereby the scale of alpha; here an image
    counts once, in the evaluation view. A class without an image gets the mean of all images.

    Args:
        alpha: weight of the Gaussian logits where there are no validation images.
        inputs, scaling: the image feature of the Gaussians, see `ImageInputs`; the paper's is the pooled one.
        fit_prior: weight the zero-shot logits by what they are worth on the training images; the paper does not.
    """

    recipe, label = TRAINING_FREE, "GDA"
    revision = 2                         # as of `ImageInputs`

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 0.1, fit_prior: bool = False,
                 inputs: Inputs = "pooled", scaling: Scaling = "none"):
        super().__init__(clip, classes, fit_prior=fit_prior)
        if not alpha >= 0:
            raise UserError(f"{option('method.alpha')} must be at least 0, found {alpha}")
        self.inputs = ImageInputs(clip, inputs, scaling)
        self.needs = self.inputs.needs
        self.weight: Tensor
        self.bias: Tensor
        self.alpha: Tensor
        self.register_buffer("weight", torch.zeros(len(classes.names), self.inputs.width))    # (c, f)
        self.register_buffer("bias", torch.zeros(len(classes.names)))                      # (c,)
        self.register_buffer("alpha", torch.tensor(float(alpha)))                          # ()

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        weight, bias = gaussians(*self.inputs.fit(support), len(self.bias))
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if val is not None:
            self.alpha.fill_(self._best_on(val, clip.device))

    @property
    def learned_parameters(self) -> int:
        return self.weight.numel() + self.bias.numel() + self.fit_prior

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        gaussian = self.inputs(x) @ self.weight.T + self.bias                              # (b, c)
        return self.prior(x, class_features) + self.alpha * gaussian

    def _best_on(self, val: FeatureSource, device: torch.device) -> float:
        """The weight with the highest accuracy on the validation images, the smallest of ties."""
        logits, labels = zero_shot_logits(self.zero_shot, val, device)                     # (n, c)
        base = self.weighted(logits)
        gaussian = self.inputs.of(val)[0].to(self.weight) @ self.weight.T + self.bias      # (n, c)
        right = {weight: int(((base + weight * gaussian).argmax(dim=1) == labels).sum()) for weight in WEIGHTS}
        return max(right, key=lambda weight: right[weight])


def gaussians(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights (c, d) and biases (c,) from `features` (n, d) with `labels` (n,), in double precision on the CPU."""
    x, labels, (count, width) = features.cpu().double(), labels.cpu(), features.shape    # an Apple GPU has no double
    members = F.one_hot(labels, classes).to(x)                           # (n, c)
    counts = members.sum(dim=0)[:, None]                                                   # (c, 1)
    means = torch.where(counts > 0, members.T @ x / counts.clamp(min=1), x.mean(dim=0))    # (c, d)
    apart = x - means[labels]                                                              # (n, d)
    # n - 1 cancels: (n - 1) S is the scatter, tr(S) the scatter's trace over n - 1
    scatter = apart.T @ apart                                                              # (d, d)
    if scatter.trace() > 1e-9 * count:
        ridge = scatter.trace() / (count - 1) * torch.eye(width).to(x)
        weight = width * torch.linalg.solve(scatter + ridge, means.T).T                    # (c, d)
    else:
        spread = (x - x.mean(dim=0)).square().sum() / max(1, count - 1)
        weight = width / spread.clamp(min=1e-9) * means
    return weight, -(weight * means).sum(dim=1) / 2
