"""`xrvlm prompts`: which templates and sentences help, chosen by labelled images and judged on others.

The idea is ProAPO's (Qu et al., CVPR 2025, arXiv:2502.19844): score words by a few labelled images. Its language model
and its evolution are left out: what there is to choose from is given. The score is the mean log-likelihood of the
images' classes in zero-shot classification, which a few images estimate far better than accuracy.

1. Groups of words that all classes have: each template, the descriptions, each part. The best one, then the one that
   helps most beside those, as long as one helps; then those that the others made superfluous are dropped.
2. Sentences of one class after another: the one whose absence helps most is dropped, as long as one's does.

Choosing by a few images flatters. So each of the levels below is also chosen without each fold of the images in turn
and judged on that fold, and the level that does best there is the one that is written.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, sample_shots, with_test_set
from xrvlm.distributed import Bar
from xrvlm.errors import UserError, option, typed
from xrvlm.evaluation.calibration import fit_temperature
from xrvlm.evaluation.metrics import write_rows
from xrvlm.evaluation.text_tables import Table, aligned_table
from xrvlm.experiments.saved import check_writable
from xrvlm.experiments.wording.describe import folder_for
from xrvlm.features.source import FeatureSettings, feature_source, pooled_features
from xrvlm.files import user_path, write_json
from xrvlm.text.class_text import ClassText, chosen_templates, class_text, text_maker
from xrvlm.training.folds import folds_of

log = logging.getLogger(__name__)
LEAST = 1e-4                             # log-likelihood that words must bring
LEVELS = {"first": "the first template", "templates": "all templates", "chosen_templates": "chosen templates",
          "everything": "all templates and sentences", "groups": "chosen groups",
          "sentences": "chosen groups, less single sentences"}


@dataclass(frozen=True)
class Group:
    """Words that every class has: one sentence each, or several."""

    kind: str                            # "template", "descriptions" or "part"
    name: str
    sentences: Sequence[Sequence[str]]   # of each class
    features: Sequence[Tensor]           # (s, d) of each class, of unit norm

    @property
    def sums(self) -> Tensor:
        """(c, d)."""
        return torch.stack([each.sum(dim=0) for each in self.features])


@dataclass
class Choice:
    """The groups that were taken, by their places, and the single sentences that were dropped again."""

    groups: list[int]
    dropped: set[tuple[int, int, int]] = field(default_factory=set)            # (group, class, sentence)
    brought: dict[Any, float] = field(default_factory=dict)                    # of a group, or of what was dropped


@dataclass(frozen=True)
class Chosen:
    """The folder with prompts.json and prompts.csv, the level that was written, and the table of all levels."""

    folder: Path
    level: str
    prompts: dict[str, list[str]]
    levels: list[dict[str, Any]]
    table: str


@typed
def choose_prompts(clip: FrozenCLIP, dataset: Dataset, *, templates: str | Sequence[str] = "ensemble",
                   descriptions: str | Mapping[str, Any] | None = None, parts: str | Mapping[str, Any] | None = None,
                   shots: int | None = None, seed: int = 1, folds: int = 5, features: FeatureSettings | None = None,
                   workers: int = 0, out: str | Path | None = None) -> Chosen:
    """Choose among `templates` and sentences by the training images of `dataset`; its test images are not read.

    Args:
        templates, descriptions, parts: as `class_text` takes them; every sentence of both files is one to choose.
        shots: images a class to choose by; None: all.
        folds: how often the choice is repeated without a part of the images, to judge it.
        out: a folder; None: words/<name of the data set>.

    Raises:
        UserError: fewer than two classes have two images, or a file of sentences lacks a class.
    """
    if folds < 2:
        raise UserError(f"{option('folds')} must be at least 2, found {folds}")
    folder = user_path(folder_for(dataset.name) if out is None else out)
    check_writable(folder)
    split = sample_shots(with_test_set(dataset.split), shots, seed, False)
    text = text_maker({"descriptions": descriptions, "parts": parts}, [getattr(dataset.source, "root", None)])
    groups = _encoded(clip, split.classes, chosen_templates(templates), text(split.classes))
    source = feature_source(clip, dataset.source, split.train, features or FeatureSettings(views=0),
                            needs={"pooled"}, views=0, seed=seed, workers=workers)
    images, labels = (each.cpu().float() for each in pooled_features(source, clip.device))     # (n, d), (n,)
    judge = Judge(groups, images, labels.long(), float(clip.logit_scale))
    levels = _levels(judge, folds_of(split.train, dataset.source, folds, seed))
    best = max(levels, key=lambda row: row["log_likelihood"])["level"]
    choices = judge.choose(torch.ones(len(labels), dtype=torch.bool))
    made = {name: judge.words(choices[best], row) for row, name in enumerate(split.classes)}
    write_json(folder / "prompts.json", made)
    write_rows(folder / "prompts.csv", ("kind", "name", "class", "words", "kept", "brought"),
               _rows(groups, split.classes, choices[best]))
    write_json(folder / "levels.json", {"images": len(labels), "folds": folds, "kept": best, "levels": levels})
    return Chosen(folder, best, made, levels, _table(levels, best))


@torch.no_grad()
def _encoded(clip: FrozenCLIP, classes: Sequence[str], templates: Sequence[str], given: ClassText) -> list[Group]:
    filled = class_text(classes, templates=templates).prompts
    wanted = [("template", template, [[own[place]] for own in filled]) for place, template in enumerate(templates)]
    if given.kind == "descriptions":
        wanted.append(("descriptions", "", [list(own) for own in given.prompts]))
    for place, part in enumerate(given.part_names or ()):
        wanted.append(("part", part, [[own[place]] for own in given.parts or ()]))
    found = []
    for kind, name, sentences in wanted:
        encoded = clip.encode_text([each for own in sentences for each in own]).cpu().float()        # (all, d)
        found.append(Group(kind, name, sentences, encoded.split([len(own) for own in sentences])))
    return found


class Judge:
    """Scores words by labelled images.

    Args:
        images: (n, d) of unit norm.
        labels: (n,)
        scale: what cosines are multiplied with.
    """

    def __init__(self, groups: Sequence[Group], images: Tensor, labels: Tensor, scale: float):
        self.groups, self.images, self.labels, self.scale = groups, images, labels, scale
        self.sums = torch.stack([group.sums for group in groups])                                    # (k, c, d)
        self.templates = [place for place, group in enumerate(groups) if group.kind == "template"]
        self.told = len(self.templates) < len(groups)         # whether there are sentences

    def choose(self, rows: Tensor) -> dict[str, Choice]:
        """{level: its words}, those that are chosen by the images `rows` (n,) bool."""
        x, y = self.images[rows], self.labels[rows]
        scale = self.scale / self.temperature(rows)
        found = {"first": Choice([0]), "templates": Choice(self.templates),
                 "chosen_templates": self._taken(self.templates, x, y, scale)}
        every = list(range(len(self.groups)))
        groups = self._taken(every, x, y, scale) if self.told else found["chosen_templates"]
        return found | {"everything": Choice(every), "groups": groups,
                        "sentences": self._less(groups, x, y, scale)}

    def temperature(self, rows: Tensor) -> float:
        """Of all templates on the images `rows`: a tower that is too sure would be given words for its mistakes."""
        logits = self.scale * self.images[rows] @ self.class_features(Choice(self.templates)).T
        return fit_temperature(logits, self.labels[rows]).temperature

    def class_features(self, choice: Choice) -> Tensor:
        """(c, d) of unit norm: the mean of each class's words."""
        sums = self.sums[choice.groups].sum(dim=0)
        for group, label, sentence in choice.dropped:
            sums[label] -= self.groups[group].features[label][sentence]
        return F.normalize(sums, dim=1)

    def words(self, choice: Choice, label: int) -> list[str]:
        """The sentences of a class."""
        return [sentence for group in choice.groups
                for place, sentence in enumerate(self.groups[group].sentences[label])
                if (group, label, place) not in choice.dropped]

    def _taken(self, groups: Sequence[int], x: Tensor, y: Tensor, scale: float) -> Choice:
        """Groups taken one by one, as long as one helps, then dropped one by one, as long as that helps."""
        def score(chosen: Sequence[int]) -> float:
            return _log_likelihood(scale * x @ F.normalize(self.sums[list(chosen)].sum(dim=0), dim=1).T, y)

        choice, best = Choice([]), -math.log(self.sums.shape[1])                 # of chance
        while left := [each for each in groups if each not in choice.groups]:
            scores = {each: score([*choice.groups, each]) for each in left}
            taken = max(scores, key=lambda each: scores[each])
            if scores[taken] < best + LEAST and choice.groups:
                break
            choice.brought[taken], best = scores[taken] - best, scores[taken]
            choice.groups.append(taken)
        while len(choice.groups) > 1:
            scores = {each: score([other for other in choice.groups if other != each]) for each in choice.groups}
            gone = max(scores, key=lambda each: scores[each])
            if scores[gone] < best + LEAST:
                break
            choice.groups.remove(gone)
            best = scores[gone]
        return choice

    def _less(self, groups: Choice, x: Tensor, y: Tensor, scale: float) -> Choice:
        """Without the single sentences of a class whose absence helps."""
        choice = Choice(groups.groups, set(), dict(groups.brought))
        sums = self.sums[choice.groups].sum(dim=0)                                                   # (c, d)
        logits = scale * x @ F.normalize(sums, dim=1).T                                              # (n, c)
        for label in range(len(sums)):
            others = logits.clone()
            others[:, label] = -torch.inf
            rest, own = others.logsumexp(1), logits.gather(1, y[:, None])                            # (n,), (n, 1)
            there = [(group, place) for group in choice.groups if self.groups[group].kind != "template"
                     for place in range(len(self.groups[group].sentences[label]))]
            left = len(there) + sum(self.groups[group].kind == "template" for group in choice.groups)
            while there and left > 1:
                without = torch.stack([self.groups[group].features[label][place] for group, place in there])
                tried = scale * x @ F.normalize(sums[label] - without, dim=1).T                      # (n, s)
                both = torch.cat([logits[:, [label]], tried], dim=1)                                 # (n, 1 + s)
                mine = torch.where((y == label)[:, None], both, own)
                scores = (mine - torch.logaddexp(rest[:, None], both)).mean(dim=0)                   # (1 + s,)
                best = int(scores[1:].argmax())
                if (gain := (scores[best + 1] - scores[0]).item()) < LEAST:
                    break
                group, place = there.pop(best)
                choice.dropped.add((group, label, place))
                choice.brought[group, label, place] = gain
                sums[label] -= without[best]
                logits[:, label], left = tried[:, best], left - 1
        return choice


