"""Cross-validation of several methods on the labelled images, within a time budget. Knows no Hydra."""

import logging
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import Dataset, Item, sample_shots, with_test_part
from xrvlm.errors import UserError
from xrvlm.evaluation.metrics import predicted
from xrvlm.experiments.budget import in_words, seconds_an_image, training_seconds
from xrvlm.experiments.folds import folds_of
from xrvlm.experiments.job import BUSY
from xrvlm.experiments.recommend import (
    HEADER,
    Recommendation,
    Score,
    caption,
    cells,
    markdown_report,
    recommend,
    standard_error,
)
from xrvlm.experiments.run import TextMaker, fitting_recipe
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, bank_bytes, feature_source, images_to_encode, without_labels
from xrvlm.files import alone, digest, read_json, user_path, write_json, write_text
from xrvlm.inference.classifier import MethodFactory, method_code, method_spec
from xrvlm.methods.base import Method, Recipe, probabilities
from xrvlm.randomness import seeded
from xrvlm.reporting.tables import Table, aligned_table
from xrvlm.text.class_text import ClassText, class_text, few
from xrvlm.training.fit import fit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A method as it would be adapted; `xrvlm adapt method=` and its `words` are the command for it."""

    words: str
    method: MethodFactory
    recipe: Recipe | None = None         # None: the method's own


@dataclass(frozen=True)
class Comparison:
    folder: Path
    scores: tuple[Score, ...]            # of the candidates that were finished, in their order
    left_out: dict[str, str]             # the others, with the reason
    recommendation: Recommendation
    about: str                           # what the numbers are

    def write(self, command: str) -> str:
        """Finish compare.md and write compare.json; returns the table and the advice as the terminal shows them.

        `command` is what trains the recommended method on all labels.
        """
        chosen = self.recommendation.chosen
        advice = [textwrap.fill(f"Recommended: {chosen.words}. {' '.join(self.recommendation.reasons)}", 120),
                  f"Train it on all labels and measure it on the test part:\n\n    {command}"]
        write_text(self.folder / "compare.md", markdown_report(self.scores, self.left_out, self.about, advice))
        rows: list[dict[str, Any]] = [
            asdict(score) | {"accuracy": score.accuracy, "standard_error": standard_error(score)}
            for score in self.scores]
        write_json(self.folder / "compare.json", {
            "recommended": chosen.words, "reasons": self.recommendation.reasons, "command": command,
            "left_out": self.left_out, "scores": [row | {"hits": sum(row["hits"])} for row in rows]})
        told = [f"left out: {words}: {reason}" for words, reason in self.left_out.items()]
        table = aligned_table(Table(self.about, HEADER, 4, [], cells(self.scores)), 120)
        return "\n\n".join([table, *(["\n".join(told)] if told else []), *advice, str(self.folder)])


@dataclass(frozen=True)
class Terms:
    """What is compared on which images; the result depends on all but `budget`, `runs` and `workers`."""

    shots: int | None = None             # labelled images a class, None: all
    seed: int = 1
    folds: int = 5
    budget: float = 600.0                # seconds
    runs: Path | str = "runs"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    workers: int = 0

    def __post_init__(self):
        if not isinstance(self.folds, int) or isinstance(self.folds, bool) or self.folds < 2:
            raise UserError(f"folds must be a whole number, at least 2; found {self.folds!r}")
        if self.features.mode != "cached":
            raise UserError("compare reads the features of all folds from one bank: leave features=online out")


def compare(clip: FrozenCLIP, dataset: Dataset, candidates: Sequence[Candidate], *, terms: Terms | None = None,
            text: TextMaker = class_text) -> Comparison:
    """Score each candidate on the labelled images of `dataset`, in turn, and recommend one.

    What is finished stands in the folder of the comparison, so that the same call goes on after an interruption. The
    test part is never read. A candidate that would not fit in what is left of the budget is left out, and told.
    """
    terms = terms or Terms()
    if not candidates:
        raise UserError("there is nothing to compare: name some, such as candidates=[zero_shot,linear_probe]")
    split = sample_shots(with_test_part(dataset.split), terms.shots, terms.seed)
    work = _Work(clip, dataset, split.train, text(split.classes), terms, time.monotonic() + terms.budget)
    with alone(work.folder / ".lock", BUSY):
        return work.done(candidates)


Asked = tuple[int, frozenset[Need]]      # augmented views, and what is read of each


@dataclass(frozen=True)
class _Plan:
    candidate: Candidate
    recipe: Recipe
    label: str
    needs: frozenset[Need]
    views: int
    code: dict[str, str]

    @property
    def file(self) -> str:
        return f"{digest([method_spec(self.candidate.method), self.code, asdict(self.recipe)])[:12]}.json"


@dataclass(frozen=True)
class _Work:
    clip: FrozenCLIP
    dataset: Dataset
    items: tuple[Item, ...]
    classes: ClassText
    terms: Terms
    deadline: float
    needs: dict[int, frozenset[Need]] = field(default_factory=dict)    # by views: what one of the candidates reads
    banks: dict[Asked, FeatureBank] = field(default_factory=dict)      # of all images, for all folds

    @cached_property
    def fold(self) -> Tensor:
        fold = folds_of(self.items, self.terms.folds, self.terms.seed)
        single = sorted({self.classes.names[self.items[row].label] for row in (fold < 0).nonzero().flatten().tolist()})
        if single:
            log.warning("%d of %d classes have one labelled image, which is trained on and never scored: %s",
                        len(single), len(self.classes.names), few(single))
        return fold

    @cached_property
    def numbers(self) -> list[int]:
        """The folds that hold an image."""
        return sorted(set(self.fold.tolist()) - {-1})

    @cached_property
    def folder(self) -> Path:
        ids = [item.id for item in self.items]
        key = [self.clip.fingerprint, self.clip.precision, asdict(self.classes), self.terms.features.identity,
               self.terms.seed, self.terms.folds, [[item.id, item.label] for item in self.items],
               self.dataset.source.fingerprint(ids)]
        name = f"compare-{self.dataset.name[:60]}-{digest(key)[:10]}".replace(" ", "_").replace("/", "_")
        return user_path(self.terms.runs) / name

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def done(self, candidates: Sequence[Candidate]) -> Comparison:
        scores: list[Score] = []
        left_out: dict[str, str] = {}
        about = partial(caption, int((self.fold >= 0).sum()), len(self.numbers))
        plans = [self._plan(candidate) for candidate in candidates]
        with tqdm(total=len(plans) * len(self.numbers), unit="fold", desc="compare", disable=None) as progress:
            for index, (candidate, plan) in enumerate(zip(candidates, plans, strict=True), start=1):
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
        return Comparison(self.folder, tuple(scores), left_out, recommend(scores), about(len(scores)))

    def _plan(self, candidate: Candidate) -> _Plan | str:
        """The reason, where the method does not fit the data."""
        try:
            method = self._fresh(candidate)
            recipe = fitting_recipe(candidate.recipe or method.recipe, method)
        except UserError as error:
            return str(error)
        views = self.terms.features.views if recipe.epochs else 0
        self.needs[views] = self.needs.get(views, frozenset()) | method.needs
        return _Plan(candidate, recipe, method.label, method.needs, views, method_code(type(method)))

    def _score(self, plan: _Plan, progress: Callable[[int], Any], *, must: bool) -> Score | str:
        """The score, or the reason why there is none. The first candidate that has one need not fit in the budget."""
        path = self.folder / plan.file
        try:
            finished = read_json(path, "delete it") if path.exists() else []
            reason = None if must or len(finished) == len(self.numbers) else self._too_long(plan, finished)
            for number in self.numbers[len(finished):]:
                if reason:
                    return reason
                finished.append(self._fold(plan, number))
                write_json(path, finished)
                reason = None if must else self._rest_too_long(finished)
                progress(1)
        except UserError as error:
            return str(error)
        except RuntimeError as error:        # of torch: memory, or what a device cannot do; the others go on
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        hits = torch.zeros(len(self.items), dtype=torch.bool)                              # (n,)
        for number, entry in zip(self.numbers, finished, strict=True):
            hits[self.fold == number] = torch.tensor(entry["hits"], dtype=torch.bool)
        seconds = sum(entry["seconds"] for entry in finished) / len(finished)
        return Score(plan.candidate.words, plan.label, tuple(hits[self.fold >= 0].tolist()), seconds,
                     finished[0]["learned_parameters"])

    def _fold(self, plan: _Plan, number: int) -> dict[str, Any]:
        bank, method, start = self._bank(plan), self._fresh(plan.candidate), time.perf_counter()
        support = bank.take((self.fold != number).nonzero().flatten())
        method.prepare(self.clip, support)
        if plan.recipe.epochs:
            fit(method, self.clip, support, plan.recipe, seed=self.terms.seed)
        test = bank.take((self.fold == number).nonzero().flatten())
        if method.transductive:          # the held-out images stand in for those of the test part
            method.transduce(self.clip, without_labels(test), support)
        seconds = time.perf_counter() - start
        hits = predicted(probabilities(method, self.clip, test)) == test.labels            # (k,)
        return {"fold": number, "hits": hits.int().tolist(), "seconds": seconds,
                "learned_parameters": method.learned_parameters}

    def _fresh(self, candidate: Candidate) -> Method:
        with seeded(self.terms.seed, "initial weights"):
            return candidate.method(self.clip, self.classes).to(self.clip.device)

    def _bank(self, plan: _Plan) -> FeatureBank:
        """As the method would find it if it were the only one."""
        views, needs = asked = self._asked(plan)
        if asked not in self.banks:
            found = feature_source(self.clip, self.dataset.source, self.items, self.terms.features, needs=needs,
                                   views=views, seed=self.terms.seed, workers=self.terms.workers)
            if not isinstance(found, FeatureBank):
                raise UserError("compare reads the features of all folds from one bank: raise features.budget_gb, or "
                                "use fewer shots")
            self.banks[asked] = found
        bank = self.banks[asked]
        return replace(bank, shards=[{name: shard[name] for name in plan.needs} for shard in bank.shards])

    def _asked(self, plan: _Plan) -> Asked:
        """The bank of the plan: that of all candidates of its views, where such a one is not too large."""
        shared = self.needs[plan.views]
        fits = self._gigabytes(shared, plan.views) <= self.terms.features.budget_gb
        return plan.views, shared if fits else plan.needs

    def _gigabytes(self, needs: frozenset[Need], views: int) -> float:
        return bank_bytes(self.clip, len(self.items), self.terms.features, needs, views) / 1e9

    def _too_long(self, plan: _Plan, finished: Sequence[dict]) -> str | None:
        """Why the candidate cannot be finished in what is left of the budget; before its first fold told from a few
        steps of it.
        """
        if self.left <= 0:
            return "the budget was spent before it"
        views, needs = asked = self._asked(plan)
        if (size := self._gigabytes(needs, views)) > self.terms.features.budget_gb:
            return f"its features take {size:.1f} GB, over features.budget_gb={self.terms.features.budget_gb:g}"
        features = 0.0 if asked in self.banks else self._extraction_seconds(views, needs)
        if features > self.left:
            return f"its features alone would take about {in_words(features)}, and {in_words(self.left)} were left"
        if finished:
            return self._rest_too_long(finished)
        if not plan.recipe.epochs:
            return None
        support = self._bank(plan).take((self.fold != self.numbers[0]).nonzero().flatten())
        seconds = training_seconds(self._fresh(plan.candidate), self.clip, support, plan.recipe, self.terms.seed)
        return self._told(seconds * len(self.numbers))

    def _rest_too_long(self, finished: Sequence[dict]) -> str | None:
        slowest = max(entry["seconds"] for entry in finished)
        return self._told(slowest * (len(self.numbers) - len(finished)))

    def _told(self, seconds: float) -> str | None:
        if seconds <= max(self.left, 0):
            return None
        return f"it would take about {in_words(seconds)} more, and {in_words(max(self.left, 0))} were left"

    def _extraction_seconds(self, views: int, needs: frozenset[Need]) -> float:
        missing = images_to_encode(self.clip, self.dataset.source, self.items, self.terms.features, needs=needs,
                                   views=views, seed=self.terms.seed)
        return missing * (views + 1) * seconds_an_image(self.clip, needs) if missing else 0.0
