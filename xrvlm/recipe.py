"""How a method is trained. Each method names its own recipe, one for all data sets."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from xrvlm.errors import UserError, unknown


@dataclass(frozen=True)
class Recipe:
    """Epochs, batches and optimiser. Linear warm-up over `warmup_epochs`, then cosine to zero, both per epoch.

    `name` stands in the record; `grad_clip` is the largest norm of a step's whole gradient, `None` for no clipping;
    `balanced` draws the classes equally often (with replacement) instead of every image once an epoch;
    `text_every` is how many batches share one pass of the language side, whose gradients over them make one step;
    `average_last` makes the result the mean of the weights after each of so many last epochs; `soup` trains from the
    same start at each of these multiples of the learning rate, and the result is the mean of all;
    `reestimate` takes the running statistics of batch normalisation anew at the end, in one pass over the training
    images, as it is done behind every mean.
    """

    name: str
    epochs: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 2e-3
    momentum: float = 0.9                # sgd only
    weight_decay: float = 1e-4
    warmup_epochs: int = 5
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    balanced: bool = False
    text_every: int = 1
    average_last: int = 0
    soup: tuple[float, ...] = ()
    reestimate: bool = False

    def __post_init__(self):
        if self.optimizer not in ("sgd", "adamw"):
            raise unknown("optimizer", self.optimizer, ("sgd", "adamw"))
        if self.epochs < 0 or self.batch_size < 2 or self.warmup_epochs < 0:
            raise UserError(f"recipe {self.name!r}: epochs and warmup_epochs must be at least 0 and batch_size at "
                            f"least 2, found {self.epochs}, {self.warmup_epochs} and {self.batch_size}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.label_smoothing < 1:
            raise UserError(f"recipe {self.name!r}: learning_rate must be above 0 and label_smoothing in [0, 1), "
                            f"found {self.learning_rate} and {self.label_smoothing}")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.momentum < 1:
            raise UserError(f"recipe {self.name!r}: weight_decay must be at least 0 and momentum in [0, 1), found "
                            f"{self.weight_decay} and {self.momentum}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise UserError(f"recipe {self.name!r}: grad_clip must be above 0 or null, found {self.grad_clip}")
        if self.text_every < 1 or not 0 <= self.average_last <= self.epochs:
            raise UserError(f"recipe {self.name!r}: text_every must be at least 1 and average_last from 0 to the "
                            f"{self.epochs} epochs, found {self.text_every} and {self.average_last}")
        if isinstance(self.soup, str | int | float) or not all(
                isinstance(rate, int | float) and 0 < rate < math.inf for rate in self.soup):
            raise UserError(f"recipe {self.name!r}: soup must be a list of multiples of the learning rate above 0, "
                            f"such as [0.5, 1, 2], found {self.soup}")
        object.__setattr__(self, "soup", tuple(float(rate) for rate in self.soup))    # a YAML list becomes a tuple

    @property
    def averaged(self) -> int:
        """How many states of the weights the result is the mean of."""
        return max(1, self.average_last) * max(1, len(self.soup))

    def rate(self, epoch: int) -> float:
        """The learning rate of `epoch`, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        learned = list(parameters)
        fused = True if all(parameter.is_cuda for parameter in learned) else None    # one kernel; None: torch's choice
        if self.optimizer == "sgd":
            return torch.optim.SGD(learned, self.learning_rate, momentum=self.momentum,
                                   weight_decay=self.weight_decay, fused=fused)
        return torch.optim.AdamW(learned, self.learning_rate, weight_decay=self.weight_decay, fused=fused)


TRAINING_FREE = Recipe("none", epochs=0)
# for any method: half of XR-VLM's epochs at twice its rate, ten batches to a pass of the language side
FAST = Recipe("fast", epochs=50, learning_rate=4e-3, text_every=10, reestimate=True)
# for any method: trains a head to the end, where the paper's SGD leaves it undertrained
ADAMW = Recipe("adamw", epochs=60, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
