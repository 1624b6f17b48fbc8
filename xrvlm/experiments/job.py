"""One run from what it is to what it leaves: its identity, its folder, training, scores and record."""

import logging
import platform
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, Item, Split, hash_images, label_budget, write_split
from xrvlm.distributed import Group, processes
from xrvlm.errors import UserError, unknown
from xrvlm.experiments.protocols import NewClasses
from xrvlm.experiments.record import RunRecord, append_record, read_record, write_losses, write_scores
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, FeatureSource, feature_source, without_labels
from xrvlm.files import digest, user_path, write_json, write_text
from xrvlm.inference.classifier import Classifier, changed_options, method_code
from xrvlm.methods.base import ADAMW, FAST, Method, Recipe, probabilities
from xrvlm.text.class_text import few
from xrvlm.training.fit import Progress, Selection, fit

log = logging.getLogger(__name__)
BUSY = "another process is at this run; wait for it, or choose another runs=FOLDER"


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is done; only `features` and `selection` have a say in its result."""

    runs: Path | str = "runs"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    selection: Selection = "last"        # or "val": the epoch that is best on the validation images
    workers: int = 0                     # processes that decode images
    force: bool = False                  # start again where a run is finished or unfinished
    config: str | None = None            # the composed configuration, kept beside the result

    def __post_init__(self):
        if self.selection not in ("last", "val"):
            raise unknown("selection", self.selection, ("last", "val"))


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its line in results.jsonl, and the adapted model."""

    folder: Path
    record: RunRecord
    classifier: Classifier

    @property
    def accuracy(self) -> float:
        """Top-1 on the test part, 0..1; of a base-to-new run, that of the base classes."""
        return self.record.metrics["top1"]


