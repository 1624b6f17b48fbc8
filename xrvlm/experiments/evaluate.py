"""Score a finished run again: on its own test images, or on other data, of new classes too."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.data.dataset import Dataset, Item
from xrvlm.errors import UserError, option, typed
from xrvlm.evaluation.domains import by_domain
from xrvlm.evaluation.metrics import METRICS_FILE, summarise, write_scores
from xrvlm.experiments.protocols import Among, transfer_record
from xrvlm.experiments.saved import SavedRun, inside, recorded_hashes
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.files import as_file_name, digest, is_writable
from xrvlm.inference.classifier import Classifier
from xrvlm.methods.base import probabilities
from xrvlm.text.class_text import few
from xrvlm.views import ImageSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run on some images, and the folder with their files."""

    folder: Path
    data: str
    metrics: dict[str, float]            # as in metrics.json; fractions of 1
    classes: int                         # that the images were scored among
    note: str                            # which of the classes were new or masked; "" where all are the run's


@typed
def evaluate(run: str | Path, dataset: Dataset | None = None, *, among: Among = "run",
             class_names: str | Sequence[str] | Mapping[str, str] | None = None,
             text: Mapping[str, Any] | None = None, features: FeatureSettings | None = None, workers: int = 0,
             clip: FrozenCLIP | None = None, device: DeviceName = "auto", precision: PrecisionName = "auto",
             ) -> Evaluation:
    """Score the run in the folder `run` on `dataset`, or again on its own test images.

    Images that the run learned from are left out, with a warning that counts them. Of `dataset`, the test set is used
    where it has one, else all images. Classes that the run does not know are scored where its method can.

    Args:
        run: a run's folder, or "latest".
        among: of classes that the run knows, score among all classes of the run ("run"), or mask those that `dataset`
            does not have ("data").
        class_names: other names for the classes of the run's own test images.
        text: options of `class_text` for classes that the run was not trained on; None: the run's own.
        clip: the tower; None: the one that the run names, on `device` in `precision`.

    Raises:
        UserError: no images are left, the run does not say where its images are, or its method is bound to its classes.
    """
    saved, own = SavedRun(run), dataset is None
    classifier = saved.classifier(clip, device=device, precision=precision)
    dataset = _with_names(saved, class_names, classifier) if dataset is None else _without_names(dataset, class_names)
    items = dataset.split.test or (() if own else (*dataset.split.train, *dataset.split.val))
    if own:
        _check_there(dataset.source, items)
    hashes = {item.id: dataset.source.sha256(item.id) for item in items}
    tested = digest([hashes[item.id] for item in items])
    items = not_learned(saved.folder / "split.json", items, hashes, own)
    classifier, note, key = _turned(saved, classifier, dataset, among, text or {})
    # other images may have the same names: the folder's name depends on their contents
    name = f"{dataset.name}-{digest([*(item.id for item in items), tested, *key])[:10]}"
    folder = inside(saved.home, f"eval/{as_file_name(name)}")
    metrics = score(classifier, dataset, items, folder, features=features, workers=workers, among=among)
    scored = len(dataset.split.classes if among == "data" else classifier.names)
    if not own and saved.home == saved.folder and is_writable(folder / METRICS_FILE):
        transfer_record(saved.folder, folder, dataset, classifier.header.classes, metrics, among, scored, tested)
    return Evaluation(folder, dataset.name, metrics, scored, note)


def _check_there(source: ImageSource, items: Sequence[Item]) -> None:
    """UserError where test images of a run are no longer in its folder."""
    root = getattr(source, "root", None)
    gone = [] if root is None else [item.id for item in items if not (root / item.id).exists()]
    if gone:
        raise UserError(f"{len(gone)} of the run's {len(items)} test images are no longer in {root}, such as "
                        f"{few(gone, 2)}: put them back, or score the images that are there, with "
                        f"{option('data.root', str(root))}; those that the run learned from are left out")


def _with_names(saved: SavedRun, class_names: Any, classifier: Classifier) -> Dataset:
    """The run's own images; UserError where the run's files disagree on their classes."""
    dataset = saved.dataset(class_names)
    if class_names is None and dataset.split.classes != classifier.names:
        raise UserError(f"the model and the split.json in {saved.folder} name other classes: one of them was changed; "
                        f"adapt again with {option('force', True)}")
    return dataset


