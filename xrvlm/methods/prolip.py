"""ProLIP (Fahes et al., preprint 2024, arXiv:2410.05270): only the last projection of the image tower is trained."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Recipe
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText


class ProLIP(OnZeroShot):
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
    splits_batches, open_classes = True, True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, strength: float = 1.0):
        super().__init__(clip, classes)
        if not strength >= 0:
            raise UserError(f"{option('method.strength')} must be at least 0, found {strength}")
        self.strength = strength
        weight, bias = clip.image_projection()
        self.projection = nn.Parameter(weight)                                             # (f, d) W
        self.start: Tensor
        self.bias: Tensor
        self.pull: Tensor
        self.register_buffer("start", weight.clone())                                      # (f, d) W_0
        self.register_buffer("bias", bias)                                                 # (d,)
        self.register_buffer("pull", torch.tensor(float(strength)))                        # () lambda

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        self.pull.fill_(self.strength * len(self.classes.names) / len(support.labels))

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        assert x.unprojected is not None
        projected = F.normalize(x.unprojected @ self.projection + self.bias, dim=-1)       # (b, d)
        return self.zero_shot.logits(Features(projected), class_features)                  # (b, c)

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        pulled = self.pull * (self.projection - self.start).square().sum()
        return super().loss(x, y, clip, label_smoothing=label_smoothing) + pulled
