"""A CLIP with the features of a second frozen tower beside its own (AMU-Tuning, CVPR 2024, arXiv:2404.08958; CaFo)."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from xrvlm.backbones.base import DeviceName, Features, FrozenCLIP, Need, PrecisionName
from xrvlm.backbones.composed.on_tower import OnTower, Shown
from xrvlm.backbones.composed.trunk import ImageTower
from xrvlm.backbones.registry import load_tower
from xrvlm.errors import UserError, typed


class PairedTower(OnTower):
    """`clip`, whose features are as they were, and `second`, whose feature methods read as `Features.second`.

    Of a second CLIP it is the feature before the projection where there is one, else the pooled one; it is not
    normalised. Both towers see the same part of a photo, framed as by the transform of `clip`, each with its own number
    of pixels and its own normalisation. The photo is prepared once, for the tower of more pixels; the other sees it
    resized. Where `clip` has at least as many pixels, it sees exactly what it sees alone; else its photo was resized
    twice, and its features are those of the tower alone up to that.

    Args:
        clip: the tower whose text side, positions and joint space methods use.
        second: another CLIP, or a tower without a text side (`load_timm_trunk`, `load_hf_trunk`).

    Raises:
        UserError: a tower has a second one already, or the two are on different devices.
    """

    def __init__(self, clip: FrozenCLIP, second: "FrozenCLIP | ImageTower"):
        super().__init__(clip)
        if clip.second_width or (isinstance(second, FrozenCLIP) and second.second_width):
            raise UserError(f"{clip.name} and {second.name}: a tower has one second tower or second look as further "
                            "features; pair towers that have none")
        if clip.device != second.device:
            raise UserError(f"{clip.name} is on {clip.device} and {second.name} on {second.device}: load both on one "
                            "device")
        self.second = second
        own, other = clip.transform, second.transform
        side = max(own.image_size, other.image_size)
        self.transform = own.scaled(side)
        self.shown, self.shown_second = (Shown(side, own, each).to(clip.device) for each in (own, other))
        self.second_need: Need = "pooled"
        self.second_width = second.embed_dim
        if second.unprojected_width:
            self.second_need, self.second_width = "unprojected", second.unprojected_width
        self.name = f"{clip.name} + {second.name}"
        self.fingerprint = sha256(f"{clip.fingerprint} {second.fingerprint} {second.precision}".encode()).hexdigest()
        if clip.loader is not None and second.loader is not None:
            self.loader = {"name": "pair", "options": {"first": clip.loader, "second": second.loader}}
        self.eval()

    def state_hash(self) -> str:
        return sha256(f"{self.clip.state_hash()} {self.second.state_hash()}".encode()).hexdigest()

    @torch.no_grad()
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        images = images.to(self.device)
        x = self.clip.encode_image(self.shown(images), frozenset(needs) - {"second"})
        if "second" not in needs:
            return x
        found = self.second.encode_image(self.shown_second(images), {"pooled", self.second_need})
        return replace(x, second=vars(found)[self.second_need])

    def windows(self, images: Tensor) -> Tensor | None:
        return self.clip.windows(self.shown(images.to(self.device)))


def load_pair(first: Mapping[str, Any], second: Mapping[str, Any], *, device: DeviceName = "auto",
              precision: PrecisionName = "auto") -> PairedTower:
    """Load both towers, each given as its `loader`, and pair them."""
    return PairedTower(*(load_tower(each, device=device, precision=precision) for each in (first, second)))


@typed
def paired(clip: FrozenCLIP, second: FrozenCLIP | ImageTower) -> FrozenCLIP:
    """`clip` with the features of `second` beside its own; see `PairedTower`."""
    return PairedTower(clip, second)
