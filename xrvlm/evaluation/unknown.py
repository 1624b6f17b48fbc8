"""How much an image looks like one of the known classes: scores, the threshold, and figures of how well they part.

Every score is higher for what is known. Letters: `n` images, `c` classes, `p` positions.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Score = Literal["probability", "logit", "energy", "gl_mcm"]
SCORES: tuple[Score, ...] = get_args(Score)
UNKNOWN = "unknown"                      # what an image of no class is called


def score(name: Score, logits: Tensor, local: Tensor | None = None) -> Tensor:
    """(n,) of `logits` (n, c), as the method gives them, without any scaling.

    `probability`: the largest softmax (Hendrycks and Gimpel, arXiv:1610.02136; of a zero-shot model, MCM,
    arXiv:2211.13445). `logit`: the largest logit (arXiv:1911.11132). `energy`: the logarithm of the sum of their
    exponentials (Liu et al., arXiv:2010.03759). `gl_mcm`: the largest softmax plus that of any position, `local` (n,)
    (GL-MCM, Miyai et al., arXiv:2304.04521).
    """
    if name == "logit":
        return logits.amax(1)
    if name == "energy":
        return logits.logsumexp(1)
    largest = logits.softmax(1).amax(1)
    if name == "probability":
        return largest
    if local is None:
        raise ValueError("gl_mcm needs the probabilities of positions")
    return largest + local


def largest_of_positions(tokens: Tensor, class_features: Tensor, logit_scale: Tensor | float) -> Tensor:
    """(n,) the largest softmax of any position: `tokens` (n, p, d) against `class_features` (c, d), by cosine.

    The tower's own `logit_scale` stands where GL-MCM has 1, so that it weighs as much as a method's probability.
    """
    unit = torch.nn.functional.normalize
    return (logit_scale * unit(tokens, dim=-1) @ unit(class_features, dim=-1).T).softmax(-1).amax((1, 2))


def threshold(known: Tensor, share: float) -> float:
    """The score that at least `share` of new images of known classes reach, by their held-out scores `known` (n,).

    It is the k-th lowest of them, k = floor((1 - share) (n + 1)), by the argument of split conformal prediction. With
    too few images for the share (k = 0) every score reaches it.
    """
    rank = math.floor((1 - share) * (len(known) + 1) + 1e-9)
    return known.sort().values[rank - 1].item() if rank else -math.inf


def auroc(known: Tensor, unknown: Tensor) -> float:
    """The chance that a known image scores higher than an unknown one; equal scores count half. Both (n,)."""
    below, equal = _below(known, unknown)
    return ((below + equal / 2).sum() / (len(known) * len(unknown))).item()


def fpr_at(known: Tensor, unknown: Tensor, *, share: float = 0.95) -> float:
    """The share of unknown images that pass for known where `share` of the known images pass at least."""
    passed = math.ceil(share * len(known) - 1e-9)
    limit = known.sort(descending=True).values[passed - 1]
    return (unknown >= limit).double().mean().item()


def aupr(known: Tensor, unknown: Tensor) -> float:
    """The average precision of "known": the mean, over known images, of the share of known ones among all as high."""
    scores = torch.cat([known, unknown]).double()
    truth = torch.cat([torch.ones_like(known), torch.zeros_like(unknown)]).double()
    order = scores.argsort(descending=True, stable=True)
    hits, every = truth[order].cumsum(0), torch.arange(1, len(scores) + 1, dtype=torch.float64)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[order][1:] != scores[order][:-1]                       # equal scores are one step
    recall, precision = hits[last] / len(known), (hits / every)[last]
    return (recall.diff(prepend=recall.new_zeros(1)) * precision).sum().item()


def oscr(known: Tensor, right: Tensor, unknown: Tensor) -> float:
    """The area below the open-set classification rate: known images that pass and are labelled `right` (n,), over the
    share of unknown images that pass (Dhamija et al., arXiv:1811.04110). At most the accuracy.
    """
    below, equal = _below(known[right], unknown)
    return ((below + equal / 2).sum() / (len(known) * len(unknown))).item()


def figures(known: Tensor, right: Tensor, unknown: Tensor) -> dict[str, float]:
    """{auroc, fpr95, aupr, oscr} of one score on known and unknown images; `right`: the known ones labelled rightly."""
    return {"auroc": auroc(known, unknown), "fpr95": fpr_at(known, unknown), "aupr": aupr(known, unknown),
            "oscr": oscr(known, right, unknown)}


def _below(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """For each known image, how many unknown ones score lower, and how many as high; both (n,)."""
    ordered, known = unknown.double().sort().values, known.double().contiguous()
    below = torch.searchsorted(ordered, known)
    return below.double(), (torch.searchsorted(ordered, known, right=True) - below).double()
