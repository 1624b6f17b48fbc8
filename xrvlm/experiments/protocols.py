"""Which classes a run learns and which it is measured on: all of them (`few_shot`), half and half (`base_to_new`), or
known ones, beside images that are of none of them (`open_set`).

A finished run can be scored on other data sets, too (`transfer_record`): of other classes, as CoCoOp's cross-data-set
table, or of some of its own in another domain, as ImageNet's variants.

Base-to-new generalisation is the protocol of CoCoOp (Zhou et al., CVPR 2022, arXiv:2203.05557), which MaPLe and most
after it report: train on the first half of the classes, then score each half among its own classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import SUBSETS, Dataset, Item, Split, with_test_set
from xrvlm.data.strangers import with_strangers
from xrvlm.errors import UserError, option
from xrvlm.evaluation.calibration import Scaling
from xrvlm.evaluation.metrics import harmonic_mean, predicted, write_scores
from xrvlm.evaluation.unknown import Score, figures
from xrvlm.experiments.record import append_record, read_record
from xrvlm.features.source import FeatureSource
from xrvlm.files import digest, write_json
from xrvlm.inference.calibration import HeldOut, check_positions, held_out_of, local_of
from xrvlm.methods.base import Method, probabilities
from xrvlm.text.class_text import ClassText

Protocol = Literal["few_shot", "base_to_new", "open_set"]
Among = Literal["run", "data"]           # which classes the scores of a finished run on other data are among
FEWEST_CLASSES = 4                       # so that both halves have something to tell apart


@dataclass(frozen=True)
class NewClasses:
    """The second half of the classes, which a base-to-new run is measured on and never trained on."""

    protocol: ClassVar[Protocol] = "base_to_new"
    needs: ClassVar[frozenset[Need]] = frozenset()       # what `score` reads beside what the method does
    saved: ClassVar[dict[str, Any]] = {}                 # for config.yaml
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
    def identity(self) -> dict[str, Any]:
        """What the result depends on beside the options of the base half."""
        return {"protocol": "base_to_new", "new": asdict(self.new_text), "all": asdict(self.all_text),
                "new_test": len(self.test)}

    def score(self, method: Method, clip: FrozenCLIP, base: FeatureSource, new: FeatureSource, folder: Path,
              base_top1: float) -> dict[str, float]:
        """{new_top1, all_top1, harmonic_mean}, from the test images of the two halves.

        New images are scored among the new classes, all images among all classes; `base_top1` is that of the base
        images among the base classes. The images' scores go to `folder`/predictions_new.csv and predictions_all.csv.
        """
        turned = _turned(method, clip, self.new_text)
        found = write_scores(folder, new.ids, new.labels, probabilities(turned, clip, new), self.new_text.names, "_new")
        turned = _turned(method, clip, self.all_text)
        scores = torch.cat([probabilities(turned, clip, source) for source in (base, new)])    # (n, c)
        labels = torch.cat([base.labels, new.labels + self.first])                             # (n,)
        whole = write_scores(folder, (*base.ids, *new.ids), labels, scores, self.all_text.names, "_all")
        return {"new_top1": found["top1"], "all_top1": whole["top1"],
                "harmonic_mean": harmonic_mean(base_top1, found["top1"])}


def _turned(method: Method, clip: FrozenCLIP, text: ClassText) -> Method:
    """The method for other classes; of a scaling only the temperature is of no class."""
    turned = method.for_classes(clip, text)
    turned.scaling = None if method.scaling is None else Scaling(method.scaling.temperature)
    return turned


@dataclass(frozen=True)
class OpenSet:
    """Images of no class that an open-set run knows, which it is measured on and never trained on."""

    protocol: ClassVar[Protocol] = "open_set"
    whole: Split                         # the known classes, then the others, of which there are test images alone
    first: int                           # the label of the first other class
    needs: frozenset[Need]               # positions, where the tower shows them
    known_by: Score                      # the score whose figures are the run's own
    folder: str | None                   # of strangers; None: the others are half of the data set's own classes

    @property
    def test(self) -> tuple[Item, ...]:
        return tuple(item for item in self.whole.test if item.label >= self.first)

    @property
    def identity(self) -> dict[str, Any]:
        return {"protocol": "open_set", "known_by": self.known_by, "unknown": len(self.test)}

    @property
    def saved(self) -> dict[str, Any]:
        return {"unknown": self.folder, "known_by": self.known_by}

    def score(self, method: Method, clip: FrozenCLIP, known: FeatureSource, unknown: FeatureSource, folder: Path,
              _top1: float) -> dict[str, float]:
        """{auroc, fpr95, aupr, oscr} of the run's score; those of all scores go to `folder`/open_set.json."""
        mine, others = (_with_positions(method, clip, source) for source in (known, unknown))
        right = predicted(mine.logits) == mine.labels
        found = {name: figures(scores, right, others.known(name)) for name, scores in mine.scores().items()}
        write_json(folder / "open_set.json", {"images": len(mine.labels), "unknown": len(others.labels), **found})
        return found[self.known_by]