@dataclass(frozen=True)
class Job:
    """One run before it is done: everything its result depends on, and where the result goes."""

    clip: FrozenCLIP
    dataset: Dataset
    split: Split
    method: Method
    recipe: Recipe
    shots: int | str
    seed: int
    about: dict[str, Any]
    options: RunOptions
    new: NewClasses | None = None        # of a base-to-new run
    whole: bool = False                  # scored on all images of a data set without a test part

    @cached_property
    def hashes(self) -> dict[str, str]:
        split = self.new.whole if self.new else self.split
        return processes().from_first(lambda: hash_images(split, self.dataset.source))

    @cached_property
    def setting(self) -> str:
        """A hash of all that the result depends on but the seed and the images that it draws."""
        return digest(self._options | {"shots": self.shots})

    @property
    def _options(self) -> dict[str, Any]:
        """The setting but the shots: equal over a line of a table whose columns are shots."""
        about = {name: value for name, value in self.about.items() if name != "split"}
        return {"about": about | {"backbone": about["backbone"] | {"loader": None}}, "text": self.clip.text_path,
                "precision": self.clip.precision, "recipe": asdict(self.recipe),
                "features": self.options.features.identity, "selection": self.options.selection,
                "val": bool(self.split.val), "tested": self._tested,
                "code": method_code(type(self.method)), **(self.new.setting if self.new else {})}

    @cached_property
    def _tested(self) -> str:
        """A hash of the test images: data sets of one name are told apart by it."""
        parts = [self.split.test, *([self.new.test] if self.new else [])]
        return digest([[self.hashes[item.id] for item in part] for part in parts])

    @cached_property
    def identity(self) -> str:
        """A hash of all that the result depends on: the setting, the seed, which images and what is in them."""
        fingerprints = [split.fingerprint for split in self._splits.values()]
        return digest([self.setting, self.seed, *fingerprints, self.hashes])

    @property
    def _splits(self) -> dict[str, Split]:
        """By the file that keeps it."""
        return {"split.json": self.split} | ({"split_all.json": self.new.whole} if self.new else {})

    @property
    def folder(self) -> Path:
        shots = f"{self.shots}shot" if isinstance(self.shots, int) else "all"
        name = "-".join([_method_name(self.about), self.dataset.name[:60], *(["base_to_new"] if self.new else []),
                         shots, f"seed{self.seed}", self.identity[:10]])
        return user_path(self.options.runs) / name.replace(" ", "_").replace("/", "_")

    def done(self) -> Run:
        """The run as it was finished before, or done now. Of several processes the first writes, the others read."""
        group, run = processes(), None
        group.check_same(self.identity, "images or settings")
        if group.from_first(self._to_do):
            with group.alone(self.folder / ".lock", BUSY):
                if group.from_first(self._to_do):      # another sweep may have finished it just now
                    run = self._train(group, self.folder / "last.safetensors")
        if run is not None:
            return run
        if (record := self._found()) is None:
            raise UserError(f"one of the processes cannot see {self.folder}: use a folder on a disk that they share")
        if group.first:
            append_record(self.folder.parent, record)     # in case it was stopped just before its line was written
            log.info("already finished: %s (force=true starts again)", self.folder)
        return Run(self.folder, record, Classifier.load(self.folder, self.clip))

    def _to_do(self) -> bool:
        return self.options.force or self._found() is None

    def _found(self) -> RunRecord | None:
        path = self.folder / "record.json"
        if not path.exists() or not (self.folder / "model.safetensors").exists():
            return None
        return read_record(path)

    def _train(self, group: Group, checkpoint: Path) -> Run | None:
        """Go on where the run was stopped. The first process alone has a result, once all are done."""
        if group.first:
            self._begin(checkpoint)
        group.meet()
        with group.together():
            views = self.options.features.views if self.recipe.epochs else 0
            train = self._source(self.split.train, views) if self.method.learns else None
            val = self._source(self.split.val, 0) if self.split.val else None
        run, seconds, progress = None, 0.0, Progress()
        if group.first or (self.method.splits_batches and self.recipe.epochs):
            start = time.perf_counter()
            self.method.prepare(self.clip, train, val=val)
            seconds = time.perf_counter() - start
            if train is not None and self.recipe.epochs:
                progress = fit(self.method, self.clip, train, self.recipe, seed=self.seed, val=val,
                               selection=self.options.selection, checkpoint=checkpoint, identity=self.identity)
        with group.together():
            tests = [self._source(part.test, 0) for part in (self.split, self.new) if part is not None]
        if group.first:
            if self.method.transductive:
                start = time.perf_counter()
                self.method.transduce(self.clip, without_labels(tests[0]), train, val)
                seconds += time.perf_counter() - start
            run = self._conclude(train, tests, progress, seconds + progress.seconds)
            checkpoint.unlink(missing_ok=True)
        group.meet()
        return run

    def _begin(self, checkpoint: Path) -> None:
        if self.options.force:
            for path in (self.folder / "record.json", checkpoint):
                path.unlink(missing_ok=True)
        log.info("%s", self.folder)
        untested = set(range(len(self.split.classes))) - {item.label for item in self.split.test}
        if untested:
            log.warning("%d of %d classes have no test image, the figures are of the others: %s", len(untested),
                        len(self.split.classes), few(self.split.classes[label] for label in sorted(untested)))
        if self.options.config is not None:
            write_text(self.folder / "config.yaml", self.options.config)
        for name, split in self._splits.items():
            write_split(self.folder / name, split, self.dataset.source, seed=self.seed, shots=self.shots,
                        hashes=self.hashes)

    def _conclude(self, train: FeatureSource | None, tests: list[FeatureSource], progress: Progress,
                  seconds: float) -> Run:
        test = tests[0]
        summary = write_scores(self.folder, test.ids, test.labels, probabilities(self.method, self.clip, test),
                               self.split.classes)
        if self.new:
            summary |= self.new.score(self.method, self.clip, test, tests[1], self.folder, summary["top1"])
        if progress.losses:
            write_losses(self.folder, progress.losses)
        classifier = Classifier(self.clip, self.method, self.about | {"metrics": summary})
        classifier.save(self.folder)
        cached = isinstance(train or test, FeatureBank)
        record = self._record(summary, seconds, "cached" if cached else "online")
        write_json(self.folder / "record.json", asdict(record))
        append_record(self.folder.parent, record)
        return Run(self.folder, record, classifier)

    def _source(self, items: tuple[Item, ...], views: int) -> FeatureSource:
        return feature_source(self.clip, self.dataset.source, items, self.options.features, needs=self.method.needs,
                              views=views, seed=self.seed, workers=self.options.workers)

    def _record(self, summary: dict[str, float], seconds: float, features: str) -> RunRecord:
        method, metrics = self.method, {name: value for name, value in summary.items() if name != "images"}
        return RunRecord(
            method=_method_name(self.about), label=method.label, head=method.head, prompts=method.prompts,
            recipe=self._recipe_name, data=self.dataset.name, world=self.dataset.world, backbone=self.clip.name,
            shots=self.shots, seed=self.seed, label_budget=label_budget(self.split), transductive=method.transductive,
            selection=self.options.selection, split=self.split.fingerprint, metrics=metrics, train_seconds=seconds,
            learned_parameters=method.learned_parameters,
            features=features, versions=versions(), run=self.folder.name,
            setting=self.setting[:16], series=digest(self._options)[:16],
            options=changed_options(self.about["method"]), tested=self._tested[:16],
            protocol="base_to_new" if self.new else "all_images" if self.whole else "few_shot")

    @property
    def _recipe_name(self) -> str:
        """The recipe's name, marked where its values are no longer those of the recipe of that name."""
        known = {recipe.name: recipe for recipe in (FAST, ADAMW, self.method.recipe)}
        changed = self.recipe != known.get(self.recipe.name, self.recipe)
        return f"{self.recipe.name} (changed)" if changed else self.recipe.name


def versions() -> dict[str, str]:
    """What a result may depend on beside its settings."""
    packages = ("xrvlm", "torch", "open_clip_torch", "transformers", "scikit-learn")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def _method_name(about: dict[str, Any]) -> str:
    """The last module of the method's dotted path: "xr_vlm"."""
    return about["method"]["target"].split(".")[-2]
