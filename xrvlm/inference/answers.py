"""What a model says of images beyond probabilities: unknown or not, a set of classes, the deepest node that is sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from xrvlm.backbones.base import Need
from xrvlm.errors import UserError, check_fields, option
from xrvlm.evaluation.conformal import SetScore, misfit, sets
from xrvlm.evaluation.hierarchy import Hierarchy
from xrvlm.evaluation.unknown import UNKNOWN, Score, largest_of_positions, score
from xrvlm.inference.calibration import Calibration, check_share
from xrvlm.inference.classifier import Classifier
from xrvlm.text.fixed_prompts import ensemble


@dataclass(frozen=True)
class Asked:
    """What `predict` is to say.

    Args:
        known: the share of images of the model's classes that are not to be called unknown; None: no image is. Read
            where the model is calibrated.
        known_by: the score that tells; None: the one that the model was calibrated for.
        coverage: the share of images whose set holds their class; None: no sets.
        sets: the score that makes the sets.
        certainty: the probability that a node of the hierarchy must have to be named; None: none is.
    """

    known: float | None = 0.95
    known_by: Score | None = None
    coverage: float | None = None
    sets: SetScore = "lac"
    certainty: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("known", "coverage", "certainty"):
            if (value := getattr(self, name)) is not None:
                check_share(name, value)
        if self.sets != "lac" and self.coverage is None:
            raise UserError(f"{option('sets', self.sets)} is not read without {option('coverage')}: add "
                            f"{option('coverage', 0.9)}")
        if self.known_by is not None and self.known is None:
            raise UserError(f"{option('known_by', self.known_by)} is not read with {option('known', None)}: leave one "
                            "of them out")


@dataclass(frozen=True)
class Answers:
    """Of b images, on the CPU; None where it was not asked for."""

    chances: Tensor                      # (b, c)
    known: Tensor | None = None          # (b,) how much each looks like one of the classes
    unknown: Tensor | None = None        # (b,) whether that is too little
    held: Tensor | None = None           # (b, c) whether the class is in the set
    node: Tensor | None = None           # (b,) of `Answering.tree.nodes`; -1 where not even a topmost one is sure
    certainty: Tensor | None = None      # (b,) its probability


class Answering:
    """A model that is asked. UserError where it cannot answer: it is not calibrated, or has no hierarchy."""

    def __init__(self, classifier: Classifier, asked: Asked):
        self.classifier, self.asked = classifier, asked
        calibration, of_others = classifier.calibration, classifier.header.calibration is not None
        for name in ("coverage", "known_by", "known"):
            if getattr(asked, name) not in (None, Asked.known) and calibration is None:
                why = "its calibration is of the classes that it was trained on: leave classes= out" if of_others else \
                    f"it is not calibrated: adapt with {option('calibrate', 'folds')}"
                raise UserError(f"the model cannot say {option(name, getattr(asked, name))}, {why}")
        self.calibration: Calibration | None = calibration
        self.threshold = self.limit = None
        if calibration is not None and asked.known is not None:
            if UNKNOWN in classifier.names:
                raise UserError(f"a class is called {UNKNOWN!r}, which is also what an image of no class is called: "
                                f"{option('known', None)} calls no image so")
            self.threshold = calibration.threshold(self.known_by, asked.known)
        if calibration is not None and asked.coverage is not None:
            self.limit = calibration.limit(asked.sets, asked.coverage)
        if asked.certainty is not None and self.tree is None:
            raise UserError(f"the model has no hierarchy, which {option('certainty')} reads: adapt with "
                            f"{option('data.hierarchy', 'FILE')}")

    @property
    def plain(self) -> bool:
        """Whether probabilities are all that is said."""
        return self.threshold is None and self.limit is None and self.asked.certainty is None

    @property
    def known_by(self) -> Score:
        assert self.calibration is not None, "see __init__"
        return self.asked.known_by or self.calibration.header.known_by     # pyright: ignore[reportReturnType]

    @cached_property
    def tree(self) -> Hierarchy | None:
        parents = self.classifier.header.hierarchy
        return None if parents is None else Hierarchy(self.classifier.names, parents)

    @cached_property
    def _names(self) -> Tensor:
        return ensemble(self.classifier.clip, self.classifier.header.classes)              # (c, d)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answers:
        """Of images (b, 3, s, s) as the tower's evaluation transform makes them."""
        clip, method = self.classifier.clip, self.classifier.method
        by_positions = self.threshold is not None and self.known_by == "gl_mcm"
        needs: frozenset[Need] = method.needs | frozenset[Need]({"tokens"} if by_positions else ())
        x = clip.encode_image(images.to(clip.device), needs)
        if self.calibration is None:         # then only a node can have been asked for
            chances = logits = self.classifier.from_features(x)
        else:
            logits = method.logits(x, self.classifier.class_features).cpu()
            chances = self.classifier.checked(self.calibration.header.scaling(logits).softmax(1))
        known = unknown = held = node = certainty = None
        if self.threshold is not None:
            local = largest_of_positions(x.tokens, self._names, clip.logit_scale).cpu() \
                if by_positions and x.tokens is not None else None
            known = score(self.known_by, logits, local).double()
            unknown = known < self.threshold
        if self.limit is not None:
            held = sets(misfit(self.asked.sets, logits.double().softmax(1)), self.limit)
            held[torch.arange(len(held)), chances.argmax(1)] = True      # a vector scaling may prefer another class
        if self.tree is not None and self.asked.certainty is not None:
            node, certainty = self.tree.deepest(chances, self.asked.certainty)
        return Answers(chances, known, unknown, held, node, certainty)

    def said(self, answers: Answers, row: int, order: Sequence[int]) -> dict[str, Any]:
        """The fields of the prediction of image `row`, whose classes stand in `order`, the most probable first."""
        found: dict[str, Any] = {}
        if answers.known is not None and answers.unknown is not None:
            found |= {"known": answers.known[row].item(), "unknown": bool(answers.unknown[row])}
        if answers.held is not None:
            names, held = self.classifier.names, answers.held[row].tolist()
            found["held"] = tuple(names[index] for index in order if held[index])
        if answers.node is not None and answers.certainty is not None and self.tree is not None:
            index = int(answers.node[row])
            found["taxon"] = (self.tree.nodes[index] if index >= 0 else "", answers.certainty[row].item())
        return found
