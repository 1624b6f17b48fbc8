"""What a run is and what it leaves: its identity, its folder, its line in results.jsonl."""

import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xrvlm import files
from xrvlm.data.dataset import Dataset, Split, sample_shots
from xrvlm.errors import UserError, check_fields, fits, option, plain_text
from xrvlm.evaluation.domains import Figures
from xrvlm.evaluation.metrics import METRICS, SHOWN, write_rows
from xrvlm.evaluation.unknown import Score
from xrvlm.features.bank import FEATURES_REVISION
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.calibration import Calibrate, ScalingKind
from xrvlm.inference.classifier import ModelHeader
from xrvlm.methods.base import Method
from xrvlm.training.fit import TRAINING_REVISION, Selection
from xrvlm.training.following import Follow, follower_of

log = logging.getLogger(__name__)
PACKAGES = ("xrvlm", "torch", "open_clip_torch", "transformers", "scikit-learn")
COUNTS = ("label_budget", "learned_parameters", "images", "classes", "extra_images")     # none is below 0
LONGEST_NAME, LONGEST_PATH = 255, 4000   # bytes: systems take no more
LOSSES = "losses.csv"


def _is_too_long(path: str) -> bool:
    name = max(len(name.encode(errors="replace")) for name in path.split("/"))
    return name > LONGEST_NAME or len(path.encode(errors="replace")) > LONGEST_PATH


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is done; `runs`, `workers`, `force` and `follow` have no influence on its result."""

    runs: Path | str = "runs"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    selection: Selection = "last"        # or "val": the epoch that is best on the validation images
    workers: int = 0                     # processes that decode images
    force: bool = False                  # start again where a run is finished or unfinished
    calibrate: Calibrate = "none"        # "folds" or "val": which labelled images calibrate the model
    scaling: ScalingKind = "temperature"     # or "vector": how its logits are scaled
    known_by: Score = "energy"           # the score by which an image is one of the classes, or unknown
    follow: Follow = "none"              # where its training is shown, or a `Follower` of your own

    def __post_init__(self):
        check_fields(self)
        if self.follow != "none":
            follower_of(self.follow)     # its package is there, before any work

    @property
    def calibration(self) -> dict[str, str]:     # of a calibrated run alone: for its identity and for config.yaml
        return {} if self.calibrate == "none" else {
            name: getattr(self, name) for name in ("calibrate", "scaling", "known_by")}


def labelled(dataset: Dataset, split: Split, method: Method, shots: int | None, seed: int, val: bool,
             options: RunOptions) -> Split:
    """What the run reads the labels of (nothing, where it neither learns nor calibrates) and what it is tested on."""
    if not split.test:
        raise UserError(f"{dataset.name} has no image left to test on: give a class two images, or a test set")
    if not method.learns and options.calibrate == "none":
        return replace(split, train=(), val=())
    found = sample_shots(split, shots, seed, val or "val" in (options.selection, options.calibrate))
    if options.selection == "val" and not found.val:
        raise UserError(f"{option('selection', 'val')} needs validation images, and the shots take all: use fewer "
                        f"{option('shots')}, or {option('selection', 'last')}")
    if method.learns:
        return replace(found, train=(*found.train, *split.extra))
    return replace(found, **{"val" if options.calibrate == "folds" else "train": ()})


@dataclass(frozen=True)
class Identity:
    """What decides the result of a run. Equal identities: the same run, which is not done twice.

    `options` holds the method by its registry name, every option that is not at its default, the text of the classes,
    the tower's fingerprint, a hash of the test images, and revisions: whole numbers, raised where a change of the code
    changes numbers (`Method.revision`, `TRAINING_REVISION`, `FEATURES_REVISION`). No source code is hashed.
    """

    options: Mapping[str, Any]           # equal along a row of a table whose columns are shots
    shots: int | str
    seed: int
    images: Sequence[Any]                # fingerprints of the splits and the hash of every image

    @classmethod
    def of(cls, header: ModelHeader, method: type[Method], shots: int | str, seed: int, images: Sequence[Any],
           settings: Mapping[str, Any], **more: Any) -> "Identity":
        """The identity of a run whose model has this header; `settings` are dataclasses such as the recipe."""
        backbone = {key: value for key, value in asdict(header.backbone).items() if key != "loader"}
        return cls({"method": {"name": header.method.name, "options": header.method.changed(method)},
                    "revisions": revisions_of(method), "backbone": backbone, "classes": not_at_default(header.classes),
                    **{name: not_at_default(value) for name, value in settings.items()}, **more}, shots, seed, images)

    @cached_property
    def series(self) -> str:
        """Hash of everything but shots, seed and images: what may be joined over shots."""
        return files.digest(dict(self.options))

    @cached_property
    def setting(self) -> str:
        """Hash of everything but seed and images: what may be averaged over seeds."""
        return files.digest({**self.options, "shots": self.shots})

    @cached_property
    def key(self) -> str:
        """Hash of everything; the run's folder ends in its first ten letters."""
        return files.digest([self.setting, self.seed, *self.images])


