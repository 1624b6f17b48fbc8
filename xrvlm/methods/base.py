"""The base class of all methods, which turn features of a frozen CLIP into logits, and the recipes to train them by."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.errors import UserError, check_fields, option, unknown
from xrvlm.evaluation.calibration import Scaling
from xrvlm.features.source import FeatureSource
from xrvlm.files import shipped, shipped_options
from xrvlm.text.class_text import ClassText

ClassFeatures = Any                      # a Tensor, except for CoCoOp, whose class features depend on the image
OWN = "own"                              # names the recipe that the class of a method has
CHANGED = " (changed)"                   # ends the name of a recipe whose values are not those of that name


@dataclass(frozen=True)
class Recipe:
    """Epochs, batches and optimiser. Warm-up over `warmup_epochs`, then half a cosine, per epoch unless `by_step`.

    Args:
        epochs: passes over the training images; 0 for a method that is not trained by gradient steps.
        batch_size: images a step.
        optimizer: `sgd` or `adamw`.
        learning_rate: its maximum, reached after the warm-up.
        momentum: of `sgd`.
        weight_decay: of either optimiser.
        warmup_epochs: epochs before the cosine.
        warmup_rate: learning rate of all of them, in a soup too; 0: it rises linearly.
        full_cosine: the cosine would reach zero `epochs` epochs after the warm-up, so that training ends before it
            does, as in programs that count it from the end of the warm-up: with few epochs well before. False: it
            reaches zero as training ends.
        by_step: after the warm-up the learning rate changes with every step, not with every epoch.
        eps: of `adamw`.
        grad_clip: maximum norm of the gradient over all parameters; None: no clipping.
        label_smoothing: of the cross-entropy.
        balanced: sample the classes with equal probability (with replacement) instead of each image once an epoch.
        text_every: batches that share one forward pass of the text tower; its gradients are summed over them and
            applied in one step.
        average_last: the result is the mean of the weights after each of this many last epochs; 0: the last weights.
        soup: train from the same start once for each of these multiples of the learning rate; the result is the mean.
        reestimate: after training, recompute the running statistics of batch normalisation in one pass over the
            training images. Always done after averaging.
    """

    name: str
    epochs: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: int = 5
    warmup_rate: float = 0.0
    full_cosine: bool = False
    by_step: bool = False
    eps: float = 1e-8
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    balanced: bool = False
    text_every: int = 1
    average_last: int = 0
    soup: tuple[float, ...] = ()
    reestimate: bool = False

    def __post_init__(self):
        check_fields(self, "recipe", but=("soup",))
        self._check("at least 0", epochs=self.epochs >= 0, warmup_epochs=self.warmup_epochs >= 0)
        self._check("at least 2", batch_size=self.batch_size >= 2)
        self._check("at least 1", text_every=self.text_every >= 1)
        self._check("above 0", learning_rate=0 < self.learning_rate < math.inf, eps=0 < self.eps < math.inf)
        self._check("at least 0", weight_decay=0 <= self.weight_decay < math.inf,
                    warmup_rate=0 <= self.warmup_rate < math.inf)
        self._check("in [0, 1)", label_smoothing=0 <= self.label_smoothing < 1, momentum=0 <= self.momentum < 1)
        self._check("above 0 or null", grad_clip=self.grad_clip is None or self.grad_clip > 0)
        self._check(f"from 0 to the {self.epochs} epochs", average_last=0 <= self.average_last <= self.epochs)
        self._check("a list of multiples of the learning rate above 0, such as [0.5, 1, 2]",
                    soup=_all_above_0(self.soup))
        object.__setattr__(self, "soup", tuple(float(rate) for rate in self.soup))    # a YAML list becomes a tuple

    def _check(self, wanted: str, **right: bool) -> None:
        for name, is_right in right.items():
            if not is_right:
                raise UserError(f"recipe {self.name!r}: {option(f'recipe.{name}')} must be {wanted}, found "
                                f"{getattr(self, name)!r}")

    def changed(self, **options: Any) -> "Recipe":
        """This recipe with those of `options` that are not None in place of its values; its name is then marked."""
        for name in options:
            if name not in vars(self):
                raise unknown("option", option(f"recipe.{name}"), [option(f"recipe.{field}") for field in vars(self)])
        new = replace(self, **{name: value for name, value in options.items() if value is not None})
        return self if new == self else replace(new, name=f"{self.name.removesuffix(CHANGED)}{CHANGED}")

    @property
    def averaged(self) -> int:
        """How many states of the weights are averaged to the result."""
        return max(1, self.average_last) * max(1, len(self.soup))

    def rate(self, epoch: int, share: float = 0.0) -> float:
        """The learning rate of `epoch`, counted from 0; with `by_step`, after this `share` of its steps."""
        time = epoch + share * self.by_step
        if time < self.warmup_epochs:
            return self.warmup_rate or self.learning_rate * (epoch + 1) / self.warmup_epochs
        whole = self.epochs if self.full_cosine else self.epochs - self.warmup_epochs
        progress = (time - self.warmup_epochs) / max(1, whole)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of `parameters` at the full learning rate."""
        learned = list(parameters)
        fused = True if all(parameter.is_cuda for parameter in learned) else None    # one kernel; None: torch's choice
        if self.optimizer == "sgd":
            return torch.optim.SGD(learned, self.learning_rate, momentum=self.momentum,
                                   weight_decay=self.weight_decay, fused=fused)
        return torch.optim.AdamW(learned, self.learning_rate, weight_decay=self.weight_decay, eps=self.eps,
                                 fused=fused)


