"""TDA (Karmanov et al., CVPR 2024, arXiv:2403.18293): caches of confident and of uncertain test images, no labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.memory import entropy, most_certain, nearness
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

POSITIVE, NEGATIVE = 3, 2                # images that a class keeps in each cache
UNCERTAIN = 0.2, 0.5                     # entropy of an image for the negative cache
LIKELY = 0.03                            # a class of at least this probability is not denied
NEGATIVE_WEIGHT, NEGATIVE_SHARPNESS = 0.117, 1.0


class TDA(OnZeroShot):
    """Zero-shot logits, plus the votes of confident test images, minus the votes of uncertain ones.

    `logits = zero-shot + alpha * e(x, K) L - 0.117 * e(x, K') L'` with `e(x, k) = exp(-beta * (1 - x . k))`. K: of the
    test images that zero-shot predicts as a class, the three of lowest entropy; L one-hot that class. K': the two of
    lowest entropy among those of entropy between 0.2 and 0.5 of a uniform one; L' marks every class with a probability
    above 0.03, beta is 1. The paper calls this denying what an uncertain image may be; as L' is subtracted, the classes
    that an uncertain image may be lose. A cache of features (c, 3, d) and one of (c, 2, d) are stored.

    Sizes, thresholds, the negative weight, alpha = 2 and beta = 5 are those of the authors' program (kdiAAA/TDA) for
    ImageNet; it has another alpha and beta for some data sets. The entropy in nats is divided by the binary logarithm
    of the number of classes, as in the program. The paper predicts each test image when it arrives, from the
    caches so far. Here the caches are filled from all test images first, which ends in the same caches in any order,
    and every image, a test image or a new one (`predict`, `eval` on others), is scored by them; they do not change.
    On equal features, with its caches filled by the same images, the program's functions give these logits to 2e-6.
    To score by the final caches is not the same number: on drawn birds (world 0, tiny tower, zero-shot 19.4 %) 18.8 %,
    against 18.9 and 20.3 % in two orders of arrival.

    Args:
        alpha: weight of the confident images.
        beta: how fast their vote falls with the distance.
    """

    recipe, learns, transductive, label = TRAINING_FREE, False, True, "TDA"
    confident: Tensor                    # (c, 3, d), 0 where a class has fewer
    votes: Tensor                        # (c, 3, c)
    uncertain: Tensor                    # (c, 2, d)
    denials: Tensor                      # (c, 2, c)

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 2.0, beta: float = 5.0):
        super().__init__(clip, classes)
        if not alpha >= 0 or not beta > 0:
            raise UserError(f"{option('method.alpha')} must be at least 0 and {option('method.beta')} above 0, found "
                            f"{alpha} and {beta}")
        self.alpha, self.beta = alpha, beta
        count, width = len(classes.names), clip.embed_dim
        self.register_buffer("confident", torch.zeros(count, POSITIVE, width))
        self.register_buffer("votes", torch.zeros(count, POSITIVE, count))
        self.register_buffer("uncertain", torch.zeros(count, NEGATIVE, width))
        self.register_buffer("denials", torch.zeros(count, NEGATIVE, count))

    @torch.no_grad()
    def transduce(self, clip: FrozenCLIP, unlabelled: Features, support: FeatureSource | None,
                  val: FeatureSource | None = None) -> None:
        pooled = unlabelled.pooled.to(self.confident)                                      # (q, d)
        logits = self.zero_shot.logits(Features(pooled), self.zero_shot.weights)           # (q, c)
        rows, there = most_certain(logits, POSITIVE)                                       # (c, 3)
        self.confident = pooled[rows] * there[..., None]
        own = F.one_hot(torch.arange(len(rows), device=rows.device), len(rows))            # (c, c)
        self.votes = own[:, None] * there[..., None].to(pooled)
        level = entropy(logits) / math.log2(logits.shape[1])                               # (q,)
        rows, there = most_certain(logits, NEGATIVE, (level > UNCERTAIN[0]) & (level < UNCERTAIN[1]))
        self.uncertain = pooled[rows] * there[..., None]
        self.denials = (logits.softmax(dim=1) > LIKELY)[rows] * there[..., None].to(pooled)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        confident = nearness(x.pooled @ self.confident.flatten(0, 1).T, self.beta)         # (b, c * 3)
        uncertain = nearness(x.pooled @ self.uncertain.flatten(0, 1).T, NEGATIVE_SHARPNESS)    # (b, c * 2)
        return (self.zero_shot.logits(x, class_features) + self.alpha * confident @ self.votes.flatten(0, 1)
                - NEGATIVE_WEIGHT * uncertain @ self.denials.flatten(0, 1))                # (b, c)
