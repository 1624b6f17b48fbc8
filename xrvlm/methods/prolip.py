"""ProLIP (Fahes et al., 2024, arXiv:2410.05270): the image tower's last projection is trained, nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText


class ProLIP(Method):
    """Zero-shot with a projection W (f, d) that starts as the tower's own, W_0, and is held near it.

    The image feature is `W^T u + b` of unit norm, u (f,) what the tower's projection reads; the loss is
    `cross-entropy + lambda * ||W - W_0||_F^2` with lambda = strength / shots, shots the training images a class on
    average. The bias b, which ResNets have, stays as it is. The tower itself is not touched: the model holds its own W.

    Loss and recipe are those of the authors' program and settings (astra-vision/ProLIP, methods/ProLIP.py,
    configs/base.yaml): all images at once, Adam, 1e-5, 300 epochs, cosine, each epoch on other augmented views (of the
    8 in the bank; they keep 300), and strength = 1. Without validation they also report lambda = 1 / shots^2 and rates
    up to 1e-2; with it they choose rate and lambda, which is not done here. Their epsilon of Adam, 1e-4, is left at
    1e-8: on drawn birds it changes nothing.

    Towers that end in no linear map (SigLIP, MLP heads) are refused.

    Args:
        strength: of the pull towards W_0.
    """

    recipe = Recipe("prolip", epochs=300, batch_size=100_000, optimizer="adamw", learning_rate=1e-5, weight_decay=0.0,
                    warmup_epochs=0)
    label = "ProLIP"
    needs = frozenset({"pooled", "unprojected"})
    splits_batches, open_classes = True, True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, strength: float = 1.0):
        super().__init__(clip, classes)
        if not strength >= 0:
            raise UserError(f"method.strength must be at least 0, found {strength}")
        self.zero_shot, self.prompts, self.strength = ZeroShot(clip, classes), classes.kind, strength
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
        self.zero_shot.prepare(clip, None)
        self.pull.fill_(self.strength * len(self.classes.names) / len(support.labels))

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.zero_shot.turn(clip, classes)
        self.prompts = classes.kind

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.zero_shot.class_features(clip)                                         # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        assert x.unprojected is not None
        projected = F.normalize(x.unprojected @ self.projection + self.bias, dim=-1)       # (b, d)
        return self.zero_shot.logits(Features(projected), class_features)                  # (b, c)

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        pulled = self.pull * (self.projection - self.start).square().sum()
        return super().loss(x, y, clip, label_smoothing=label_smoothing) + pulled
