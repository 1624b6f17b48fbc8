"""What a method is: something that turns the features of a frozen CLIP into logits, and owns only what it learns."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.errors import UserError, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.text.class_text import ClassText

OPEN_METHODS = ("zero_shot, xr_vlm_plus, coop with a shared context, and xr_vlm with head per_class, "
                "per_class_diagonal or alignment and a shared context or part descriptions, as well as clip_adapter, "
                "cocoop, dclip, gallop, prolip, zpe, and plot with a shared context")
ClassFeatures = Any                      # a Tensor, but where every image has class features of its own


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


class Method(nn.Module, ABC):
    """One way to adapt a frozen tower. Subclasses are final; runtime objects are positional, options keyword-only.

    `needs` names the features it reads; `recipe` is how it is trained unless another is asked for. A method with
    `open_classes` can be turned, as it was trained, to classes that it has not seen; one that is closed says in
    `bound_by` what ties it to its classes, where that is not the method as a whole.
    """

    needs: frozenset[Need] = frozenset({"pooled"})
    learns: bool = True                              # from labelled images; False: without any
    # the loss is a mean over the rows of a batch, which meet in `distributed.BatchNorm` alone, and draws nothing: then
    # processes can share out a batch; without it one of them trains while the others wait
    splits_batches: ClassVar[bool] = False
    transductive: ClassVar[bool] = False             # sees the test images, without labels, in `transduce`
    open_classes: bool = False                       # `for_classes` turns it to other classes
    bound_by: str | None = None
    recipe: Recipe                                   # the class's own; an option may choose another
    label: str                                       # as tables show it
    head: str | None = None                          # which head, where a method has several
    prompts: str                                     # "names", "descriptions", "learned", "none"; a ClassPrompts' label

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        """Allocates only. What depends on data or on the text tower is made in `prepare`."""
        super().__init__()
        self.classes = classes

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        """Closed forms, data-dependent starts, text encoded once. Called once before training; skipped on load."""

    def transduce(self, clip: FrozenCLIP, unlabelled: Features, support: FeatureSource | None,
                  val: FeatureSource | None = None) -> None:
        """A transductive method's last step, behind `prepare` and training: all test images at once, in an order that
        tells nothing, without labels. Skipped on load.
        """
        raise NotImplementedError(f"{type(self).__name__} is not transductive, or has no `transduce`")

    @abstractmethod
    def class_features(self, clip: FrozenCLIP) -> ClassFeatures:
        """All that depends on the classes and on no image, (..., c, d) or of another width: computed once per
        evaluation and in every training step.

        Where every image has class features of its own: what `logits` makes them with (`cocoop.BoundPrompts`).
        """

    @abstractmethod
    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        """(b, c)"""

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> Self:
        """This method, as trained, for other classes: nothing is trained again, all that depends on text is made anew.

        The copy shares the learned tensors; the method itself stays as it is. Raises UserError where the method is
        closed, and where the text of `classes` lacks what it was trained with (such as its parts).
        """
        self.check_open()
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        turned = deepcopy(self, shared)      # modules of its own around the same tensors
        turned.turn(clip, classes)
        turned.classes = classes
        return turned

    @property
    def learned_parameters(self) -> int:
        """How many numbers the labelled images decide: what is trained, and what closed forms solve for."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_open(self) -> None:
        """UserError where the method is closed; it names the methods that are open."""
        if not self.open_classes:
            raise UserError(f"{self.bound_by or self.label} is bound to the {len(self.classes.names)} classes that it "
                            f"was trained on; {OPEN_METHODS} score new classes")

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        """Replace all that depends on the text of the classes; an open method's part of `for_classes`, on the copy.

        `self.classes` are still those before. Tensors are replaced, never changed in place: the original has them too.
        """
        raise NotImplementedError(f"{type(self).__name__} has open_classes and no `turn`")

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        """() cross-entropy of `logits` on the labels `y` (b,)."""
        return F.cross_entropy(self.logits(x, self.class_features(clip)), y, label_smoothing=label_smoothing)


@torch.no_grad()
def probabilities(method: Method, clip: FrozenCLIP, source: FeatureSource,
                  among: Sequence[int] | None = None) -> Tensor:
    """(n, c) on the CPU, float32, in the order of `source.ids`; `among`: of these classes alone, in their order."""
    method.eval()
    class_features = method.class_features(clip)
    rows = []
    for x, _ in source.in_order():
        logits = method.logits(x.to(clip.device), class_features)     # (b, c)
        rows.append((logits if among is None else logits[:, list(among)]).softmax(dim=1))
    return torch.cat(rows).cpu()         # once at the end: a GPU does not wait between batches
