"""A run that was saved: its model, its images and the text of its classes, found from its folder alone."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.data.dataset import SUBSETS, Dataset, Item, Split
from xrvlm.errors import UserError, fits, option, plain_text
from xrvlm.features.source import FeatureSettings
from xrvlm.files import as_file_name, digest, file_text, folder_of, is_writable, leads_out, read_json, user_path
from xrvlm.inference.classifier import Classifier, ModelHeader, model_file, read_model
from xrvlm.inference.nearest import TrainingImages
from xrvlm.text.class_names import check_no_permutation, is_list, name_classes
from xrvlm.text.class_text import few, text_maker
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)
LATEST = "latest"


class SavedRun:
    """The run in a folder, or of a model file. `run` may be "latest": the newest finished run in the folder `runs`.

    "other/latest" is the newest in the folder other, "hf:owner/name" a model on the hub. UserError where there is none.
    `home` is where results about the run go.
    """

    def __init__(self, run: str | Path, runs: str | Path = "runs"):
        latest, place = is_latest(run), runs if str(run) == LATEST else Path(run).parent
        on_hub = str(run).startswith("hf:")
        self.model = newest_run(user_path(place)) if latest else model_file(run) if on_hub else user_path(run)
        self.folder = self.home = folder_of(self.model)
        if on_hub:                           # its folder is the hub's cache: results go to the working folder
            self.home = user_path(as_file_name(str(run)[3:].replace("/", "-")))
        if latest:
            log.info("latest: %s", self.folder)

    @property
    def header(self) -> ModelHeader:
        """What the model's file says of it; UserError where it cannot be read."""
        return read_model(model_file(self.model))[0]

    def classifier(self, clip: FrozenCLIP | None = None, *, device: DeviceName = "auto",
                   precision: PrecisionName = "auto") -> Classifier:
        """The model, on `clip` or on the tower that it names. `precision="auto"`: that which the run was given."""
        return Classifier.load(self.model, clip, device=device, precision=precision)

    def dataset(self, class_names: Any = None) -> Dataset:
        """The run's own images, split as they were; `class_names` are other names for its classes."""
        split = read_split(self.folder / "split.json")
        return replace(self._data(), split=replace(split, classes=self._named(split.classes, class_names)))

    def _named(self, present: Sequence[str], class_names: Any) -> tuple[str, ...]:
        """Other names for the classes that the run calls `present`.

        A list is in the order in which the run's data set reads one, which is that of its folders and need not be that
        of `present`; a mapping is from `present`.
        """
        options = self._loader()[1] if is_list(class_names) else {}
        if "class_names" not in options:
            return name_classes(present, class_names)
        before = self._data(class_names=options["class_names"]).split.classes
        after = self._data(class_names=class_names).split.classes
        check_no_permutation(before, after)
        renamed = dict(zip(before, after, strict=True))
        if unknown := [name for name in present if name not in renamed]:
            raise UserError(f"the run's images have changed: of its classes {few(map(repr, unknown))} cannot be found; "
                            f"give {option('data.class_names')} as {{present name: other name}}")
        return tuple(renamed[name] for name in present)

    @property
    def source(self) -> ImageSource:
        """Where the run's images are read from."""
        return self._data(skip_damaged=False).source

    def for_classes(self, classifier: Classifier, names: Sequence[str], text: Mapping[str, Any],
                    root: Path | None) -> Classifier:
        """The run's model for the classes `names`, with the options `text`, and for the rest those of the run.

        Files of sentences are looked for as they are named, then in `root`, then beside the run's images.
        """
        given = {name: value for name, value in text.items() if value is not None}
        own = self._loader()[1].get("root") if self.options else None
        home = user_path(own).resolve() if isinstance(own, str) else None
        before = {name: _below(value, home) for name, value in (self.options.get("text") or {}).items()
                  if value is not None}
        if "parts" in given and not classifier.header.classes.parts:
            raise UserError(f"{option('text.parts')} is not read: this run was made without part descriptions; leave "
                            "it out")
        if "templates" in given:
            before.pop("descriptions", None)         # they would take precedence over the templates
        make = text_maker(before | given, [root, home])
        try:
            classifier.method.check_open()
            return classifier.for_classes(make(names))
        except UserError as error:
            new = [name for name in names if name not in classifier.names]
            unknown = f"{len(new)} of {len(names)} classes are unknown to this run ({few(map(repr, new))}): "
            raise UserError(f"{unknown if new else ''}{error}") from error

    def training_images(self, clip: FrozenCLIP, *, workers: int = 0) -> TrainingImages | None:
        """What the run was trained on, on `clip`, its tower, with features from its bank where that is still there.

        None where it was trained on no image, or its images cannot be read; a line says why.
        """
        try:                             # the folder that a file names is not read: it may be anyone's
            if not self.options:
                raise UserError(f"{self.folder} has no config.yaml that says where its images were")
            settings = FeatureSettings(**{**self.options["features"], "cache": None, "mode": "cached"})
            views, seed = settings.views if self.options["recipe"]["epochs"] else 0, int(self.options["seed"])
            return TrainingImages.of(clip, self.dataset(), settings, views=views, seed=seed, workers=workers)
        except (UserError, KeyError, TypeError, ValueError) as error:
            log.info("the nearest training images are left out: %s", error)
            return None

    @cached_property
    def options(self) -> dict[str, Any]:
        """config.yaml of the run; empty where there is none."""
        path = self.folder / "config.yaml"
        if not path.exists():
            return {}
        try:
            saved = plain_text(yaml.safe_load(file_text(path)))
        except (yaml.YAMLError, OSError, ValueError, RecursionError):
            saved = None
        if not isinstance(saved, dict) or not _is_configuration(saved):
            raise UserError(f"{path} is damaged; delete it, and name the images with {option('data.root')}")
        return saved

    def every_image(self) -> Dataset:
        """The run's data set as it was before shots were drawn from it."""
        return self._data()

    def _data(self, **changes: Any) -> Dataset:
        from xrvlm.data.registry import load_dataset

        name, options = self._loader()
        options |= {key: value for key, value in {"class_names": None, **changes}.items() if key in options}
        try:
            digest(options)
        except (TypeError, ValueError) as error:     # YAML knows sets and dates
            raise UserError(f"{self.folder / 'config.yaml'} has options of the data that are none ({error}): name the "
                            f"images with {option('data.root')}") from error
        return _loaded(load_dataset, name, Frozen(options))

    def _loader(self) -> tuple[str, dict[str, Any]]:
        """The registry name of the loader of the run's data set, and its options."""
        from xrvlm.data.registry import FORMER

        data = self.options.get("data", {})
        if isinstance(data.get("loader"), dict):
            return data["loader"]["name"], dict(data["loader"]["options"])
        if data.get("_target_") in FORMER:
            return FORMER[data["_target_"]], {key: value for key, value in data.items() if not key.startswith("_")}
        raise UserError(f"{self.folder} does not say where its images were; name them with {option('data.root')}")