def revisions_of(method: type[Method]) -> dict[str, int]:
    return {"method": method.revision, "training": TRAINING_REVISION, "features": FEATURES_REVISION}


def not_at_default(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, its `name` aside: a new field changes no identity."""
    found = {}
    for each in fields(settings):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        value = getattr(settings, each.name)
        if each.name != "name" and value != default:
            found[each.name] = value
    return found


@dataclass(frozen=True)
class RunRecord:
    """One line of results.jsonl. The types of the fields are checked when a line is read."""

    method: str                 # registry name
    label: str                  # the name that tables show
    head: str | None            # relation head, where the method has one
    prompts: str | None         # "names", "descriptions", "learned", "part_descriptions" ...
    recipe: str | None
    data: str
    world: int | None           # which of the drawn worlds, where the data are drawn
    backbone: str
    shots: int | str            # images a class; "all"; 0 is zero-shot
    seed: int
    label_budget: int           # labelled images used, validation images included
    transductive: bool
    selection: str | None       # "last" or "val"
    split: str                  # its fingerprint
    metrics: dict               # those of METRICS, as fractions of 1, those that its protocol has beside, and others
    train_seconds: float | int
    learned_parameters: int
    features: str | None        # "cached" or "online"
    versions: dict
    run: str                    # the run's folder, relative to the folder of results.jsonl
    setting: str = ""           # Identity.setting
    series: str = ""            # Identity.series
    options: dict = field(default_factory=dict)    # of the method, where they are not at their defaults
    protocol: str = "few_shot"  # or "base_to_new", "open_set", "transfer" (of other data), "all_images" (no test set)
    tested: str = ""            # hash of the test images
    trained_on: str = ""        # of a transfer: the data set that the run learned from
    images: int = 0             # test images, 0 in lines of older versions; with new classes, those of the base classes
    classes: int = 0            # that they were scored among
    calibrate: str | None = None    # "folds" or "val", and how the logits are scaled
    revisions: dict = field(default_factory=dict)  # see Identity; empty for runs from before there were any
    extra_images: int = 0       # that were trained on beside the label budget, see data/extra.py
    domains: Figures = field(default_factory=dict)      # of a joint run, see evaluation/domains.py

    def __post_init__(self) -> None:
        wrong = [each.name for each in fields(self) if not fits(getattr(self, each.name), each.type)]
        wrong += [f"metrics.{name}" for name in (*METRICS, *self.shown) if "metrics" not in wrong
                  and not (fits(self.metrics.get(name), float) and 0 <= self.metrics[name] <= 1)]
        wrong += ["shots"] if self.shots != "all" and not (fits(self.shots, int) and int(self.shots) >= 0) else []
        wrong += ["train_seconds"] if "train_seconds" not in wrong and not 0 <= self.train_seconds < math.inf else []
        if "run" not in wrong and (files.leads_out(self.run) or _is_too_long(self.run)):
            wrong.append("run")
        wrong += [name for name in COUNTS if name not in wrong and getattr(self, name) < 0]
        plain_text(asdict(self))
        if wrong:
            raise ValueError(f"missing or of the wrong type: {', '.join(dict.fromkeys(wrong))}")

    @classmethod
    def of(cls, header: ModelHeader, method: Method, identity: Identity, **more: Any) -> "RunRecord":
        """The record of a finished run; `more` are the fields that header, method and identity do not tell."""
        kind, calibration = type(method), header.calibration
        return cls(method=header.method.name, label=method.label, head=method.head, prompts=method.prompts,
                   backbone=header.backbone.name, shots=identity.shots, seed=identity.seed, versions=versions(),
                   transductive=method.transductive, split=header.split, learned_parameters=method.learned_parameters,
                   setting=identity.setting[:16], series=identity.series[:16], revisions=revisions_of(kind),
                   options=header.method.changed(kind), calibrate=calibration and calibration.in_words, **more)

    @property
    def shown(self) -> dict[str, str]:
        """The metrics that a table shows of this run, with their headings."""
        return SHOWN.get(str(self.protocol), METRICS)      # before its type is checked


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run and what it says of the run's state."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.unfinished[0]

    @property
    def unfinished(self) -> tuple[Path, Path]:           # the state of its training, and the folds that are finished
        return self.path / "last.safetensors", self.path / "folds.safetensors"

    def finished(self) -> RunRecord | None:
        """The record, where the run is finished."""
        there = all((self.path / name).exists() for name in ("record.json", "model.safetensors"))
        return read_record(self.path / "record.json") if there else None

    def restart(self) -> None:
        """Forget the record and the checkpoint; all other files are replaced when the run ends."""
        for path in (self.path / "record.json", *self.unfinished):
            path.unlink(missing_ok=True)

    def warn_of_earlier(self, method: type[Method]) -> None:
        """Say that runs of the same name and an earlier revision are neither continued nor taken for this one."""
        stem, revisions = self.path.name.rpartition("-")[0], revisions_of(method)
        for other in sorted(self.path.parent.glob(f"{stem}-*/record.json")):
            try:
                before = read_record(other).revisions
            except UserError:
                continue
            if other.parent != self.path and before != revisions:
                changed = ", ".join(f"{name} {before.get(name, 'none')} -> {number}" for name, number in
                                    revisions.items() if before.get(name) != number)
                log.warning("%s is of an earlier revision (%s), whose numbers may differ: trained anew",
                            other.parent, changed)


def versions() -> dict[str, str]:
    """The packages that a result may depend on, beside its options."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def append_record(folder: Path, record: RunRecord) -> None:
    """Add the record to `folder/results.jsonl`, in place of an older line of the same run.

    Lines that cannot be read never stop it: they are kept as they are, with a warning.
    """
    path, line = folder / files.RESULTS, json.dumps(asdict(record))   # ASCII: a line torn anywhere is UTF-8

    def change(text: str) -> str:
        kept = [old for old in text.split("\n") if old.strip() and _run_of(old, path) != record.run]
        return "\n".join([*kept, line, ""])

    files.rewrite_locked(path, change)


def read_record(path: Path) -> RunRecord:
    """The record.json of a run's folder; UserError where it is damaged."""
    fix = f"start this run again with {option('force', True)}"
    saved = files.read_json(path, fix)
    try:
        return RunRecord(**saved)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {fix}") from error


def contradiction(record: RunRecord, folder: Path) -> str | None:
    """What record.json of the run in `folder` says otherwise than `record`; None for nothing, or where it is missing:
    results.jsonl may travel alone.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    try:
        own = read_record(path)
    except UserError as error:
        return str(error)
    same = replace(own, run=record.run, train_seconds=record.train_seconds, versions=record.versions)
    other = [each.name for each in fields(record) if getattr(record, each.name) != getattr(same, each.name)]
    return f"{path} says otherwise ({', '.join(other)}) than the run's line in {files.RESULTS}" if other else None


def _run_of(line: str, path: Path) -> str | None:
    try:
        return files.parsed(line)["run"]
    except (ValueError, TypeError, KeyError):
        log.warning("%s holds a damaged line, which is kept as it is: %s", path, ascii(line)[:60])
        return None


def write_losses(folder: Path, losses: Sequence[dict]) -> None:
    """losses.csv: epoch, loss, learning_rate and, where there is one, val_top1. No file where there was no epoch."""
    if losses:
        more = ["val_top1"] if any("val_top1" in row for row in losses) else []
        write_rows(folder / LOSSES, ["epoch", "loss", "learning_rate", *more], losses)
