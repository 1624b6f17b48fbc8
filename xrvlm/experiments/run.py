"""A whole run in one call: split -> text -> method -> features -> fit -> scores -> record."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import Dataset, Item, Split, hash_images, is_extra, label_budget, with_test_set, write_split
from xrvlm.distributed import processes, seeded
from xrvlm.errors import UserError, option, typed
from xrvlm.evaluation.domains import by_domain
from xrvlm.evaluation.metrics import top1, write_nearest, write_scores
from xrvlm.experiments.calibrate import calibrate, check_calibration, check_unread, write_figures
from xrvlm.experiments.protocols import NewClasses, OpenSet, Protocol, beside, in_parts
from xrvlm.experiments.record import Identity, RunFolder, RunOptions, RunRecord, append_record, labelled, write_losses
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSource, feature_source
from xrvlm.files import as_file_name, digest, user_path, write_json, write_text
from xrvlm.inference.calibration import Calibration
from xrvlm.inference.classifier import Classifier, MethodFactory, MethodHeader, ModelHeader
from xrvlm.methods.base import Method, Recipe, probabilities
from xrvlm.methods.registry import check_second_is_read
from xrvlm.text.class_text import ClassText, class_text, few, saved_text, text_maker
from xrvlm.training.fit import Progress, check_selection, fitting_recipe, learn
from xrvlm.training.following import Follower, following

log = logging.getLogger(__name__)
AS_COPIES, ALIKE, APART = 0.999, 0.9, 0.02     # cosines of photos saved anew; how far above the next the lower one is
BUSY = "another process is at this run; wait for it, or choose another folder of runs"
Text = Callable[[Sequence[str]], ClassText] | Mapping[str, Any]      # `class_text`, a partial of it, or its options


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its line in results.jsonl, and the adapted model."""

    folder: Path
    record: RunRecord
    classifier: Classifier

    @property
    def accuracy(self) -> float:
        """Top-1 on the test images, 0..1; of a base-to-new run, that of the base classes."""
        return self.record.metrics["top1"]


@typed
def adapt(clip: FrozenCLIP, dataset: Dataset, method: MethodFactory | str = "xr_vlm", *, shots: int | None = 16,
          seed: int = 1, val: bool = False, recipe: Recipe | str | Mapping[str, Any] | None = None,
          text: Text = class_text, protocol: Protocol = "few_shot", unknown: str | Path | None = None,
          options: RunOptions | None = None) -> Run:
    """Adapt `clip` to `dataset` with `shots` images a class (None: all) and measure it on the test set.

    The same call resumes a run that was stopped and returns one that is finished: the run's folder ends in its identity
    (record.py). Under `distributed.joined` several processes do the run together (docs/guides/distributed.md).

    Args:
        method: a registered name, a subclass of Method, or a partial of one with its options.
        val: set validation images aside, which count as labels; `RunOptions(selection="val")` implies it.
        recipe: None: the method's own; else a Recipe, the name of one in conf/recipe, or changes: {"epochs": 5}.
        text: what makes the sentences of the classes, or the options of `class_text`.
        protocol: `few_shot`; `base_to_new`: train on the first half of the classes alone, measure the others too; or
            `open_set`: measure how well those are told from the known.
        unknown: of `open_set`: a folder of images that are of none of the classes, which are then all known.

    Raises:
        UserError: the data, the options and the method do not go together; nothing was trained.
    """
    options = options or RunOptions()
    factory, text = _factory(method), text_maker(text, [getattr(dataset.source, "root", None)])
    if options.calibrate == "none" and options != replace(options, scaling="temperature", known_by="energy"):
        check_unread(options, protocol)
    whole = split = with_test_set(dataset.split)
    if protocol != "few_shot" or unknown is not None:
        dataset, whole, split = in_parts(protocol, dataset, unknown)
    classes = text(split.classes)
    with seeded(seed, "initial weights"):
        adapted = factory(clip, classes).to(clip.device)
    split = labelled(dataset, split, adapted, shots, seed, val, options)
    new = None if protocol == "few_shot" else beside(
        protocol, whole, split, text, adapted, clip, options.known_by, unknown)
    chosen = fitting_recipe(recipe, adapted)
    check_selection(chosen, options.selection)
    told = 0 if not (split.train or split.val) else "all" if shots is None else shots
    return _Setup(clip, dataset, split, adapted, chosen, told, seed,
                  ModelHeader.of(clip, factory, classes, split.fingerprint, dataset.hierarchy, dataset.joint), options,
                  saved_text(text), new).run()


