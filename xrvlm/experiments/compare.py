"""Cross-validation of several methods on the labelled images, within a time budget."""

import logging
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, is_extra, sample_shots, with_test_set
from xrvlm.data.images import learned_from
from xrvlm.distributed import Bar, seeded
from xrvlm.errors import UserError, check_fields, either, option, typed
from xrvlm.evaluation.metrics import predicted
from xrvlm.evaluation.text_tables import Table, aligned_table
from xrvlm.experiments.budget import SharedBanks, budget_seconds, rest_too_long, too_long, training_seconds
from xrvlm.experiments.recommend import (
    HEADER,
    Candidate,
    Recommendation,
    Score,
    adapt_call,
    caption,
    cells,
    markdown_report,
    never_scored,
    recommend,
    standard_error,
)
from xrvlm.experiments.record import not_at_default, revisions_of
from xrvlm.experiments.run import BUSY, Text
from xrvlm.features.source import FeatureSettings
from xrvlm.files import alone, as_file_name, digest, packaged, read_json, user_path, write_json, write_text
from xrvlm.inference.classifier import MethodHeader
from xrvlm.methods.base import Method, Recipe, probabilities
from xrvlm.text.class_text import ClassText, class_text, text_maker
from xrvlm.training.fit import fitting_recipe, learn
from xrvlm.training.folds import folds_of

log = logging.getLogger(__name__)


def default_candidates() -> list[str]:
    """Those in conf/compare.yaml, in their order."""
    return yaml.safe_load((packaged("conf") / "compare.yaml").read_text(encoding="utf-8"))["candidates"]


@dataclass(frozen=True)
class CompareOptions:
    """What is compared on which images; the result depends on all but `budget`, `runs` and `workers`."""

    shots: int | None = None             # labelled images a class, None: all
    seed: int = 1
    folds: int = 5
    budget: float | str = "10m"          # `90s`, `10m`, `1h`; a number counts minutes
    runs: Path | str = "runs"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    workers: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.folds < 2:
            raise UserError(f"{option('folds')} must be a whole number, at least 2; found {self.folds!r}")
        if self.features.mode != "cached":
            online = either("mode='online'", "features=online")
            raise UserError(f"compare reads the features of all folds from one bank: leave {online} out")
        budget_seconds(self.budget)


@dataclass(frozen=True)
class Comparison:
    folder: Path
    scores: tuple[Score, ...]            # of the candidates that were finished, in their order
    left_out: dict[str, str]             # the others, with the reason
    recommendation: Recommendation
    caption: str                         # what the numbers are
    command: str                         # adapts the recommended method to all labels

    @property
    def advice(self) -> list[str]:
        chosen = self.recommendation.chosen
        return [textwrap.fill(f"Recommended: {chosen.words}. {' '.join(self.recommendation.reasons)}", 120),
                f"Train it and measure it on the test set:\n\n    {self.command}"]

    @property
    def table(self) -> str:
        """The table and the advice, as the terminal shows them."""
        left = [f"left out: {words}: {reason}" for words, reason in self.left_out.items()]
        table = aligned_table(Table(self.caption, HEADER, 4, [], cells(self.scores)), 120)
        return "\n\n".join([table, *(["\n".join(left)] if left else []), *self.advice, str(self.folder)])

    def write(self) -> None:
        """compare.md and compare.json."""
        write_text(self.folder / "compare.md", markdown_report(self.scores, self.left_out, self.caption, self.advice))
        rows: list[dict[str, Any]] = [asdict(score) | {
            "accuracy": score.accuracy, "standard_error": standard_error(score), "hits": sum(score.hits)}
            for score in self.scores]
        write_json(self.folder / "compare.json", {
            "recommended": self.recommendation.chosen.words, "reasons": self.recommendation.reasons,
            "command": self.command, "left_out": self.left_out, "scores": rows})


