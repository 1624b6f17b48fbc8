"""LP++ (Huang et al., CVPR 2024, arXiv:2404.02285): a linear probe with class features blended in."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText

START = 250.0                            # of the blending
PROTOTYPE_STEPS = 10                     # for each step of the blending


class LPPlusPlus(Method):
    """`logit_k = x . (w_k + alpha_k t_k)`: visual prototypes w (c, d), one learned weight alpha_k for each class text.

    Cross-entropy over all training images at once, by block coordinate majorise-minimise descent in `prepare`: no
    learning rate, each block's step is the inverse of a bound on its curvature. With images X (n, d) and texts t,

    - `w <- w - dL/dw * 2n / lambda_max(X^T X)`, ten times, then
    - `alpha <- alpha - dL/dalpha * 2n / max_k sum_i (x_i . t_k)^2`, once.

    Both bounds follow from a softmax Hessian of at most 1/2, so that no step raises the loss. Start: w_k is the sum
    of the features of class k, alpha_k the same for all: 250 times the mean over classes of `sum_{i in k} x_i . t_k`
    by the images a class. There is no temperature and no bias: alpha and w bring the scale.

    Logits, start, 300 steps and 10 are those of the authors' program (FereshteShakeri/FewShot-CLIP-Strong-Baseline,
    methods/linear_probe_p2.py), which descends otherwise: steps of 4n / lambda_max, twice what the bound allows, with
    momentum 0.9, and of n / (4 max_k ...); a bias; and the epoch that is best on validation images. Here the last step
    counts and no validation image is read. (On drawn birds their steps reach a lower loss and the same accuracy, give
    or take a point.) `residual_probe` is in its line: zero-shot logits at their fixed scale and a linear layer by AdamW
    over augmented views.

    Args:
        steps: of the prototypes, in all.
    """

    recipe, label = TRAINING_FREE, "LP++"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, steps: int = 300):
        super().__init__(clip, classes)
        if steps < 0:
            raise UserError(f"method.steps must be at least 0, found {steps}")
        self.zero_shot, self.prompts, self.steps = ZeroShot(clip, classes), classes.kind, steps
        self.prototypes: Tensor
        self.blending: Tensor
        self.register_buffer("prototypes", torch.zeros(len(classes.names), clip.embed_dim))     # (c, d) w
        self.register_buffer("blending", torch.zeros(len(classes.names)))                       # (c,) alpha

    @torch.no_grad()
    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        self.zero_shot.prepare(clip, None)
        x, y = pooled_features(support, clip.device)                                       # (n, d), (n,)
        targets = F.one_hot(y, len(self.blending)).to(x)                                   # (n, c)
        similar = x @ self.zero_shot.weights.T                                             # (n, c)
        self._start(x, targets, similar)
        prototype_step, blending_step = self._step_sizes(x, similar)
        for step in range(1, self.steps + 1):
            self.prototypes -= prototype_step * self._slope(x, similar, targets).T @ x
            if step % PROTOTYPE_STEPS == 0:
                self.blending -= blending_step * (self._slope(x, similar, targets) * similar).sum(dim=0)

    @property
    def learned_parameters(self) -> int:
        return self.prototypes.numel() + self.blending.numel()

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.prototypes + self.blending[:, None] * self.zero_shot.weights           # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return x.pooled @ class_features.T                                                 # (b, c)

    def _start(self, x: Tensor, targets: Tensor, similar: Tensor) -> None:
        """w and alpha from images `x` (n, d), their classes (n, c) and their similarities to the texts (n, c)."""
        self.prototypes.copy_(targets.T @ x)
        shots = len(x) / targets.shape[1]
        self.blending.fill_(START / shots * (targets * similar).sum(dim=0).mean().item())

    def _step_sizes(self, x: Tensor, similar: Tensor) -> tuple[float, float]:
        """Of w and of alpha: the inverse of the largest curvature of the loss along each."""
        widest = torch.linalg.matrix_norm(x, 2).square().item()
        return 2 * len(x) / widest, 2 * len(x) / similar.square().sum(dim=0).max().item()

    def _slope(self, x: Tensor, similar: Tensor, targets: Tensor) -> Tensor:
        """(n, c) the gradient of the loss with respect to the logits."""
        logits = x @ self.prototypes.T + self.blending * similar                           # (n, c)
        return (logits.softmax(dim=1) - targets) / len(x)