@typed
def zero_shot(clip: FrozenCLIP, dataset: Dataset, *, text: Text = class_text,
              options: RunOptions | None = None) -> Run:
    """Score `dataset` without a label: its test set where it brings one, else all of its images."""
    options, factory = options or RunOptions(), _factory("zero_shot")
    if options.calibrate != "none":
        raise UserError(f"a zero-shot run reads no label to calibrate by: adapt with {option('method', 'zero_shot')}")
    found, text = dataset.split, text_maker(text, [getattr(dataset.source, "root", None)])
    split = Split(found.classes, train=(), test=found.test or (*found.train, *found.val))
    classes = text(split.classes)
    method = factory(clip, classes).to(clip.device)
    return _Setup(clip, dataset, split, method, method.recipe, 0, 0,
                  ModelHeader.of(clip, factory, classes, split.fingerprint, dataset.hierarchy, dataset.joint), options,
                  saved_text(text), whole=not found.test).run()


def _factory(method: MethodFactory | str) -> MethodFactory:
    if not isinstance(method, str):
        MethodHeader.of(method)              # raises UserError for what is no method
        return method
    from xrvlm.methods.registry import find
    return find(method)


@dataclass(frozen=True)
class _Setup:
    """A run before it is done: everything that its result depends on."""

    clip: FrozenCLIP
    dataset: Dataset
    split: Split
    method: Method
    recipe: Recipe
    shots: int | str
    seed: int
    header: ModelHeader
    options: RunOptions
    text: Mapping[str, Any]              # see `saved_text`
    new: NewClasses | OpenSet | None = None        # of a base-to-new or open-set run
    whole: bool = False                  # tested on all images of a data set without a test set

    @property
    def splits(self) -> dict[str, Split]:      # by the file that records it
        return {"split.json": self.split} | ({"split_all.json": self.new.whole} if self.new else {})

    @cached_property
    def hashes(self) -> dict[str, str]:
        split = self.new.whole if self.new else self.split
        return processes().from_first(lambda: hash_images(split, self.dataset.source))

    @property
    def extra(self) -> list[str]:        # the ids of the images that are for training alone
        return [item.id for item in self.split.train if is_extra(item.id)]

    @cached_property
    def tested(self) -> str:
        """A hash of the test images, which tells data sets of one name apart."""
        subsets = [self.split.test, *([self.new.test] if self.new else [])]
        return digest([[self.hashes[item.id] for item in subset] for subset in subsets])

    @cached_property
    def identity(self) -> Identity:
        settings = {"recipe": self.recipe, "features": self.options.features.identity}
        images = [*(split.fingerprint for split in self.splits.values()), self.hashes]
        return Identity.of(
            self.header, type(self.method), self.shots, self.seed, images, settings, text_path=self.clip.text_path,
            precision=self.clip.precision, selection=self.options.selection, val=bool(self.split.val),
            tested=self.tested, **(self.new.identity if self.new else {}) | self.options.calibration,
            **({"hierarchy": self.header.hierarchy} if self.header.hierarchy else {}),
            **({"joint": True} if self.header.joint else {}),
            **({"extra": digest([self.hashes[image] for image in self.extra])} if self.extra else {}))

    @property
    def protocol(self) -> str:
        return self.new.protocol if self.new else "all_images" if self.whole else "few_shot"

    @property
    def folder(self) -> RunFolder:
        shots = f"{self.shots}shot" if isinstance(self.shots, int) else "all"
        parts = [self.header.method.name, self.dataset.name[:60], *([self.new.protocol] if self.new else []), shots,
                 f"seed{self.seed}", self.identity.key[:10]]
        return RunFolder(user_path(self.options.runs) / as_file_name("-".join(parts)))

    def run(self) -> Run:
        """The run as it was finished before, or done now. In a distributed run, rank 0 writes and the others read."""
        group, folder, run = processes(), self.folder, None
        if self.clip.second_width:
            check_second_is_read(self.method.needs, self.header.method.name)
        if self.options.calibrate != "none":
            check_calibration(self.options, self.method, self.clip, self.split, self.dataset.source)
        group.check_same(self.identity.key, "images or options")
        if group.from_first(self._must_run):
            with group.alone(folder.path / ".lock", BUSY):
                if group.from_first(self._must_run):       # another sweep may have finished it just now
                    run = self._train()
        if run is not None:
            return run
        if (record := folder.finished()) is None:
            raise UserError(f"one of the processes cannot see {folder.path}: use a folder on a disk that they share")
        if group.first:
            if os.access(folder.path.parent, os.W_OK):     # in case it was stopped just before it wrote its line
                folder.checkpoint.unlink(missing_ok=True)
                append_record(folder.path.parent, record)
            log.info("already finished: %s (%s starts again)", folder.path, option("force", True))
        return Run(folder.path, record, Classifier.load(folder.path, self.clip))

    def _must_run(self) -> bool:
        return self.options.force or self.folder.finished() is None

    def _train(self) -> Run | None:
        """Continue where the run was stopped. Rank 0 alone has a result, once all ranks are done."""
        group, run = processes(), None
        if group.first:
            self._begin()
        group.meet()
        with group.together():
            views = self.options.features.views if self.recipe.epochs else 0
            train = self.source(self.split.train, views) if self.split.train else None
            val = self.source(self.split.val, 0) if self.split.val else None
            needs = self.method.needs | self.new.needs if self.new else self.method.needs
            tests = [self.source(each.test, 0, needs) for each in (self.split, self.new) if each is not None]
        fresh = None if self.options.calibrate == "none" else deepcopy(self.method)
        with self._followed() as follower:
            progress = learn(self.method, self.clip, self.recipe, seed=self.seed,
                             train=train if self.method.learns else None, test=tests[0],
                             val=None if self.options.calibrate == "val" else val, selection=self.options.selection,
                             checkpoint=self.folder.checkpoint, identity=self.identity.key,
                             follow=follower and follower.epoch)
            calibration = None if fresh is None else calibrate(self, fresh, train, val)
            if group.first:
                run = self._conclude(train, val, tests, progress, calibration)
                if follower:
                    follower.finish(run.record.metrics | {"train_seconds": progress.seconds})
                for path in self.folder.unfinished:
                    path.unlink(missing_ok=True)
        group.meet()
        return run

    def _followed(self) -> AbstractContextManager[Follower | None]:
        if self.options.follow == "none" or not processes().first:
            return nullcontext()
        return following(self.options.follow, self.folder.path, self._saved(), self.folder.checkpoint.is_file())

    def _begin(self) -> None:
        folder = self.folder
        if self.options.force:
            folder.restart()
        log.info("%s\n%s", self.split.summary, folder.path)
        folder.warn_of_earlier(type(self.method))
        untested = set(range(len(self.split.classes))) - {item.label for item in self.split.test}
        if untested:
            log.warning("%d of %d classes have no test image, the figures are of the others: %s", len(untested),
                        len(self.split.classes), few(self.split.classes[label] for label in sorted(untested)))
        write_text(folder.path / "config.yaml", yaml.safe_dump(self._saved(), sort_keys=False, allow_unicode=True))
        for name, split in self.splits.items():
            write_split(folder.path / name, split, self.dataset.source, seed=self.seed, shots=self.shots,
                        hashes=self.hashes)

    def _saved(self) -> dict[str, Any]:
        """config.yaml: the options of the run, for people and for the commands that read its data and text again."""
        method, backbone, data = self.header.method, self.header.backbone, self.dataset
        return {"method": {"name": method.name, **method.options}, "recipe": asdict(self.recipe),
                "backbone": {"name": backbone.name, "loader": backbone.loader}, "text": dict(self.text),
                "data": {"name": data.name, "loader": data.loader}, "features": asdict(self.options.features),
                "precision": self.header.precision or "auto", "protocol": self.protocol, "shots": self.shots,
                "seed": self.seed, "val": bool(self.split.val), "selection": self.options.selection,
                **(self.new.saved if self.new else {}), **self.options.calibration}

    def _conclude(self, train: FeatureSource | None, val: FeatureSource | None, tests: list[FeatureSource],
                  progress: Progress, calibration: Calibration | None) -> Run:
        folder, (test, *more) = self.folder.path, tests
        chances, classes, tree = probabilities(self.method, self.clip, test), self.split.classes, self.header.hierarchy
        domains = by_domain(chances, test.labels, classes, tree) if self.header.joint else {}
        summary = write_scores(folder, test.ids, test.labels, chances, classes, hierarchy=tree, more=domains)
        summary |= self.new.score(self.method, self.clip, test, more[0], folder, summary["top1"]) if self.new else {}
        nearest = write_nearest(folder, test, train, classes)
        if any(cosine > AS_COPIES or (cosine > ALIKE and ahead > APART) for cosine, ahead, *_ in nearest):
            from xrvlm.data.images import warn_of_near_copies
            warn_of_near_copies(nearest, self.dataset.source)
        if val is not None and self.options.selection == "val":      # of the model that is kept: a search goes by it
            summary["val_top1"] = top1(probabilities(self.method, self.clip, val), val.labels)
        write_losses(folder, progress.losses)
        summary |= {} if calibration is None else write_figures(self, calibration, test)
        header = replace(self.header, metrics=summary, calibration=calibration and calibration.header)
        classifier = Classifier(self.clip, self.method, header, calibration)
        classifier.save(folder)
        record = RunRecord.of(
            header, self.method, self.identity, recipe=self.recipe.name, data=self.dataset.name,
            world=self.dataset.world, label_budget=label_budget(self.split), selection=self.options.selection,
            metrics={name: value for name, value in summary.items() if name != "images"},
            train_seconds=progress.seconds, features="cached" if isinstance(train or test, FeatureBank) else "online",
            run=folder.name, tested=self.tested[:16], protocol=self.protocol, images=len(test.ids),
            classes=len(classes), extra_images=len(self.extra), **domains)
        write_json(folder / "record.json", asdict(record))
        append_record(folder.parent, record)
        return Run(folder, record, classifier)

    def source(self, items: tuple[Item, ...], views: int, needs: frozenset[Need] | None = None) -> FeatureSource:
        return feature_source(self.clip, self.dataset.source, items, self.options.features,
                              needs=needs or self.method.needs, views=views, seed=self.seed,
                              workers=self.options.workers)
