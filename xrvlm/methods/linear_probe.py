"""Linear probe (Radford et al., ICML 2021, arXiv:2103.00020): logistic regression on frozen features."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import option, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.text.class_text import ClassText

STRENGTHS = tuple(10.0 ** power for power in np.arange(-3, 3.5, 0.5))    # C, the inverse of the L2 penalty


class LinearProbe(Method):
    """Multinomial logistic regression by L-BFGS on the evaluation view, each feature scaled to unit variance.

    C is the best on the validation images where there are any (the smallest of ties), else 1. CLIP's own protocol takes
    the features as they are and always sweeps C on validation images.

    Args:
        inputs: `pooled`, or `pooled+mid`: the pooled feature and the mean over positions of the earlier block.
    """

    recipe = TRAINING_FREE
    label = "linear probe"
    prompts = "none"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, inputs: Literal["pooled", "pooled+mid"] = "pooled"):
        super().__init__(clip, classes)
        if inputs not in ("pooled", "pooled+mid"):
            raise unknown(option("method.inputs"), inputs, ("pooled", "pooled+mid"))
        self.with_mid = inputs == "pooled+mid"
        self.needs = frozenset({"pooled", "mid_tokens"} if self.with_mid else {"pooled"})
        self.label = "linear probe (pooled + mid)" if self.with_mid else "linear probe"
        width = clip.embed_dim + (clip.image_width if self.with_mid else 0)
        self.linear = nn.Linear(width, len(classes.names)).requires_grad_(False)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        from sklearn.linear_model import LogisticRegression

        assert support is not None
        x, y = self._matrix(support)                                                       # (n, f), (n,)
        mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
        fits = {}
        for strength in STRENGTHS if val is not None else (1.0,):
            fits[strength] = LogisticRegression(C=strength, max_iter=5000, tol=1e-5).fit((x - mean) / deviation, y)
        best = 1.0
        if val is not None:
            x_val, y_val = self._matrix(val)
            scores = {c: fit.score((x_val - mean) / deviation, y_val) for c, fit in fits.items()}
            best = max(scores, key=lambda c: scores[c])
        weight, bias = fits[best].coef_, fits[best].intercept_                             # (c, f), (c,)
        if len(weight) == 1:             # of two classes scikit-learn gives one row, for the second
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        weight = weight / deviation
        self.linear.weight.copy_(torch.from_numpy(weight))
        self.linear.bias.copy_(torch.from_numpy(bias - weight @ mean))

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.linear.weight                                                          # (c, f)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return nn.functional.linear(self._inputs(x), class_features, self.linear.bias)     # (b, c)

    def _inputs(self, x: Features) -> Tensor:
        if not self.with_mid:
            return x.pooled                                                                # (b, d)
        assert x.mid_tokens is not None
        return torch.cat([x.pooled, x.mid_tokens.mean(dim=1)], dim=1)                      # (b, d + e)

    def _matrix(self, source: FeatureSource) -> tuple[np.ndarray, np.ndarray]:
        batches = [(self._inputs(x).cpu(), y) for x, y in source.in_order()]
        features, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        return features.double().numpy(), labels.numpy()
