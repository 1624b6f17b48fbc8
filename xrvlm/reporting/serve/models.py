"""Models that are asked about photos one by one, and their answers as plain data."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.errors import UserError, option
from xrvlm.experiments.saved import SavedRun
from xrvlm.files import digest
from xrvlm.inference.answers import Answering, Answers, Asked
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.explain import check_explainable, explain, part_names, prompt_names
from xrvlm.inference.explanation import Explanation
from xrvlm.inference.nearest import Neighbour, TrainingImages
from xrvlm.reporting.plots.figures import overlaid, stretched
from xrvlm.views import evaluation_view

log = logging.getLogger(__name__)
SHOWN_PARTS = 3                          # that move the logit of the predicted class most


@dataclass(frozen=True)
class Part:
    """A part of the photo that moved the logit of the predicted class."""

    name: str
    contribution: float                  # of all its relations together
    strongest: str                       # the prompt of its strongest relation
    picture: Image.Image                 # where the part looks


@dataclass(frozen=True)
class Answer:
    """What a model says of a photo; None for what it was not asked, or cannot say."""

    prediction: str                      # a class, or "unknown"
    classes: tuple[tuple[str, float], ...]           # the most probable first
    calibrated: bool                     # whether the probabilities are
    held: tuple[str, ...] | None = None  # the set of classes
    node: tuple[str, float] | None = None            # the deepest node of the hierarchy that is sure; "" for none
    above: tuple[str, ...] = ()          # the nodes above the prediction, the nearest first, such as its genus
    domain: str | None = None            # of a joint model: the topmost of these; "" if unknown
    parts: tuple[Part, ...] = ()
    nearest: tuple[Neighbour, ...] = ()

    @property
    def row(self) -> dict[str, Any]:
        """The answer as JSON."""
        return {
            "prediction": self.prediction, "calibrated": self.calibrated,
            "classes": [{"class": name, "probability": chance} for name, chance in self.classes],
            "set": None if self.held is None else list(self.held),
            "node": self.node and {"name": self.node[0], "probability": self.node[1]},
            "above": list(self.above), **({} if self.domain is None else {"domain": self.domain}),
            "parts": [{"part": each.name, "contribution": each.contribution, "strongest": each.strongest}
                      for each in self.parts],
            "nearest": [each.row for each in self.nearest]}


class Model:
    """A run's model that answers. One photo at a time, of all models: callers of several threads wait for each other.

    Args:
        asked: what it is to say; sets and nodes are left out where the model cannot give them.
        topk: how many classes.
        nearest: how many training photos; none where the run's photos cannot be read.
    """

    _lock = threading.Lock()             # of all models: one answer at a time

    def __init__(self, classifier: Classifier, training: TrainingImages | None, asked: Asked, *, topk: int = 5,
                 nearest: int = 3):
        self.classifier, self.training, self.topk, self.nearest = classifier, training, topk, nearest
        if classifier.calibration is None:
            asked = replace(asked, known=Asked.known, known_by=None, coverage=None, sets="lac")
        if classifier.header.hierarchy is None:
            asked = replace(asked, certainty=None)
        self.answering = Answering(classifier, asked)

    @classmethod
    def close(cls) -> None:
        """Wait for the answer that is being made; no other is made after it, and the process can end."""
        cls._lock.acquire(timeout=60)

    @property
    def explains(self) -> bool:
        """Whether the method has parts or words to show."""
        try:
            check_explainable(self.classifier.method)
        except UserError:
            return False
        return True

    @property
    def about(self) -> str:
        """One line for people: the method, the classes, the tower, and what is known of the accuracy."""
        header = self.classifier.header
        top1 = header.metrics.get("top1")
        measured = "" if top1 is None else f", top-1 {top1:.1%} of its test images"
        return (f"{self.classifier.method.label} on {header.backbone.name}, {len(self.classifier.names)} classes"
                f"{measured}{'' if self.classifier.calibration else '; not calibrated'}")

    def answer(self, photo: Image.Image, *, parts: bool = False) -> Answer:
        """What the model says of an upright RGB `photo`; with `parts` also what decided, where the method has parts."""
        with self._lock, torch.no_grad():
            view = evaluation_view(photo, self.classifier.clip.transform)[None]
            answers = self.answering(view)
            found = self._said(answers)
            if self.training is not None and self.nearest:
                pooled = self.classifier.clip.encode_image(view.to(self.classifier.clip.device)).pooled
                found = replace(found, nearest=tuple(self.training.nearest(pooled, self.nearest)[0]))
        if parts and self.explains:
            with self._lock:
                (explanation,) = explain(self.classifier, [photo])
                found = replace(found, parts=tuple(self._parts(explanation)))
        return found

    def _said(self, answers: Answers) -> Answer:
        names, chances = self.classifier.names, answers.chances[0]
        order: list[int] = chances.argsort(descending=True, stable=True).tolist()
        said = self.answering.said(answers, 0, order)
        classes = tuple((names[index], chances[index].item()) for index in order[:self.topk])
        unknown, tree = said.get("unknown"), self.answering.tree
        above = () if unknown or tree is None else tuple(tree.path(classes[0][0])[1:])
        return Answer("unknown" if unknown else classes[0][0], classes, self.classifier.calibration is not None,
                      said.get("held"), said.get("taxon"), above,
                      "".join(above[-1:]) if self.classifier.header.joint else None)

    def _parts(self, explanation: Explanation) -> list[Part]:
        by_part: Tensor = explanation.logit.by_part                                            # (g, m)
        moved = by_part.abs().sum(dim=0).masked_fill(explanation.dead, -1.0)                   # (m,)
        prompts, names = prompt_names(self.classifier, explanation), part_names(self.classifier, explanation)
        heats, found = stretched(explanation.maps), []
        for index in moved.argsort(descending=True, stable=True)[:SHOWN_PARTS].tolist():
            if moved[index] > 0:
                strongest = prompts[int(by_part[:, index].abs().argmax())]
                found.append(Part(names[index], by_part[:, index].sum().item(), strongest,
                                  overlaid(explanation.photo, heats[index])))
        return found


def load_models(runs: Sequence[str | Path], asked: Asked, *, topk: int, nearest: int, device: DeviceName,
                precision: PrecisionName) -> dict[str, Model]:
    """{name: model} of finished runs; those of one tower share it. UserError where one cannot be loaded."""
    towers: dict[str, FrozenCLIP] = {}
    found: dict[str, Model] = {}
    for run in runs:
        saved = SavedRun(run)
        header = saved.header
        key = digest([asdict(header.backbone), header.precision])
        classifier = saved.classifier(towers.get(key), device=device, precision=precision)
        towers[key] = classifier.clip
        training = saved.training_images(classifier.clip) if nearest else None
        name = saved.home.name
        if name in found:
            raise UserError(f"two runs are called {name}: rename the folder of one of them")
        found[name] = Model(classifier, training, asked, topk=topk, nearest=nearest)
        log.info("%s: %s", name, found[name].about)
    if not found:
        raise UserError(f"{option('run')} names no run")
    return found


def photo_bytes(path: Path, name: str, most_bytes: int) -> bytes:
    """The bytes of an uploaded file; UserError, which says `name`, where they are more than `most_bytes`."""
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UserError(f"{name} is larger than {most_bytes / 1e6:g} MB: make it smaller")
    return data