def _log_likelihood(logits: Tensor, labels: Tensor) -> float:
    return -F.cross_entropy(logits, labels).item()


def _levels(judge: Judge, fold: Tensor) -> list[dict[str, Any]]:
    """Of each level: how it does on images that it was not chosen by, and how far that is from all templates."""
    held = fold >= 0
    right = {name: torch.zeros(len(fold)) for name in LEVELS}
    likely = {name: torch.zeros(len(fold)) for name in LEVELS}
    for number in Bar(range(int(fold.max()) + 1), desc="prompts", unit="fold"):
        rows = fold == number
        scale = judge.scale / judge.temperature(~rows)
        for name, choice in judge.choose(~rows).items():
            logits = scale * judge.images[rows] @ judge.class_features(choice).T                     # (k, c)
            right[name][rows] = (logits.argmax(1) == judge.labels[rows]).float()
            likely[name][rows] = -F.cross_entropy(logits, judge.labels[rows], reduction="none")
    found = []
    for name in LEVELS:
        if name in ("everything", "groups", "sentences") and not judge.told:
            continue
        difference = (right[name] - right["templates"])[held]
        middle, reach = difference.mean().item(), 1.96 * (difference.std() / len(difference) ** 0.5).item()
        found.append({"level": name, "top1": right[name][held].mean().item(),
                      "log_likelihood": likely[name][held].mean().item(), "difference": middle,
                      "low": middle - reach, "high": middle + reach})
    return found


