"""LP++ (Huang et al., CVPR 2024, arXiv:2404.02285): a linear probe blended with the class features of the text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

START = 250.0                            # factor of the initial alpha
PROTOTYPE_STEPS = 10                     # steps of w for each step of alpha


class LPPlusPlus(OnZeroShot):
    """`logit_k = x . (w_k + alpha_k t_k)`: visual prototypes w (c, d), one learned weight alpha_k for each class text.

    Minimises the cross-entropy over all training images by block coordinate majorise-minimise descent in `prepare`.
    There is no learning rate: the step of each block is the inverse of a bound on its curvature. With images X (n, d)
    and class features t of the text,

    - `w <- w - dL/dw * 2n / lambda_max(X^T X)`, ten times, then
    - `alpha <- alpha - dL/dalpha * 2n / max_k sum_i (x_i . t_k)^2`, once.

    Both bounds follow from a softmax Hessian of at most 1/2, so no step increases the loss. Initial values: w_k is the
    sum of the features of class k; alpha_k is the same for all classes: 250 times the mean over classes of
    `sum_{i in k} x_i . t_k`, divided by the images a class. There is no temperature and no bias.

    Logits, initial values, 300 steps and 10 are those of the authors' program
    (FereshteShakeri/FewShot-CLIP-Strong-Baseline, methods/linear_probe_p2.py). Its descent differs: steps of
    4n / lambda_max, twice the bound, with momentum 0.9, and of n / (4 max_k ...); a bias; and the epoch that is best on
    validation images. It never clears the gradient of alpha, so that a step of alpha follows the sum of all gradients
    before it. Here alpha follows its own gradient, the result is that of the last step, and no validation image is
    read. (On drawn birds their steps reach a lower loss and the same accuracy within a point.) `residual_probe` is
    related: zero-shot logits at a fixed scale and a linear layer trained by AdamW on augmented views.

    Args:
        steps: number of steps of w.
        inputs, scaling: the image feature beside w, see `ImageInputs`; the paper's is the pooled one, as it always is
            beside the text.
    """

    recipe, label = TRAINING_FREE, "LP++"
    revision = 2                         # as of `ImageInputs`

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, steps: int = 300, inputs: Inputs = "pooled",
                 scaling: Scaling = "none"):
        super().__init__(clip, classes)
        if steps < 0:
            raise UserError(f"{option('method.steps')} must be at least 0, found {steps}")
        self.steps, self.inputs = steps, ImageInputs(clip, inputs, scaling)
        self.needs = self.inputs.needs
        self.prototypes: Tensor
        self.blending: Tensor
        self.register_buffer("prototypes", torch.zeros(len(classes.names), self.inputs.width))  # (c, f) w
        self.register_buffer("blending", torch.zeros(len(classes.names)))                       # (c,) alpha

    @torch.no_grad()
    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        pooled, y = pooled_features(support, clip.device)                                  # (n, d), (n,)
        similar = pooled @ self.zero_shot.weights.T                                        # (n, c)
        x = self.inputs.fit(support)[0].to(similar)                                        # (n, f)
        targets = F.one_hot(y, len(self.blending)).to(x)                                   # (n, c)
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
        return self.blending[:, None] * self.zero_shot.weights                             # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.inputs(x) @ self.prototypes.T + x.pooled @ class_features.T            # (b, c)

    def _start(self, x: Tensor, targets: Tensor, similar: Tensor) -> None:
        """Initialise w and alpha from images `x` (n, f), one-hot `targets` (n, c) and similarities to t (n, c)."""
        self.prototypes.copy_(targets.T @ x)
        shots = len(x) / targets.shape[1]
        self.blending.fill_(START / shots * (targets * similar).sum(dim=0).mean().item())

    def _step_sizes(self, x: Tensor, similar: Tensor) -> tuple[float, float]:
        """Step sizes of w and of alpha: the inverse bounds on the curvature of the loss in each."""
        widest = torch.linalg.matrix_norm(x, 2).square().item()
        return 2 * len(x) / widest, 2 * len(x) / similar.square().sum(dim=0).max().item()

    def _slope(self, x: Tensor, similar: Tensor, targets: Tensor) -> Tensor:
        """(n, c) the gradient of the loss with respect to the logits."""
        logits = x @ self.prototypes.T + self.blending * similar                           # (n, c)
        return (logits.softmax(dim=1) - targets) / len(x)