@typed
def compare(clip: FrozenCLIP, dataset: Dataset, candidates: Sequence[Candidate | str] | None = None, *,
            text: Text = class_text, options: CompareOptions | None = None,
            command: Callable[[str], str] | None = None) -> Comparison:
    """Score each candidate on the labelled images of `dataset` by cross-validation, and recommend one.

    The test set is never read. What is finished is kept in the folder of the comparison, so that the same call goes on
    after an interruption. A candidate that does not fit in what is left of the budget is left out, with the reason.

    Args:
        candidates: in the order in which they are tried, or their words; None: `default_candidates`.
        command: the words of the recommended candidate -> the command that adapts it; None: a call in Python.
    """
    options = options or CompareOptions()
    found = [Candidate.parse(each) if isinstance(each, str) else each for each in dict.fromkeys(
        default_candidates() if candidates is None else candidates)]
    if not found:
        raise UserError(f"nothing to compare: name some, such as {option('candidates', ['zero_shot', 'coop'])}")
    split = sample_shots(with_test_set(dataset.split), options.shots, options.seed)
    classes = text_maker(text, [getattr(dataset.source, "root", None)])(split.classes)
    items = learned_from(split, dataset.source)
    banks = SharedBanks(clip, dataset, items, options.features, options.seed, options.workers)
    work = _Work(banks, classes, options, time.monotonic() + budget_seconds(options.budget))
    with alone(work.folder / ".lock", BUSY):
        comparison = work.done(found, command or partial(adapt_call, options, text))
    comparison.write()
    return comparison


@dataclass(frozen=True)
class _Plan:
    candidate: Candidate
    recipe: Recipe
    method: Method                       # fresh: its label, what it reads, its revision

    @property
    def file(self) -> str:
        header = MethodHeader.of(self.candidate.method)
        return digest([header.name, header.changed(type(self.method)), revisions_of(type(self.method)),
                       not_at_default(self.recipe)])[:12] + ".json"


