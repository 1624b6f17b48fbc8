"""Probabilities that mean what they say: scalings of logits, fitted to labelled images that the model has not learned.

Temperature scaling divides all logits by one number, vector scaling multiplies and shifts the logits of each class by
numbers of its own (Guo et al., ICML 2017, arXiv:1706.04599). A temperature changes no prediction; a vector may.

Letters: `n` images, `c` classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.errors import UserError, option

COLDEST, HOTTEST = 1e-3, 1e3             # limits of the temperature
VECTOR_PENALTY = 0.1                     # mean squared distance of a vector scaling from the temperature it starts at


@dataclass(frozen=True)
class Scaling:
    """logits / temperature, then, of a vector scaling, `* weight + bias`, both (c,)."""

    temperature: float = 1.0
    weight: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()

    def __call__(self, logits: Tensor, among: Sequence[int] | None = None) -> Tensor:
        """(b, c) -> (b, c); `among`: the classes that the columns of `logits` are, None: all."""
        scaled = logits / self.temperature
        if not self.weight:
            return scaled
        weight, bias = (scaled.new_tensor(each) for each in (self.weight, self.bias))
        return scaled * weight + bias if among is None else scaled * weight[list(among)] + bias[list(among)]


def fit_temperature(logits: Tensor, labels: Tensor) -> Scaling:
    """The temperature of the least negative log-likelihood on `logits` (n, c) and `labels` (n,), to 1e-6 of itself.

    One further image counts as of every class alike (Platt's rule): where all of a few images are labelled right, the
    next ones need not be. The loss is convex in 1 / temperature: its slope is looked at in halves.
    """
    logits, share = logits.double(), 1 / (len(labels) + 1)
    truth = (1 - share) * logits.gather(1, labels[:, None])[:, 0] + share * logits.mean(1)                 # (n,)

    def slope(temperature: float) -> float:
        return (((logits / temperature).softmax(1) * logits).sum(1) - truth).mean().item()

    low, high = math.log(COLDEST), math.log(HOTTEST)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) < 0 else (middle, high)       # below 0: colder is better
    return Scaling(math.exp((low + high) / 2))


def fit_vector(logits: Tensor, labels: Tensor) -> Scaling:
    """A weight and a bias for each class, from the fitted temperature on, held near it by a penalty.

    Few images a class would otherwise be learned by heart. UserError where a class of `logits` has no image.
    """
    start = fit_temperature(logits, labels)
    scaled = logits.double() / start.temperature
    if missing := scaled.shape[1] - len(labels.unique()):
        raise UserError(f"{missing} of {scaled.shape[1]} classes have no held-out image, and a vector scaling fits each"
                        f" class to its own: use {option('scaling', 'temperature')}, or label more images")
    weight = torch.ones(scaled.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros_like(weight, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scaled * weight + bias, labels)
        loss = loss + VECTOR_PENALTY * ((weight - 1).square().mean() + bias.square().mean())
        loss.backward()
        return loss

    optimizer.step(closure)              # pyright: ignore[reportArgumentType]  (its stub wants a float)
    return Scaling(start.temperature, tuple(weight.tolist()), tuple(bias.tolist()))
