"""ProLIP (Fahes et al., preprint 2024, arXiv:2410.05270): only the last projection of the image tower is trained.

Also the base class of the methods that train one linear map of the image and hold it near its start: `HeldMap`.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Recipe
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText


class HeldMap(OnZeroShot):
    """Base: zero-shot of a linearly mapped feature; the loss is `cross-entropy + strength / shots * ||W - W_0||_F^2`.

    Args:
        start: (f, d) W_0, the map before training.
        strength: of the penalty; shots is the mean number of training images a class.
    """

    splits_batches, open_classes = True, True
    start: Tensor                        # (f, d) W_0
    pull: Tensor                         # () strength / shots

    def __init__(self, clip: FrozenCLIP, classes: ClassText, start: Tensor, *, strength: float):
        super().__init__(clip, classes)
        if not strength >= 0:
            raise UserError(f"{option('method.strength')} must be at least 0, found {strength}")
        self.strength = strength
        self.projection = nn.Parameter(start)                                              # (f, d) W
        self.register_buffer("start", start.clone())
        self.register_buffer("pull", torch.tensor(float(strength)))

    @abstractmethod
    def mapped(self, x: Features) -> Tensor:
        """(b, d) the feature after W, of any length."""

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        self.pull.fill_(self.strength * len(self.classes.names) / len(support.labels))

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.zero_shot.logits(Features(F.normalize(self.mapped(x), dim=-1)), class_features)    # (b, c)

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        pulled = self.pull * (self.projection - self.start).square().sum()
        return super().loss(x, y, clip, label_smoothing=label_smoothing) + pulled


class ProLIP(HeldMap):
    """Zero-shot with a trained projection W (f, d), initialised with the tower's W_0 and penalised for leaving it.

    The image feature is `W^T u + b` of unit norm, u (f,) the input of the tower's projection; the loss is
    `cross-entropy + lambda * ||W - W_0||_F^2` with lambda = strength / shots, shots the mean number of training images
    a class. The bias b, which ResNets have, is not trained. The tower does not change: the method holds a copy of W.

    Loss and recipe are those of the authors' program and settings (astra-vision/ProLIP, methods/ProLIP.py,
    configs/base.yaml): full batches, Adam, 1e-5, 300 epochs, cosine, other augmented views in each epoch (of the 8 in
    the bank; they keep 300), and strength = 1. Without validation they also report lambda = 1 / shots^2 and learning
    rates up to 1e-2; with validation they tune both, which is not done here. Adam's epsilon is 1e-8, theirs is 1e-4: on
    drawn birds it changes nothing.

    Raises:
        UserError: the tower ends in no linear map (SigLIP, MLP heads).

    Args:
        strength: of the penalty.
    """

    recipe = Recipe("prolip", epochs=300, batch_size=100_000, optimizer="adamw", learning_rate=1e-5, weight_decay=0.0,
                    warmup_epochs=0)
    label = "ProLIP"
    needs = frozenset({"pooled", "unprojected"})
    bias: Tensor                         # (d,)

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, strength: float = 1.0):
        weight, bias = clip.image_projection()
        super().__init__(clip, classes, weight, strength=strength)
        self.register_buffer("bias", bias)

    def mapped(self, x: Features) -> Tensor:
        assert x.unprojected is not None
        return x.unprojected @ self.projection + self.bias                                 # (b, d)