def _rows(groups: Sequence[Group], classes: Sequence[str], choice: Choice) -> list[dict[str, Any]]:
    """prompts.csv: groups, and below them the single sentences; what taking, or dropping, each brought."""
    rows = []
    for place, group in enumerate(groups):
        rows.append({"kind": group.kind, "name": group.name, "class": "", "words": "",
                     "kept": int(place in choice.groups), "brought": _cell(choice.brought.get(place))})
        if group.kind != "template" and place in choice.groups:
            rows += [{"kind": "sentence", "name": group.name, "class": name, "words": sentence,
                      "kept": int((place, label, index) not in choice.dropped),
                      "brought": _cell(choice.brought.get((place, label, index)))}
                     for label, name in enumerate(classes) for index, sentence in enumerate(group.sentences[label])]
    return rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(levels: Sequence[Mapping[str, Any]], best: str) -> str:
    header = ["Words", "", "Top-1 %", "Log-likelihood", "Points above all templates"]
    cells = [[LEVELS[row["level"]], "kept" if row["level"] == best else "", f"{100 * row['top1']:.1f}",
              f"{row['log_likelihood']:.3f}", "" if row["level"] == "templates" else
              f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"]
             for row in levels]
    caption = "Training images, each classified by words that were chosen without it; zero-shot, 95 % intervals."
    return aligned_table(Table(caption, header, 3, list(levels), cells), 110)