def _without_names(dataset: Dataset, class_names: Any) -> Dataset:
    if class_names is not None:
        raise UserError("class_names are other names for the run's own test images: name the classes of `dataset` "
                        "where it is loaded, as in image_folder(root, class_names=...)")
    return dataset


def _turned(saved: SavedRun, classifier: Classifier, dataset: Dataset, among: Among,
            text: Mapping[str, Any]) -> tuple[Classifier, str, list[Any]]:
    """The model for the classes of `dataset`, what to say of them, and what tells the evaluation from others."""
    names, known = dataset.split.classes, len(classifier.names)
    new = [name for name in names if name not in classifier.names]
    if new or any(value is not None for value in text.values()):       # other sentences make another model too
        turned = saved.for_classes(classifier, names, text, getattr(dataset.source, "root", None))
        note = f"{len(new)} of {len(names)} classes were not trained on"
        return turned, note, [asdict(turned.header.classes)]
    if len(names) == known:
        return classifier, "", []
    if among == "data":
        return classifier, f"among these {len(names)} of the run's {known} classes", ["masked"]
    note = f"among all {known} classes of the run ({option('among', 'data')}: among these {len(names)})"
    return classifier, note, []


@typed
def score(classifier: Classifier, dataset: Dataset, items: Sequence[Item], folder: Path, *,
          features: FeatureSettings | None = None, workers: int = 0, among: Among = "run") -> dict[str, float]:
    """Score a model on `items` of `dataset`, whose classes it must know, and write the figures to `folder`, where
    it can be written.

    `among="data"` masks the classes that `dataset` does not have, also of methods that are bound to their classes.
    """
    order = _class_order(dataset.split.classes, classifier.names)
    if not items:
        raise UserError(f"{dataset.name} has no images to evaluate on")
    mask, names = (order, dataset.split.classes) if among == "data" else (None, classifier.names)
    known = items if mask else [replace(item, label=order[item.label]) for item in items]
    clip, method = classifier.clip, classifier.method
    source = feature_source(clip, dataset.source, known, features or FeatureSettings(), needs=method.needs, views=0,
                            seed=0, workers=workers)
    found = probabilities(method, clip, source, mask)
    if not is_writable(folder / METRICS_FILE):       # as of a run on a disk that may only be read
        log.warning("the figures are not kept: %s cannot be written", folder)
        return summarise(found, source.labels, names, classifier.header.hierarchy)
    header = classifier.header
    return write_scores(folder, source.ids, source.labels, found, names, hierarchy=header.hierarchy,
                        more=by_domain(found, source.labels, names, header.hierarchy) if header.joint else {})


def _class_order(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """The index of each of the classes `wanted` in `known`; UserError that names those that are missing."""
    if missing := [name for name in wanted if name not in known]:
        raise UserError(f"{len(missing)} of {len(wanted)} classes are unknown to this model "
                        f"({few(map(repr, missing))}); it knows {len(known)}: {few(known)}; evaluate on a data set of "
                        "those, or adapt again")
    return [list(known).index(name) for name in wanted]


def not_learned(split_file: Path, items: Sequence[Item], hashes: Mapping[str, str], own: bool) -> tuple[Item, ...]:
    """The items whose images are not byte-identical to a training or validation image in `split_file`.

    `hashes` is {id: sha256 of the image file's bytes}. A warning counts the items that are left out, and of the run's
    `own` test images those that are no longer what it was measured on.
    """
    recorded = recorded_hashes(split_file)
    changed = {item.id for item in items if not own or hashes[item.id] != recorded["test"].get(item.id)}
    if changed and own:
        log.warning("%d of %d test images are not those that the run was measured on, such as %s: the figures are of "
                    "the images as they are now", len(changed), len(items), min(changed))
    learned = {value for subset in ("train", "val") for value in recorded[subset].values()}
    # an own test image that is also a training image was told of when the run was measured, and counted
    kept = tuple(item for item in items if hashes[item.id] not in learned or item.id not in changed)
    named = {name for subset in ("train", "val") for name in recorded[subset]} if not own else set()
    if renewed := [item.id for item in kept if item.id in named]:
        log.warning("%d of %d images have the paths of images that the run learned from, and other bytes, such as %s: "
                    "if they are the same photos saved anew, the figures are flattered", len(renewed), len(items),
                    renewed[0])
    if len(kept) < len(items):
        log.warning("left out %d of %d images: the run learned from them", len(items) - len(kept), len(items))
    return kept
