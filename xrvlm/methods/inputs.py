"""Which image feature a method reads, and how it is scaled."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.errors import UserError, option, unknown
from xrvlm.features.source import FeatureSource

Inputs = Literal["auto", "unprojected", "pooled", "pooled+mid", "second", "pooled+second", "unprojected+second"]
Scaling = Literal["auto", "root_l2", "l2", "standard", "none"]
NEED: dict[str, Need] = {"pooled": "pooled", "unprojected": "unprojected", "mid": "mid_tokens", "second": "second"}
ONE_SIDED = 0.05                         # negative part of the mean magnitude, below which features count as one-sided


class ImageInputs(nn.Module):
    """The image feature (b, f) that a method reads. Call `fit` with the training images before use.

    Args:
        inputs: `pooled`, in the joint space with the text, of unit length; `unprojected`, the tower's feature before
            the projection into that space; `pooled+mid`, the pooled feature and the mean over positions of the earlier
            block; `second`, the feature of the second tower or look, alone or beside one of the others; `auto`,
            unprojected where the tower ends in a linear projection, else pooled, with the second where there is one.
        scaling: `l2`, each image's feature to unit length; `root_l2`, its signed square root to unit length;
            `standard`, each component to mean 0 and deviation 1 over the training images; `none`, as it is; `auto`,
            `root_l2` where the training images have hardly a negative component (a feature behind a ReLU, whose few
            large components the root tames), else `l2`. Of two features each gets unit length by itself: an earlier
            block's numbers are far larger, and together they would hide the pooled feature.
        second: False: `auto` leaves the second tower out, for a method that reads it in its own way.

    Raises:
        UserError: an unknown value, or the tower has no such feature.
    """

    rooted: Tensor                       # () whether the root is taken; with a second tower for each feature, (2,)
    mean: Tensor                         # (f,) of the training images; these two with `standard` alone
    deviation: Tensor

    def __init__(self, clip: FrozenCLIP, inputs: Inputs = "auto", scaling: Scaling = "auto", *, second: bool = True):
        super().__init__()
        if inputs not in get_args(Inputs):
            raise unknown(option("method.inputs"), inputs, get_args(Inputs))
        if scaling not in get_args(Scaling):
            raise unknown(option("method.scaling"), scaling, get_args(Scaling))
        if inputs == "auto":
            chosen = ["unprojected" if clip.unprojected_width else "pooled"]
            chosen += ["second"] * bool(second and clip.second_width)
        else:
            chosen = inputs.split("+")
        if "unprojected" in chosen and not clip.unprojected_width:
            raise UserError(f"the image tower of {clip.name} ends in no linear projection, so it has no feature before "
                            f"one: use {option('method.inputs', 'pooled')} or {option('method.inputs', 'auto')}")
        if "second" in chosen and not clip.second_width:
            raise UserError(f"{option('method.inputs', inputs)} reads a second tower, and there is none: add one "
                            f"({option('second', 'photo')}, xrvlm.paired), or a second look as parts")
        self.inputs, self.scaling = "+".join(chosen), scaling
        self.needs: frozenset[Need] = frozenset({"pooled", *(NEED[name] for name in chosen)})
        widths = {"pooled": clip.embed_dim, "unprojected": clip.unprojected_width, "mid": clip.image_width,
                  "second": clip.second_width}
        self.widths = [widths[name] for name in chosen]
        self.width = sum(self.widths)
        if "mid" in chosen:              # a model from before each was scaled by itself has none, and is refused
            self.register_buffer("widths_of_each", torch.tensor(self.widths))
        if scaling == "auto":
            self.register_buffer("rooted", torch.tensor([False] * 2 if "second" in chosen[1:] else False))
        if scaling == "standard":
            self.register_buffer("mean", torch.zeros(self.width))
            self.register_buffer("deviation", torch.ones(self.width))

    @property
    def chosen(self) -> list[str]:
        """The names of the features, one after the other."""
        return self.inputs.split("+")

    def fit(self, support: FeatureSource) -> tuple[Tensor, Tensor]:
        """Take from the training images what the scaling needs; returns `of(support)`."""
        rows = self._rows(support)
        exact = rows.cpu().double()
        if self.scaling == "auto":
            parts = exact.split(self.widths, dim=1) if self.rooted.ndim else [exact]
            one_sided = [bool(part.clamp(max=0).abs().mean() < ONE_SIDED * part.abs().mean()) for part in parts]
            self.rooted.copy_(torch.tensor(one_sided if self.rooted.ndim else one_sided[0]))
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
        parts = list(chosen.split(self.widths, dim=1))
        if self.scaling != "l2":
            roots = [part.abs().sqrt() * part.sign() for part in parts]
            parts = roots if self.scaling == "root_l2" else [
                torch.where(taken, root, part)
                for taken, root, part in zip(self.rooted.expand(len(parts)), roots, parts, strict=True)]
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)

    def _chosen(self, x: Features) -> Tensor:
        found = [vars(x)[NEED[name]] for name in self.chosen]
        found = [value.mean(dim=1) if name == "mid" else value for name, value in zip(self.chosen, found, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)
