"""The interface of image parts, and the parts of XR-VLM+, which are clusters of positions. XR-VLM's are learned."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import Features

SOFTNESS = 0.16                          # temperature of the assignment, in squared distance per dimension
WHOLE = 2.0                              # length of the whole image's feature; that of all parts together is 1
ABSENT = 0.01                            # positions; a part with fewer counts as absent


class ImageParts(nn.Module, ABC):
    """m parts of an image."""

    whole_first: ClassVar[bool] = False  # the first part is the whole image

    @abstractmethod
    def part_maps(self, x: Features) -> Tensor:
        """(b, m, p) non-negative weights of the positions."""

    @abstractmethod
    def of(self, x: Features) -> Tensor:
        """(b, m, d) part features."""


class FoundParts(ImageParts):
    """The whole image, then soft clusters of positions: each position is assigned to the cluster centres near it.

    Call `start`, set `centres` and call `standardise` with training images, in this order; nothing here is trained.
    """

    whole_first = True
    mean: Tensor                         # (d,) of the positions of the training images
    deviation: Tensor
    centres: Tensor                      # (m, d) of standardised positions
    part_mean: Tensor                    # (m + 1, d)
    part_deviation: Tensor
    length: Tensor                       # (m + 1, 1)

    def __init__(self, embed_dim: int, image_parts: int):
        super().__init__()
        all_parts = image_parts + 1
        share = torch.full((all_parts, 1), (image_parts * embed_dim) ** -0.5)
        share[0] = WHOLE * embed_dim ** -0.5
        for name, value in (("mean", torch.zeros(embed_dim)), ("deviation", torch.ones(embed_dim)),
                            ("centres", torch.zeros(image_parts, embed_dim)),
                            ("part_mean", torch.zeros(all_parts, embed_dim)),
                            ("part_deviation", torch.ones(all_parts, embed_dim)), ("length", share)):
            self.register_buffer(name, value)

    def start(self, positions: Tensor) -> Tensor:
        """(n, d) the positions standardised; their mean and deviation are kept for all later ones."""
        self.mean.copy_(positions.mean(dim=0))
        self.deviation.copy_(positions.std(dim=0) + 1e-6)
        return (positions - self.mean) / self.deviation

    def standardise(self, parts: Tensor) -> None:
        """Standardise the part features (n, m + 1, d) that `of` returned for the training images.

        Each feature then has mean 0; the mean length of all parts of an image together is 1, that of the whole image
        `WHOLE`.
        """
        self.part_mean.copy_(parts.mean(dim=0))
        self.part_deviation.copy_((parts.std(dim=0) + 1e-6) / self.length)

    def part_maps(self, x: Features) -> Tensor:
        """(b, m + 1, p); the first map, of the whole image, is uniform.

        Zero on a class token, and near zero everywhere for a part that the image does not show.
        """
        assert x.tokens is not None
        maps = self._maps(x.tokens, self._standard(x.tokens))                              # (b, m, p)
        on_grid = (maps.sum(dim=1, keepdim=True) > 0).to(maps)                             # (b, 1, p)
        return torch.cat([on_grid / on_grid.sum(dim=2, keepdim=True), maps], dim=1)

    def of(self, x: Features) -> Tensor:
        """(b, m + 1, d)"""
        assert x.tokens is not None
        standard = self._standard(x.tokens)                                                # (b, p, d)
        parts = self._maps(x.tokens, standard) @ standard                                  # (b, m, d)
        return (torch.cat([x.pooled[:, None], parts], dim=1) - self.part_mean) / self.part_deviation

    def _standard(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) / self.deviation

    def _maps(self, tokens: Tensor, standard: Tensor) -> Tensor:
        nearness = 2 * standard @ self.centres.T - self.centres.square().sum(dim=1)        # (b, p, m)
        share = (nearness / (SOFTNESS * standard.shape[-1])).softmax(dim=-1)               # (b, p, m)
        before = tokens.shape[1] - patches(tokens).shape[1]
        share = share * (torch.arange(tokens.shape[1], device=tokens.device) >= before)[:, None]
        return (share / (share.sum(dim=1, keepdim=True) + ABSENT)).transpose(1, 2)


def patches(tokens: Tensor) -> Tensor:
    """(b, h * w, d) the positions of the grid, from (b, p, d); a class token before them is left out."""
    return tokens[:, -math.isqrt(tokens.shape[1]) ** 2:]


def grid(maps: Tensor) -> Tensor:
    """(..., h, w) from maps (..., p) of a square image; a class token before the grid is left out."""
    side = math.isqrt(maps.shape[-1])
    return maps[..., -side * side:].unflatten(-1, (side, side))
