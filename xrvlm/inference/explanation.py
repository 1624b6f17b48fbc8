"""What is said of one image when it is explained, and the terms that a logit is made of."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Strong(NamedTuple):
    """One relation and what it adds to a logit; indices from 0."""

    prompt: int
    part: int
    label: int
    contribution: float


@dataclass(frozen=True)
class Attribution:
    """What a logit, or a difference of two, is made of: `value = baseline + contributions + added`, up to `gap`.

    Exact where the head is linear in its relations; else integrated gradients (Sundararajan et al., ICML 2017,
    arXiv:1703.01365) along the straight line from the head's baseline. For the perceptron heads that is where the
    perceptron's first normalisation gives zero: the mean relations of the training images.
    """

    contributions: Tensor                # (g, m, c) of each relation
    value: float
    baseline: float                      # what the head says where every relation is at its baseline
    added: float                         # what the method adds to the head's logits: a prior; 0 for most
    exact: bool

    @property
    def method(self) -> str:
        return "exact" if self.exact else "integrated gradients"

    @property
    def gap(self) -> float:
        """How far the terms are from `value`: rounding where exact, else the steps of the integral too."""
        return abs(self.contributions.sum().item() + self.baseline + self.added - self.value)

    @property
    def by_part(self) -> Tensor:
        """(g, m): of the relations of each part and prompt with all classes together."""
        return self.contributions.sum(dim=-1)

    def strongest(self, count: int) -> list[Strong]:
        """The relations that move the value most, in either direction; those that do not move it are left out."""
        moving = max(1, int(self.contributions.count_nonzero()))
        order = self.contributions.flatten().abs().topk(min(count, moving)).indices
        prompts, parts, labels = (index.tolist() for index in torch.unravel_index(order, self.contributions.shape))
        return [Strong(prompt, part, label, self.contributions[prompt, part, label].item())
                for prompt, part, label in zip(prompts, parts, labels, strict=True)]


@dataclass(frozen=True)
class Explanation:
    """One image; tensors on the CPU."""

    photo: Image.Image                   # what the tower saw
    maps: Tensor                         # (m, h, w) weights of the patches or cells, without the class token; of a word
                                         # its cosine with each, less the lowest
    class_token: Tensor                  # (m,) share of a map's weight that lies on the class token, 0..1
    dead: Tensor                         # (m,) bool: the map is zero everywhere
    probabilities: Tensor                # (c,)
    predicted: str
    relations: Tensor                    # (g, m, c) as the head has them; of words, what they add to each logit
    logit: Attribution                   # of the predicted class
    pooled: Tensor                       # (d,) the tower's, of unit norm: see inference/nearest.py
    against: str | None = None
    margin: Attribution | None = None    # of logit[predicted] - logit[against]
    windows: Tensor | None = None        # (k, 4) of a second look: left, top, right, bottom, as shares of a side
    words: tuple[str, ...] = ()          # the m of a method that compares words: those of the predicted class, then
                                         # those of `against`

    @property
    def overlap(self) -> float:
        return overlap(self.maps).item()


def overlap(maps: Tensor) -> Tensor:
    """(...) how much the parts of an image look at the same places: the mean cosine similarity of the maps
    (..., m, h, w), over all pairs of parts that are not dead. 1 where all are alike, 0 where no two touch, nan where
    fewer than two live.
    """
    rows = F.normalize(maps.float().flatten(-2), dim=-1)                                   # (..., m, h * w)
    pairs = (rows @ rows.mT).triu(1).sum(dim=(-2, -1))                                     # (...)
    live = (rows != 0).any(dim=-1).sum(dim=-1)                                             # (...)
    return torch.where(live > 1, pairs / (live * (live - 1) / 2), torch.nan)