def _all_above_0(rates: Any) -> bool:
    return not isinstance(rates, str | int | float) and all(
        isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates)


TRAINING_FREE = Recipe("none", epochs=0)


def recipe_named(name: str) -> Recipe:
    """The recipe for any method in conf/recipe/`name`.yaml. UserError, which lists them, for another name."""
    if name not in shipped("recipe"):
        raise unknown("recipe", name, shipped("recipe"))
    values = shipped_options("recipe", name)
    return Recipe(**{key: value for key, value in values.items() if not key.startswith("_")})


def chosen_recipe(own: Recipe, recipe: Recipe | str | None = None, options: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe to train a method by.

    Args:
        own: the method's own recipe, taken where `recipe` is None or "own".
        recipe: another recipe, or the name of one in conf/recipe.
        options: values in place of the recipe's; None keeps the recipe's.
    """
    if isinstance(recipe, str):
        recipe = own if recipe == OWN else recipe_named(recipe)
    return (recipe or own).changed(**(options or {}))


class Method(nn.Module, ABC):
    """One way to adapt a frozen tower. Tower and classes are positional arguments, hyper-parameters keyword-only.

    A subclass is registered by a file conf/method/<name>.yaml or by an entry point (xrvlm.methods.registry). The
    attributes below describe it; those that are not ClassVar may be set in `__init__` where an option decides.
    """

    needs: frozenset[Need] = frozenset({"pooled"})   # the features that `logits` reads
    learns: bool = True                              # False: uses no labelled image
    # True if the loss averages over rows, rows interact only through `BatchNorm` (xr_vlm/relations.py), and nothing is
    # random: then the processes of a run can share out a batch. False: one process trains, the others wait.
    splits_batches: ClassVar[bool] = False
    transductive: ClassVar[bool] = False             # reads the test images, without labels, in `transduce`
    # raised where a change alters the numbers of this method: runs from before are then neither finished nor resumed
    revision: ClassVar[int] = 1
    open_classes: bool = False                       # can score classes that it was not trained on: see `for_classes`
    opens_with: ClassVar[str | None] = None          # the options that make it open, in words, where it is not always
    bound_by: str | None = None                      # what ties a closed method to its classes; None: all of it
    scaling: Scaling | None = None                   # of the logits, of a calibrated model; no part of the training
    recipe: Recipe                                   # how it is trained unless another recipe is asked for
    label: str                                       # its name in tables
    head: str | None = None                          # its head, where a method has several
    prompts: str                                     # "names", "descriptions", "learned", "none"; a ClassPrompts' label

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        """Allocates parameters and buffers. What depends on images or on the text tower is computed in `prepare`.

        Raises:
            UserError: the method reads positions and the tower has none.
        """
        super().__init__()
        if {"tokens", "mid_tokens"} & type(self).needs and not clip.image_width:
            raise UserError(f"{clip.name} shows no positions: {self.registered_name()} needs another backbone, "
                            "methods on pooled features (zero_shot, linear_probe, coop) work with this one")
        self.classes = classes

    @classmethod
    def registered_name(cls) -> str:
        """The name in the registry; a method of this package is registered by the name of its module."""
        if cls.__module__.startswith("xrvlm.methods."):
            return cls.__module__.rpartition(".")[2]
        from xrvlm.methods.registry import name_of

        return name_of(cls)

    @classmethod
    def options_of(cls, revision: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a model that was saved at `revision`, where a later one fixed something as an option."""
        return dict(options)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        """Compute closed forms and data-dependent starts, encode text. Called once before training, not after loading.

        Args:
            support: the labelled training images; None where the method does not learn.
            val: validation images, where the run has any.
        """

    def transduce(self, clip: FrozenCLIP, unlabelled: Features, support: FeatureSource | None,
                  val: FeatureSource | None = None) -> None:
        """The last step of a transductive method, after `prepare` and training; not called after loading.

        `unlabelled` are the features of all test images, shuffled: their original order would leak labels.
        """
        raise NotImplementedError(f"{type(self).__name__} is not transductive, or has no `transduce`")

    def settle(self, trained: Any) -> None:
        """Before `prepare`: take over what `trained` chose there, such as a strength, for a fold of its images."""

    @abstractmethod
    def class_features(self, clip: FrozenCLIP) -> ClassFeatures:
        """What `logits` needs of the classes and what depends on no image: (..., c, d), or of another width.

        Made once per evaluation and in every step; a callable where it depends on the image (CoCoOp).
        """

    @abstractmethod
    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        """(b, c)"""

    def class_probabilities(self, x: Features, class_features: ClassFeatures,
                            among: Sequence[int] | None = None) -> Tensor:
        """(b, c) softmax of `logits`, scaled where the model is calibrated; `among`: over these classes, in order."""
        logits = self.logits(x, class_features)                                            # (b, c)
        logits = logits if among is None else logits[:, list(among)]
        return (logits if self.scaling is None else self.scaling(logits, among)).softmax(dim=1)

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> Self:
        """A copy of this trained method for other classes: nothing is trained again, the text is encoded again.

        The copy shares the learned tensors; this method does not change.

        Raises:
            UserError: the method is closed, or the text of `classes` lacks what it was trained with (such as parts).
        """
        self.check_open()
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        turned = deepcopy(self, shared)      # new modules around the same tensors
        turned.turn(clip, classes)
        turned.classes = classes
        return turned

    @property
    def learned_parameters(self) -> int:
        """How many numbers are fitted to the labelled images, by training or by a closed form."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_open(self) -> None:
        """UserError where the method is closed; it names the methods that are open."""
        if not self.open_classes:
            from xrvlm.methods.registry import open_methods

            raise UserError(f"{self.bound_by or self.label} is bound to the {len(self.classes.names)} classes that it "
                            f"was trained on; methods that score new classes: {'; '.join(open_methods())}")

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        """Recompute all that depends on the text of the classes. Called by `for_classes` on the copy.

        `self.classes` are still the classes before. Replace tensors, never change them in place: they are shared.
        """
        raise NotImplementedError(f"{type(self).__name__} has open_classes and no `turn`")

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        """() cross-entropy of `logits` on the labels `y` (b,)."""
        return F.cross_entropy(self.logits(x, self.class_features(clip)), y, label_smoothing=label_smoothing)


@torch.no_grad()
def probabilities(method: Method, clip: FrozenCLIP, source: FeatureSource,
                  among: Sequence[int] | None = None) -> Tensor:
    """Class probabilities of all images of `source`, each as the evaluation transform shows it.

    Args:
        among: indices of the classes to score; None: all.

    Returns:
        (n, c) on the CPU, float32, in the order of `source.ids`; c as long as `among`.
    """
    method.eval()
    class_features, device = method.class_features(clip), clip.device
    rows = [method.class_probabilities(x if x.pooled.device == device else x.to(device), class_features, among)
            for x, _ in source.in_order()]                               # each (b, c)
    return torch.cat(rows).cpu()         # once at the end: a GPU does not wait between batches
