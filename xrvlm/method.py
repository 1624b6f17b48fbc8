"""What a method is: something that turns the features of a frozen CLIP into logits, and owns only what it learns."""

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbone import Features, FrozenCLIP, Need
from xrvlm.errors import UserError
from xrvlm.features import FeatureSource
from xrvlm.recipe import Recipe
from xrvlm.text import ClassText

OPEN_METHODS = ("zero_shot, xr_vlm_plus, coop with a shared context, and xr_vlm with head per_class, "
                "per_class_diagonal or alignment and a shared context or part descriptions, as well as clip_adapter, "
                "cocoop, dclip, gallop, prolip, zpe, and plot with a shared context")
ClassFeatures = Any                      # a Tensor, but where every image has class features of its own


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
