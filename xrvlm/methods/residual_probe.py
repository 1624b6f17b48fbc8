"""Residual probe (ours): zero-shot logits plus a linear layer, initialised with zeros.

Related to TaskRes (Yu et al., CVPR 2023, arXiv:2211.10277), whose residual of the class features is such a layer, and
to LP++ (Huang et al., CVPR 2024, arXiv:2404.02285), which blends a linear probe with the class features.
"""

from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.methods.base import Recipe
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText


class ResidualProbe(OnZeroShot):
    """`logits = zero-shot + W x + b` on the pooled feature x of unit norm; W and b are initialised with zeros."""

    recipe = Recipe("residual_probe", epochs=60, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
    label = "residual probe"
    splits_batches = True

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.residual = nn.Linear(clip.embed_dim, len(classes.names))
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.zero_shot.logits(x, class_features) + self.residual(x.pooled)          # (b, c)
