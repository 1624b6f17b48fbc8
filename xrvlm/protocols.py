"""Which classes a run learns and which it is measured on: all of them (`few_shot`), or half and half (`base_to_new`).

Base-to-new generalisation is the protocol of CoCoOp (Zhou et al., CVPR 2022, arXiv:2203.05557), which MaPLe and most
after it report: train on the first half of the classes, then score each half among its own classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from xrvlm.backbone import FrozenCLIP
from xrvlm.data import PARTS, Item, Split
from xrvlm.errors import UserError, unknown
from xrvlm.evaluation import probabilities
from xrvlm.features import FeatureSource
from xrvlm.method import Method
from xrvlm.metrics import harmonic_mean
from xrvlm.records import write_scores
from xrvlm.text import ClassText

Protocol = Literal["few_shot", "base_to_new"]
FEWEST_CLASSES = 4                       # so that both halves have something to tell apart


@dataclass(frozen=True)
class NewClasses:
    """The second half of the classes, which a base-to-new run is measured on and never trained on."""

    whole: Split                         # all classes; train and val of the base classes alone, test of both halves
    new_text: ClassText
    all_text: ClassText

    @property
    def first(self) -> int:
        """The label of the first new class: how many base classes there are."""
        return len(self.all_text.names) - len(self.new_text.names)

    @property
    def test(self) -> tuple[Item, ...]:
        """The test images of the new classes, labelled from 0."""
        return tuple(replace(item, label=item.label - self.first) for item in self.whole.test
                     if item.label >= self.first)

    @property
    def setting(self) -> dict[str, Any]:
        """What the result depends on beside the base half's own setting."""
        return {"protocol": "base_to_new", "new": asdict(self.new_text), "all": asdict(self.all_text),
                "new_test": len(self.test)}

    def score(self, method: Method, clip: FrozenCLIP, base: FeatureSource, new: FeatureSource, folder: Path,
              base_top1: float) -> dict[str, float]:
        """{new_top1, all_top1, harmonic_mean}, from the test images of the two halves.

        New images are scored among the new classes, all images among all classes; `base_top1` is that of the base
        images among the base classes. The images' scores go to `folder`/predictions_new.csv and predictions_all.csv.
        """
        turned = method.for_classes(clip, self.new_text)
        found = write_scores(folder, new.ids, new.labels, probabilities(turned, clip, new), self.new_text.names, "_new")
        turned = method.for_classes(clip, self.all_text)
        scores = torch.cat([probabilities(turned, clip, source) for source in (base, new)])    # (n, c)
        labels = torch.cat([base.labels, new.labels + self.first])                             # (n,)
        whole = write_scores(folder, (*base.ids, *new.ids), labels, scores, self.all_text.names, "_all")
        return {"new_top1": found["top1"], "all_top1": whole["top1"],
                "harmonic_mean": harmonic_mean(base_top1, found["top1"])}


def base_half(split: Split) -> Split:
    """The first half of the classes in the order of their labels, rounded up, with their images alone."""
    count = (len(split.classes) + 1) // 2
    parts = {part: tuple(item for item in getattr(split, part) if item.label < count) for part in PARTS}
    return Split(split.classes[:count], **parts)


def new_classes(whole: Split, base: Split, text: Callable[[Sequence[str]], ClassText]) -> NewClasses:
    """What is measured beside `base`, the half that is trained on, of the data set `whole`."""
    new = NewClasses(replace(whole, train=base.train, val=base.val), text(whole.classes[len(base.classes):]),
                     text(whole.classes))
    if not new.test:
        raise UserError("the new classes have no image left to test on: give a class two at least, or a test part")
    return new


def check_protocol(protocol: str, classes: Sequence[str]) -> None:
    """UserError for a protocol that is unknown or that so few classes cannot have."""
    if protocol not in get_args(Protocol):
        raise unknown("protocol", protocol, get_args(Protocol))
    if protocol == "base_to_new" and len(classes) < FEWEST_CLASSES:
        raise UserError(f"protocol=base_to_new trains on half of the classes and scores the others: it needs "
                        f"{FEWEST_CLASSES} at least, found {len(classes)}")
