"""RLA (Fahes et al., preprint 2024, arXiv:2410.05270): a linear map of the image feature, held near the identity."""

import torch
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.methods.base import Recipe
from xrvlm.methods.prolip import HeldMap
from xrvlm.text.class_text import ClassText


class RLA(HeldMap):
    """Zero-shot of the feature `x W` of unit norm, W (d, d) initialised with the identity and penalised for leaving it.

    The loss is `cross-entropy + lambda * ||W - I||_F^2` with lambda = strength / shots, shots the mean number of
    training images a class: ProLIP where the tower's own projection stays as it is. It reads the pooled feature alone,
    so that it works with any tower (SigLIP, MLP heads), and the map serves classes that it was not trained on.

    The fourth version of the paper has it beside ProLIP, as the regularised linear adapter; here it has no bias. We do
    not know the authors' learning rate, as their program has no licence. That of the recipe was set on a drawn world:
    from 1e-4 to 3e-3 the result is the same. Epochs, full batches, Adam and cosine are ProLIP's. On that world the
    paper's strength holds W too tightly: with 0.01 top-1 was 35 % instead of 25 % at 4 shots, 39 % instead of 30 % at
    16.

    Args:
        strength: of the penalty.
    """

    recipe = Recipe("rla", epochs=300, batch_size=100_000, optimizer="adamw", learning_rate=1e-3, weight_decay=0.0,
                    warmup_epochs=0)
    label = "RLA"
    splits_batches = False

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, strength: float = 1.0):
        super().__init__(clip, classes, torch.eye(clip.embed_dim), strength=strength)

    def mapped(self, x: Features) -> Tensor:
        return x.pooled @ self.projection                                                  # (b, d)
