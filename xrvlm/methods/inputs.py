"""Which image feature a method reads, and how it is scaled."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.errors import UserError, option, unknown
from xrvlm.features.source import FeatureSource

Inputs = Literal["auto", "unprojected", "pooled", "pooled+mid"]
Scaling = Literal["auto", "root_l2", "l2", "standard", "none"]
NEEDS: dict[str, frozenset[Need]] = {
    "unprojected": frozenset({"pooled", "unprojected"}), "pooled": frozenset({"pooled"}),
    "pooled+mid": frozenset({"pooled", "mid_tokens"})}
ONE_SIDED = 0.05                         # negative part of the mean magnitude, below which features count as one-sided


class ImageInputs(nn.Module):
    """The image feature (b, f) that a method reads. Call `fit` with the training images before use.

    Args:
        inputs: `pooled`, in the joint space with the text, of unit length; `unprojected`, the tower's feature before
            the projection into that space; `pooled+mid`, the pooled feature and the mean over positions of the earlier
            block; `auto`, unprojected where the tower ends in a linear projection, else pooled.
        scaling: `l2`, each image's feature to unit length; `root_l2`, its signed square root to unit length;
            `standard`, each component to mean 0 and deviation 1 over the training images; `none`, as it is; `auto`,
            `root_l2` where the training images have hardly a negative component (a feature behind a ReLU, whose few
            large components the root tames), else `l2`. Of `pooled+mid` each of the two gets unit length by itself: the
            earlier block's numbers are far larger, and together they would hide the pooled feature.

    Raises:
        UserError: an unknown value, or the tower has no such feature.
    """

    rooted: Tensor                       # () whether the root is taken
    mean: Tensor                         # (f,) of the training images; these two with `standard` alone
    deviation: Tensor

    def __init__(self, clip: FrozenCLIP, inputs: Inputs = "auto", scaling: Scaling = "auto"):
        super().__init__()
        if inputs not in get_args(Inputs):
            raise unknown(option("method.inputs"), inputs, get_args(Inputs))
        if scaling not in get_args(Scaling):
            raise unknown(option("method.scaling"), scaling, get_args(Scaling))
        if inputs == "auto":
            inputs = "unprojected" if clip.unprojected_width else "pooled"
        if inputs == "unprojected" and not clip.unprojected_width:
            raise UserError(f"the image tower of {clip.name} ends in no linear projection, so it has no feature before "
                            f"one: use {option('method.inputs', 'pooled')} or {option('method.inputs', 'auto')}")
        self.inputs, self.scaling = inputs, scaling
        self.needs = NEEDS[inputs]
        self.widths = {"pooled": [clip.embed_dim], "pooled+mid": [clip.embed_dim, clip.image_width],
                       "unprojected": [clip.unprojected_width]}[inputs]
        self.width = sum(self.widths)
        if inputs == "pooled+mid":       # a model from before each was scaled by itself has none, and is refused
            self.register_buffer("widths_of_each", torch.tensor(self.widths))
        if scaling == "auto":
            self.register_buffer("rooted", torch.tensor(False))
        if scaling == "standard":
            self.register_buffer("mean", torch.zeros(self.width))
            self.register_buffer("deviation", torch.ones(self.width))

    def fit(self, support: FeatureSource) -> tuple[Tensor, Tensor]:
        """Take from the training images what the scaling needs; returns `of(support)`."""
        rows = self._rows(support)
        exact = rows.cpu().double()
        if self.scaling == "auto":
            self.rooted.fill_(bool(exact.clamp(max=0).abs().mean() < ONE_SIDED * exact.abs().mean()))
        if self.scaling == "standard":
            self.mean.copy_(exact.mean(dim=0))
            self.deviation.copy_(exact.std(dim=0, correction=0) + 1e-6)
        return self._scaled(rows).cpu().double(), support.labels.cpu()

    def of(self, source: FeatureSource) -> tuple[Tensor, Tensor]:
        """The features (n, f) of all images in order, on the CPU in double precision, and the labels (n,)."""
        return self._scaled(self._rows(source)).cpu().double(), source.labels.cpu()

    def forward(self, x: Features) -> Tensor:
        """(b, f)"""
        return self._scaled(self._chosen(x))

    def _rows(self, source: FeatureSource) -> Tensor:
        """(n, f) of all images in order, not scaled, where the buffers are."""
        device = next(self.buffers(), torch.empty(0)).device
        return torch.cat([self._chosen(x).to(device) for x, _ in source.in_order()])

    def _scaled(self, chosen: Tensor) -> Tensor:
        if self.scaling == "none":
            return chosen
        if self.scaling == "standard":
            return (chosen - self.mean) / self.deviation
        if self.scaling != "l2":
            root = chosen.abs().sqrt() * chosen.sign()
            chosen = root if self.scaling == "root_l2" else torch.where(self.rooted, root, chosen)
        return torch.cat([F.normalize(part, dim=1) for part in chosen.split(self.widths, dim=1)], dim=1)

    def _chosen(self, x: Features) -> Tensor:
        if self.inputs == "unprojected":
            assert x.unprojected is not None
            return x.unprojected                                                           # (b, f)
        if self.inputs == "pooled":
            return x.pooled                                                                # (b, d)
        assert x.mid_tokens is not None
        return torch.cat([x.pooled, x.mid_tokens.mean(dim=1)], dim=1)                      # (b, d + e)