def inside(folder: Path, name: str) -> Path:
    """Where results of runs in `folder` go; UserError where a link in it, of anyone, would lead them out of it."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path} is a link that leads out of {folder}, and files there might be replaced: remove it")
    return path


def check_writable(folder: Path, key: str = "out") -> None:
    """UserError before the work, which may take minutes, where no file can be written in `folder`, the option `key`."""
    if not is_writable(folder / "file"):
        raise UserError(f"cannot write to {folder}: name another folder with {option(key, 'DIR')}")


def is_latest(run: str | Path) -> bool:
    """Whether `run` means the newest run: "latest", or "other/latest" where there is no file of that name."""
    return str(run) == LATEST or (Path(run).name == LATEST and not user_path(run).exists())


def _is_configuration(saved: dict[str, Any]) -> bool:
    """Whether what is read of a config.yaml has the types that are read here."""
    if not isinstance(saved.get("data"), dict):
        return False
    text, loader = saved.get("text") or {}, saved["data"].get("loader")
    named = loader is None or (isinstance(loader, dict) and isinstance(loader.get("name"), str)
                               and isinstance(loader.get("options"), dict))
    return named and isinstance(text, dict) and all(value is None or isinstance(value, str) for value in text.values())


def _below(value: str, folder: Path | None) -> str:
    """A file of the folder by its name in it, which other images may have beside them, too."""
    path = Path(value)
    return str(path.relative_to(folder)) if folder is not None and path.is_relative_to(folder) else value


class Frozen(dict):
    """Options as a key of a cache."""

    def __hash__(self) -> int:    # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(digest(self))


@lru_cache(maxsize=16)               # most runs of a report share their data
def _loaded(load: Any, name: str, options: Frozen) -> Dataset:
    return load(name, **options)


def source_of(folder: Path) -> ImageSource:
    """Where the images of the run in `folder` are read from; UserError where it does not say."""
    return SavedRun(folder).source


def read_split(path: Path) -> Split:
    """The split that `write_split` wrote; UserError if the file is damaged or was edited."""
    record = split_record(path)
    labels = {name: label for label, name in enumerate(record["classes"])}
    split = Split(tuple(labels), *(tuple(Item(entry["path"], labels[entry["class"]]) for entry in record[subset])
                                   for subset in SUBSETS))
    if split.fingerprint != record.get("fingerprint"):
        raise UserError(f"{path} was changed after it was written; {split_fix()}")
    return split


def split_record(path: Path) -> dict[str, Any]:
    """The content of a split.json, of anyone; UserError where it is none. The hashes in it are not checked."""
    record = read_json(path, split_fix())
    try:
        plain_text(record)
        entries = [entry for subset in SUBSETS for entry in record[subset]]
        texts = [*record["classes"], *(entry[key] for entry in entries for key in ("path", "class"))]
        if not fits(record["classes"], list) or not fits(texts, list[str]):
            raise ValueError("a class or a path that is no text")
        if unknown := {entry["class"] for entry in entries} - {*record["classes"]}:
            raise ValueError(f"a class that is not among the classes: {min(unknown)!r}")
        if any(leads_out(entry["path"]) for entry in entries):
            raise ValueError("an image outside of the folder of the images")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a split: {error!r} in it; {split_fix()}") from error
    return record


def split_fix() -> str:
    """The fix that the error of a damaged split.json ends in."""
    return f"give the command of that run again with {option('force', True)}"


def recorded_hashes(path: Path) -> dict[str, dict[str, str]]:
    """{subset: {id: sha256 of the image file's bytes}} in a split.json; UserError if it is damaged."""
    record = split_record(path)
    found = {subset: {entry["path"]: entry.get("sha256") for entry in record[subset]} for subset in SUBSETS}
    for hashes in found.values():
        for item, value in hashes.items():
            if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
                raise UserError(f"{path} is damaged: {item} has no sha256; {split_fix()}")
    return found


def newest_run(runs: Path) -> Path:
    """The folder of the run in `runs` that was finished last; UserError where there is none."""
    records = sorted(runs.rglob("record.json"), key=lambda path: path.stat().st_mtime)
    finished = [path.parent for path in records if (path.parent / "model.safetensors").exists()]
    if not finished:
        raise UserError(f"there is no finished run in {runs}: name the folder of one, or run `xrvlm adapt` first")
    return finished[-1]
