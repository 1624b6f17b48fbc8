"""Gaussian discriminant analysis (Wang et al., ICLR 2024, arXiv:2402.04087): a hard-to-beat training-free baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText

WEIGHTS = tuple(10.0 ** power for power in range(-4, 3))    # of the Gaussian logits, tried on validation images


class GDA(Method):
    """Zero-shot logits plus `alpha * (x . w_c + b_c)`, the log-likelihoods of Gaussians with one shared covariance.

    With the class means mu_c (c, d), the covariance S (d, d) of the n training features around their class means and
    `P = d * ((n - 1) S + tr(S) I)^-1`, an empirical-Bayes ridge estimate of its inverse: `w_c = P mu_c`,
    `b_c = -mu_c . P mu_c / 2`. The classes count as equally frequent, so that log pi_c falls away.

    Estimate (Kubokawa and Srivastava's), frequencies and grid are those of the authors' program (mrflogs/ICLR24,
    main_few_shots.py): alpha is the best of 1e-4, 1e-3 ... 100 on the validation images where there are any, the
    smallest of equals. Without them it stays as given: the authors have no such value, ours was set on a drawn world.
    Where all features are their class's mean, as with one image a class, S is nothing: then P is `d / tr` times the
    identity, tr the trace of their covariance around the mean of all, and the nearest mean wins. The authors take each
    image in 10 augmented views as 10 images, which makes n, and with it what alpha means, another; here it counts once,
    as the evaluation transform shows it. A class without an image has no Gaussian: its mean is that of all images.

    Args:
        alpha: weight of the Gaussian logits without validation images.
    """

    recipe, label = TRAINING_FREE, "GDA"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 0.1):
        super().__init__(clip, classes)
        if not alpha >= 0:
            raise UserError(f"method.alpha must be at least 0, found {alpha}")
        self.zero_shot, self.prompts = ZeroShot(clip, classes), classes.kind
        self.weight: Tensor
        self.bias: Tensor
        self.alpha: Tensor
        self.register_buffer("weight", torch.zeros(len(classes.names), clip.embed_dim))    # (c, d)
        self.register_buffer("bias", torch.zeros(len(classes.names)))                      # (c,)
        self.register_buffer("alpha", torch.tensor(float(alpha)))                          # ()

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        self.zero_shot.prepare(clip, None)
        features, labels = pooled_features(support, clip.device)
        weight, bias = gaussians(features, labels, len(self.bias))
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if val is not None:
            self.alpha.fill_(self._best_on(*pooled_features(val, clip.device)))

    @property
    def learned_parameters(self) -> int:
        return self.weight.numel() + self.bias.numel()

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.zero_shot.class_features(clip)                                         # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        gaussian = x.pooled @ self.weight.T + self.bias                                    # (b, c)
        return self.zero_shot.logits(x, class_features) + self.alpha * gaussian

    def _best_on(self, features: Tensor, labels: Tensor) -> float:
        """The weight with the most of `features` (n, d) right."""
        base = self.zero_shot.logits(Features(features), self.zero_shot.weights)           # (n, c)
        gaussian = features @ self.weight.T + self.bias                                    # (n, c)
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