@dataclass(frozen=True)
class _Work:
    banks: SharedBanks
    classes: ClassText
    options: CompareOptions
    deadline: float

    @cached_property
    def fold(self) -> Tensor:
        """(n,) the fold that holds each image out; -1 for none."""
        return folds_of(self.banks.items, self.banks.dataset.source, self.options.folds, self.options.seed)

    @cached_property
    def of_one_image(self) -> list[str]:
        return sorted({self.classes.names[item.label] for item, fold in zip(self.banks.items, self.fold, strict=True)
                       if fold < 0 and not is_extra(item.id)})

    @cached_property
    def numbers(self) -> list[int]:
        """The folds that hold an image out."""
        return sorted(set(self.fold.tolist()) - {-1})

    @cached_property
    def folder(self) -> Path:
        clip, dataset, items = self.banks.clip, self.banks.dataset, self.banks.items
        key = [clip.fingerprint, clip.precision, asdict(self.classes), not_at_default(self.options.features.identity),
               self.options.seed, self.fold.tolist(), [[item.id, item.label] for item in items],
               [dataset.source.sha256(item.id) for item in items]]
        return user_path(self.options.runs) / as_file_name(f"compare-{dataset.name[:60]}-{digest(key)[:10]}")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def done(self, candidates: Sequence[Candidate], command: Callable[[str], str]) -> Comparison:
        scores: list[Score] = []
        left_out: dict[str, str] = {}
        about = partial(caption, int((self.fold >= 0).sum()), len(self.numbers), self.of_one_image)
        if self.of_one_image:
            log.warning(never_scored(self.of_one_image))
        plans: dict[str, tuple[Candidate, _Plan | str]] = {}
        for candidate in candidates:     # "gda" and "gda method.fit_prior=false" are one
            plan = self._plan(candidate)
            plans.setdefault(candidate.words if isinstance(plan, str) else plan.file, (candidate, plan))
        with Bar(total=len(plans) * len(self.numbers), unit="fold", desc="compare") as progress:
            for index, (candidate, plan) in enumerate(plans.values(), start=1):
                progress.set_description(candidate.words)
                found = plan if isinstance(plan, str) else self._score(plan, progress.update, must=not scores)
                progress.update(index * len(self.numbers) - progress.n)
                if isinstance(found, str):
                    left_out[candidate.words] = found
                    log.warning("%s is left out: %s", candidate.words, found)
                else:
                    scores.append(found)
                write_text(self.folder / "compare.md", markdown_report(scores, left_out, about(len(scores)), ()))
        if not scores:
            raise UserError(f"none of the candidates could be scored: {'; '.join(left_out.values())}")
        best = recommend(scores, len(self.classes.names))
        return Comparison(self.folder, tuple(scores), left_out, best, about(len(scores)), command(best.chosen.words))

    def _plan(self, candidate: Candidate) -> _Plan | str:
        """The plan, or the reason why the method does not fit the data."""
        try:
            method = self._fresh(candidate)
            plan = _Plan(candidate, fitting_recipe(candidate.recipe, method), method)
        except UserError as error:
            return str(error)
        self.banks.register(self._views(plan), method.needs)
        return plan

    def _views(self, plan: _Plan) -> int:
        return self.options.features.views if plan.recipe.epochs else 0

    def _score(self, plan: _Plan, progress: Callable[[int], Any], *, must: bool) -> Score | str:
        """The score, or the reason why there is none. The first candidate that has one need not fit in the budget."""
        path, folds = self.folder / plan.file, len(self.numbers)
        try:
            finished = read_json(path, "delete it") if path.exists() else []
            reason = None if must or len(finished) == folds else self._too_long(plan, finished)
            for number in self.numbers[len(finished):]:
                if reason:
                    return reason
                finished.append(self._fold(plan, number, None if must else self.deadline))
                write_json(path, finished)
                reason = None if must else rest_too_long([entry["seconds"] for entry in finished], folds, self.left)
                progress(1)
        except UserError as error:
            return str(error)
        except RuntimeError as error:        # of torch: out of memory, or not supported by a device; the others go on
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        hits = torch.zeros(len(self.banks.items), dtype=torch.bool)                        # (n,)
        for number, entry in zip(self.numbers, finished, strict=True):
            hits[self.fold == number] = torch.tensor(entry["hits"], dtype=torch.bool)
        seconds = sum(entry["seconds"] for entry in finished) / len(finished)
        return Score(plan.candidate.words, plan.method.label, tuple(hits[self.fold >= 0].tolist()), seconds,
                     finished[0]["learned_parameters"])

    def _fold(self, plan: _Plan, number: int, until: float | None) -> dict[str, Any]:
        clip, method = self.banks.clip, self._fresh(plan.candidate)
        bank = self.banks.bank(self._views(plan), method.needs)
        support = bank.take((self.fold != number).nonzero().flatten())
        held_out = bank.take((self.fold == number).nonzero().flatten())      # in place of the test images
        progress = learn(method, clip, plan.recipe, seed=self.options.seed, train=support, test=held_out,
                         until=until)
        hits = predicted(probabilities(method, clip, held_out)) == held_out.labels         # (k,)
        return {"fold": number, "hits": hits.int().tolist(), "seconds": progress.seconds,
                "learned_parameters": method.learned_parameters}

    def _fresh(self, candidate: Candidate) -> Method:
        with seeded(self.options.seed, "initial weights"):
            return candidate.method(self.banks.clip, self.classes).to(self.banks.clip.device)

    def _too_long(self, plan: _Plan, finished: Sequence[dict]) -> str | None:
        """Why the budget's rest does not hold the candidate. Before its first fold a few steps tell the time."""
        if self.left <= 0:
            return "the budget was spent before it"
        views, folds = self._views(plan), len(self.numbers)
        if reason := self.banks.too_costly(views, plan.method.needs, self.left):
            return reason
        if finished:
            return rest_too_long([entry["seconds"] for entry in finished], folds, self.left)
        if not plan.recipe.epochs:
            return None
        support = self.banks.bank(views, plan.method.needs).take((self.fold != self.numbers[0]).nonzero().flatten())
        method = self._fresh(plan.candidate)
        seconds = training_seconds(method, self.banks.clip, support, plan.recipe, self.options.seed)
        return too_long(seconds * folds, self.left)
