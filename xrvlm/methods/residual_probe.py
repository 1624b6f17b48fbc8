"""Residual probe (ours): zero-shot logits plus a linear layer, initialised with zeros.

Related to TaskRes (Yu et al., CVPR 2023, arXiv:2211.10277), whose residual of the class features is such a layer, and
to LP++ (Huang et al., CVPR 2024, arXiv:2404.02285), which blends a linear probe with the class features.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Recipe
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText


class ResidualProbe(OnZeroShot):
    """`logits = w * zero-shot + W x + b`; W and b are initialised with zeros, x is the pooled feature unless asked for.

    Args:
        fit_prior: fit w to the training images, before W and b; False: w is 1.
        inputs, scaling: the image feature x, see `ImageInputs`.
    """

    recipe = Recipe("residual_probe", epochs=60, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
    label = "residual probe"
    splits_batches = True
    revision = 3                         # 2: w is fitted; 3: as of `ImageInputs`

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, fit_prior: bool = True, inputs: Inputs = "pooled",
                 scaling: Scaling = "none"):
        super().__init__(clip, classes, fit_prior=fit_prior)
        self.inputs = ImageInputs(clip, inputs, scaling)
        self.needs = self.inputs.needs
        self.residual = nn.Linear(self.inputs.width, len(classes.names))
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        super().prepare(clip, support, val)
        assert support is not None
        self.inputs.fit(support)

    @classmethod
    def options_of(cls, revision: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Revision 1 weighted nothing."""
        return {"fit_prior": False} | dict(options) if revision == 1 else dict(options)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.prior(x, class_features) + self.residual(self.inputs(x))                # (b, c)
