"""One model from several: the mean of their weights, and batch statistics that fit it.

Over the last epochs of a run (Izmailov et al., UAI 2018, arXiv:1803.05407), and over runs from one start that differ
in their learning rate (Wortsman et al., ICML 2022, arXiv:2203.05482).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.distributed import Group, seeded
from xrvlm.methods.base import Method

State = dict[str, Tensor]


@dataclass
class Kept:
    """Weights of finished epochs from which the result is made."""

    best: State = field(default_factory=dict)        # of the epoch with the best top-1 on the validation images
    total: State = field(default_factory=dict)       # the sum of all weights that are averaged


def add(total: State, state: State, method: nn.Module) -> State:
    """`total` plus the trained tensors of `state`, in double precision, so that the mean of equal weights is exact."""
    learned = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    return {name: total.get(name, 0) + state[name].double() for name in learned}


def load_mean(method: nn.Module, total: State, count: int) -> None:
    """Set the trained tensors of `method` to the mean of `count` states; its other tensors stay."""
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(total[name] / count)


@torch.no_grad()
def reestimate(method: Method, clip: FrozenCLIP, batches: Iterable[tuple[int, Features, Tensor]], seed: int,
               group: Group) -> None:
    """Set the running statistics of batch normalisation to the mean over `batches`, without a step."""
    norms = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return
    method.train()
    with seeded(seed, "statistics"), group.together():
        _weigh(norms, 1.0)               # forget the statistics of training
        class_features, seen = method.class_features(clip), 0
        for rows, x, _ in batches:
            seen += rows
            _weigh(norms, rows / seen)   # the mean over all rows so far
            method.logits(x, class_features)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _weigh(norms: list[nn.modules.batchnorm._BatchNorm], share: float) -> None:
    for norm in norms:
        norm.momentum = share
