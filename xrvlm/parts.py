"""Unified attention of XR-VLM (arXiv:2503.07075): where the parts of an image are, and what stands there."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartPooling(nn.Module):
    """m part features of an image: attention maps from an earlier block pool the last block's projected positions.

    One more map than parts is learned; the last one takes the background and is dropped. `live`: the maps are the
    attention itself, without the paper's normalisation and ReLU behind it, which can leave a map zero everywhere.
    """

    def __init__(self, image_width: int, image_parts: int, *, live: bool = False):
        super().__init__()
        self.attend_norm = nn.BatchNorm1d(image_width)
        self.attend = nn.Linear(image_width, image_parts + 1, bias=False)
        self.map_norm = None if live else nn.BatchNorm1d(image_parts + 1)

    def maps(self, mid_tokens: Tensor) -> Tensor:
        """(b, m + 1, p) non-negative weights of the positions, from `mid_tokens` (b, p, e)."""
        batch, positions, _ = mid_tokens.shape
        x = self.attend_norm(mid_tokens.flatten(0, 1)).unflatten(0, (batch, positions))    # (b, p, e)
        attention = self.attend(x).softmax(dim=1)                                          # (b, p, m + 1)
        if self.map_norm is None:
            return attention.transpose(1, 2)                                               # (b, m + 1, p)
        maps = self.map_norm(attention.flatten(0, 1)).unflatten(0, (batch, positions))     # (b, p, m + 1)
        return F.relu(maps).transpose(1, 2)                                                # (b, m + 1, p)

    def forward(self, mid_tokens: Tensor, tokens: Tensor) -> Tensor:
        """(b, m, d) part features, from `mid_tokens` (b, p, e) and `tokens` (b, p, d)."""
        pooled = self.maps(mid_tokens) @ tokens                                            # (b, m + 1, d)
        rooted = pooled.sign() * torch.sqrt(pooled.abs() + 1e-6)                           # (b, m + 1, d)
        scaled = F.normalize(rooted.flatten(1), dim=1).view_as(rooted)     # one norm for all the parts of an image
        return scaled[:, :-1]                                                              # (b, m, d)


def grid(maps: Tensor) -> Tensor:
    """(..., h, w) from maps (..., p) of a square image; a class token, if any, stands before the grid and is left out.
    """
    side = math.isqrt(maps.shape[-1])
    return maps[..., -side * side:].unflatten(-1, (side, side))
