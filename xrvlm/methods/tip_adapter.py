"""Tip-Adapter (Zhang et al., ECCV 2022, arXiv:2111.03930): a key-value cache over the training images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Recipe
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling
from xrvlm.methods.memory import nearness
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

# the recipe of Tip-Adapter-F: the paper's, with the authors' eps and a cosine by step
FINE_TUNING = Recipe("tip_adapter_f", epochs=20, batch_size=256, optimizer="adamw", learning_rate=1e-3,
                     weight_decay=0.01, warmup_epochs=0, by_step=True, eps=1e-4)


class TipAdapter(OnZeroShot):
    """Zero-shot logits plus a vote of the training images, weighted by similarity.

    `logits = zero-shot + alpha * exp(-beta * (1 - x K^T)) V`: keys K are the pooled features of the training images in
    the evaluation view, V their one-hot labels. alpha = 1 and beta = 5.5 are the paper's initial values for all data
    sets; the paper searches both on each data set, which is not done here. The settings that the authors ship have
    beta = 1 and an alpha for each data set, and their keys are means over ten augmented views.

    Args:
        alpha: weight of the vote.
        beta: sharpness: how fast the weight of a training image falls with its distance.
        inputs, scaling: the image feature of the vote, see `ImageInputs`; the paper's is the pooled one.
        fit_prior: weight the zero-shot logits by what they are worth on the training images; the paper does not.
        trainable: Tip-Adapter-F: the keys are trained, initialised with the features of the images.
    """

    recipe, label = TRAINING_FREE, "Tip-Adapter"
    revision = 3                         # 2: of Tip-Adapter-F, eps and the cosine by step; 3: as of `ImageInputs`
    splits_batches = True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 1.0, beta: float = 5.5,
                 fit_prior: bool = False, inputs: Inputs = "pooled", scaling: Scaling = "none",
                 trainable: bool = False):
        super().__init__(clip, classes, fit_prior=fit_prior)
        self.inputs = ImageInputs(clip, inputs, scaling)
        self.needs = self.inputs.needs
        if not alpha >= 0 or not beta > 0:
            raise UserError(f"{option('method.alpha')} must be at least 0 and {option('method.beta')} above 0, found "
                            f"{alpha} and {beta}")
        self.alpha, self.beta = alpha, beta
        if trainable:
            self.recipe, self.label = FINE_TUNING, "Tip-Adapter-F"
        self.keys = nn.Parameter(torch.zeros(0, self.inputs.width), requires_grad=trainable)  # (n, f) after `prepare`
        self.votes: Tensor
        self.register_buffer("votes", torch.zeros(0, len(classes.names)))                  # (n, c) after `prepare`
        self.register_load_state_dict_pre_hook(_allocate)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        keys, _ = self.inputs.fit(support)                                                 # (n, f)
        self.keys.data = F.normalize(keys, dim=-1).to(self.keys)
        self.votes = F.one_hot(support.labels, self.votes.shape[1]).to(self.votes)

    @property
    def learned_parameters(self) -> int:
        # a cache holds the images, nothing is fitted
        return self.fit_prior + (self.keys.numel() if self.keys.requires_grad else 0)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        affinity = self.inputs(x) @ self.keys.T                                            # (b, n)
        vote = nearness(affinity, self.beta) @ self.votes                                  # (b, c)
        return self.prior(x, class_features) + self.alpha * vote


def _allocate(method: TipAdapter, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the cache the size that it has in the saved model."""
    if f"{prefix}keys" in state and f"{prefix}votes" in state:
        method.keys.data = method.keys.new_empty(state[f"{prefix}keys"].shape)
        method.votes = method.votes.new_empty(state[f"{prefix}votes"].shape)