def _with_positions(method: Method, clip: FrozenCLIP, source: FeatureSource) -> HeldOut:
    local = local_of(clip, method.classes, source) if clip.image_width else None
    return held_out_of(method, clip, source, local)


def in_parts(protocol: Protocol, dataset: Dataset, unknown: str | Path | None) -> tuple[Dataset, Split, Split]:
    """The data set, with strangers where there are any; all its classes; and those that the run knows.

    Raises UserError where the data set has too few classes, or the strangers are no strangers.
    """
    if unknown is not None and protocol != "open_set":
        raise UserError(f"{option('unknown', unknown)} is read with {option('protocol', 'open_set')} alone")
    whole = with_test_set(dataset.split)
    if protocol == "few_shot":
        return dataset, whole, whole
    if unknown is None:
        check_protocol(protocol, whole.classes)
        return dataset, whole, base_half(whole)
    joined, strangers = with_strangers(dataset, unknown)
    names = tuple(dict.fromkeys(name for _, name in strangers))
    label = {name: len(whole.classes) + index for index, name in enumerate(names)}
    test = (*whole.test, *(Item(image, label[name]) for image, name in strangers))
    return joined, replace(whole, classes=(*whole.classes, *names), test=test), whole


def beside(protocol: Protocol, whole: Split, split: Split, text: Callable[[Sequence[str]], ClassText], method: Method,
           clip: FrozenCLIP, known_by: Score, unknown: str | Path | None) -> NewClasses | OpenSet | None:
    """What a run that knows the classes of `split` is measured on beside their images."""
    if protocol == "base_to_new":
        method.check_open()
        return new_classes(whole, split, text)
    if protocol == "few_shot":
        return None
    check_positions(clip, known_by)
    needs: frozenset[Need] = frozenset({"tokens"}) if clip.image_width else frozenset()
    found = OpenSet(replace(whole, train=split.train, val=split.val), len(split.classes), needs, known_by,
                    None if unknown is None else str(unknown))
    if not found.test:
        raise UserError("the unknown classes have no image: give a class at least two, or a test set")
    return found


def base_half(split: Split) -> Split:
    """The first half of the classes in the order of their labels, rounded up, with their images alone."""
    count = (len(split.classes) + 1) // 2
    parts = {part: tuple(item for item in getattr(split, part) if item.label < count) for part in (*SUBSETS, "extra")}
    return Split(split.classes[:count], **parts)


def new_classes(whole: Split, base: Split, text: Callable[[Sequence[str]], ClassText]) -> NewClasses:
    """What is measured beside `base`, the half that is trained on, of the data set `whole`."""
    new = NewClasses(replace(whole, train=base.train, val=base.val), text(whole.classes[len(base.classes):]),
                     text(whole.classes))
    if not new.test:
        raise UserError("the new classes have no image left to test on: give a class at least two, or a test set")
    return new


def check_protocol(protocol: str, classes: Sequence[str]) -> None:
    """UserError for a protocol that so few classes cannot have."""
    if len(classes) < FEWEST_CLASSES:
        raise UserError(f"{option('protocol', protocol)} trains on half of the classes and scores the others: it needs "
                        f"{FEWEST_CLASSES} at least, found {len(classes)}")


def transfer_record(run: Path, folder: Path, data: Dataset, text: ClassText, summary: Mapping[str, float],
                    among: Among, classes: int, tested: str) -> None:
    """Write the report's line for the finished run in `run`, scored on `data`; the files of the scores are in `folder`.

    `text` is the ClassText of the scored model, `classes` the number that the images were scored among, `tested` a hash
    of the images. Writes nothing where `run` is a model without a record.
    """
    if not (run / "record.json").exists():
        return
    own = read_record(run / "record.json")
    known = len(text.names)
    more = among == "run" and known > len(data.split.classes)
    scored = [data.name, data.split.classes, asdict(text), more, tested]
    record = replace(
        own, data=data.name, world=data.world, protocol="transfer", run=folder.name, split=data.split.fingerprint,
        domains={},
        tested=tested[:16], images=int(summary["images"]), classes=classes,
        trained_on=f"{own.data}, among all its {known} classes" if more else own.data,
        metrics={name: value for name, value in summary.items() if name != "images"},
        setting=digest([own.setting, scored])[:16], series=digest([own.series, scored])[:16])
    write_json(folder / "record.json", asdict(record))
    append_record(folder.parent, record)
