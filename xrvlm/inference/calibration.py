"""What a model knows of itself from labelled images that it has not learned: kept in its file, read by every answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, option, unknown
from xrvlm.evaluation.calibration import Scaling, fit_temperature, fit_vector
from xrvlm.evaluation.conformal import SET_SCORES, SetScore, misfit, quantile
from xrvlm.evaluation.unknown import SCORES, Score, largest_of_positions, score, threshold
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import Method
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ensemble
from xrvlm.training.folds import logits_of

Calibrate = Literal["none", "folds", "val"]
ScalingKind = Literal["temperature", "vector"]
KNOWN, MISFIT = "calibration.known.", "calibration.misfit."      # prefixes of tensors in a model's file


@dataclass(frozen=True)
class HeldOut:
    """What a method says of n images that it has not learned."""

    logits: Tensor                       # (n, c) without any scaling
    labels: Tensor                       # (n,)
    local: Tensor | None = None          # (n,) the largest probability of any position, for GL-MCM

    def known(self, name: Score) -> Tensor:
        """(n,) how much each looks like one of the classes."""
        return score(name, self.logits, self.local)

    def scores(self) -> dict[Score, Tensor]:
        """`known` by each score that can be computed."""
        return {name: self.known(name) for name in SCORES if name != "gl_mcm" or self.local is not None}


@dataclass(frozen=True)
class CalibrationHeader:
    """What a model's header says of its calibration."""

    by: str                              # "folds" or "val"
    images: int
    scaling: Scaling
    known_by: str                        # the score by which `predict` says unknown

    @property
    def in_words(self) -> str:
        return f"{self.by}, {'vector' if self.scaling.weight else 'temperature'}"


@dataclass(frozen=True)
class Calibration:
    """The scaling of the logits, and what thresholds and sets are read from."""

    header: CalibrationHeader
    known: Mapping[str, Tensor]          # (n,) the score of every held-out image, by the name of the score
    misfits: Mapping[str, Tensor]        # (n,) how badly its true class fits, by the name of the score of sets

    @classmethod
    def of(cls, held_out: HeldOut, by: str, kind: ScalingKind = "temperature",
           known_by: Score = "energy") -> "Calibration":
        """Sets and thresholds are made of unscaled logits: the scaling is fitted to the very images that they count."""
        fit = fit_vector if kind == "vector" else fit_temperature
        chances, labels = held_out.logits.double().softmax(1), held_out.labels
        misfits = {name: misfit(name, chances).gather(1, labels[:, None])[:, 0] for name in SET_SCORES}
        header = CalibrationHeader(by, len(labels), fit(held_out.logits, labels), known_by)
        return cls(header, {name: value.double() for name, value in held_out.scores().items()}, misfits)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"{KNOWN}{name}": value for name, value in self.known.items()} | {
            f"{MISFIT}{name}": value for name, value in self.misfits.items()}

    @classmethod
    def read(cls, header: CalibrationHeader, tensors: dict[str, Tensor]) -> "Calibration":
        """Take what `tensors` wrote out of a file's tensors; ValueError where it is not what was written."""
        own = {name: tensors.pop(name) for name in tuple(tensors) if name.startswith((KNOWN, MISFIT))}
        if any(value.shape != (header.images,) or not value.isfinite().all() for value in own.values()):
            raise ValueError("its calibration is not of its held-out images")
        known = {name: own[f"{KNOWN}{name}"] for name in SCORES if f"{KNOWN}{name}" in own}
        misfits = {name: own[f"{MISFIT}{name}"] for name in SET_SCORES if f"{MISFIT}{name}" in own}
        if header.known_by not in known or len(misfits) < len(SET_SCORES) or len(known) + len(misfits) < len(own):
            raise ValueError("its calibration has other scores")
        return cls(header, known, misfits)

    def threshold(self, name: Score, share: float) -> float:
        """The score that `share` of new images of the classes reach. UserError where the score was not kept."""
        if name not in self.known:
            raise unknown("score", name, tuple(self.known))
        check_share("known", share)
        return threshold(self.known[name], share)

    def limit(self, name: SetScore, coverage: float) -> float:
        """The misfit up to which classes are in the set that holds the true one for a share `coverage` of images."""
        check_share("coverage", coverage)
        return quantile(self.misfits[name], coverage)


def check_share(name: str, share: float) -> None:
    """UserError for what is no share of images."""
    if not 0 < share < 1:
        raise UserError(f"{option(name)} is a share of images, above 0 and below 1; found {share}")


def held_out_of(method: Method, clip: FrozenCLIP, source: FeatureSource, local: Tensor | None = None) -> HeldOut:
    """What `method` says of the images of `source`, on the CPU."""
    return HeldOut(logits_of(method, clip, source), source.labels, local)


@torch.no_grad()
def local_of(clip: FrozenCLIP, classes: ClassText, source: FeatureSource) -> Tensor:
    """(n,) the largest probability that any position of an image of `source`, of tokens, gives any class.

    The classes are their sentences here, whatever the method: no method is trained to read a single position.
    """
    names, tokens = ensemble(clip, classes), (x.tokens for x, _ in source.in_order() if x.tokens is not None)
    return torch.cat([largest_of_positions(each.to(clip.device), names, clip.logit_scale).cpu() for each in tokens])


def check_positions(clip: FrozenCLIP, known_by: Score) -> None:
    """UserError where the score reads positions and the tower shows none."""
    if known_by == "gl_mcm" and not clip.image_width:
        raise UserError(f"{clip.name} shows no positions, which {option('known_by', 'gl_mcm')} reads: use probability, "
                        "logit or energy")
