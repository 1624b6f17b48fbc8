"""Sets of classes that hold the true one for a promised share of images: split conformal prediction.

A score says how badly a class fits an image. The scores of the true classes of held-out images are the yardstick: a set
holds every class that fits no worse than a quantile of them. If the held-out images are drawn as the new ones are, and
chose nothing else, the set holds the true class with at least the asked chance (Vovk et al., 2005; Sadinle et al.,
arXiv:1609.00451). Nothing is drawn at random: equal images have equal sets, and more is held than was promised.

Letters: `n` images, `c` classes.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

SetScore = Literal["lac", "aps", "raps"]
SET_SCORES: tuple[SetScore, ...] = get_args(SetScore)
PENALTY, FREE = 0.1, 1                   # of RAPS: for each class beyond the first `FREE`; chosen by nothing


def misfit(name: SetScore, probabilities: Tensor) -> Tensor:
    """(n, c) how badly each class fits, from probabilities (n, c).

    `lac`: 1 - its probability (least ambiguous sets, arXiv:1609.00451). `aps`: the probability of all classes at least
    as probable, its own included (adaptive sets, arXiv:2006.02544). `raps`: that plus a penalty for its rank
    (arXiv:2009.14193).
    """
    chances = probabilities.double()
    if name == "lac":
        return 1 - chances
    ordered, order = chances.sort(dim=1, descending=True, stable=True)
    mass = ordered.cumsum(1)
    if name == "raps":
        mass = mass + PENALTY * (torch.arange(1, chances.shape[1] + 1) - FREE).clamp_min(0)
    return torch.empty_like(mass).scatter_(1, order, mass)


def quantile(held_out: Tensor, coverage: float) -> float:
    """The misfit up to which classes are held, of the misfits of the true classes of held-out images (n,).

    The k-th lowest, k = ceil(coverage (n + 1)). With too few images for the coverage (k > n) it is infinite: all
    classes are held, the only set that keeps the promise.
    """
    rank = math.ceil(coverage * (len(held_out) + 1) - 1e-9)
    return held_out.double().sort().values[rank - 1].item() if rank <= len(held_out) else math.inf


def sets(misfits: Tensor, limit: float) -> Tensor:
    """(n, c) whether a class is held. The class that fits best is always held: an empty set helps nobody."""
    best = misfits == misfits.amin(1, keepdim=True)
    first = best & (best.cumsum(1) == 1)
    return (misfits <= limit) | first


def coverage_table(held: Tensor, labels: Tensor) -> dict[str, float]:
    """{coverage: share of images whose set holds their class, set_size: mean number of classes, worst_class: the
    coverage of the class that has the lowest}.
    """
    hits = held.gather(1, labels[:, None])[:, 0].double()
    by_class = [hits[labels == label].mean().item() for label in labels.unique()]
    size = held.sum(1).double().mean().item()
    return {"coverage": hits.mean().item(), "set_size": size, "worst_class": min(by_class)}
