"""Label image files with a finished run, or with a tower and a list of classes."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.data.folder import counted_suffixes
from xrvlm.errors import UserError, either, option, typed
from xrvlm.evaluation.metrics import write_predictions
from xrvlm.files import FileSource, files_below, user_path
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.text.class_text import class_names, text_maker
from xrvlm.views import SUFFIXES, EvaluationViews, is_readable, load_images

log = logging.getLogger(__name__)
BATCH = 64                               # images encoded at once


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable first, with their probabilities."""

    image: str
    classes: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.image}: {', '.join(f'{name} {probability:.1%}' for name, probability in self.classes)}"


@typed
def predict(run: str | Path | None, images: str | Path | Sequence[str | Path], *,
            classes: str | Sequence[str] | None = None, topk: int = 5, out: str | Path | None = None,
            text: Mapping[str, Any] | None = None, workers: int = 0, clip: FrozenCLIP | None = None,
            device: DeviceName = "auto", precision: PrecisionName = "auto") -> list[Prediction]:
    """Label `images`: files, and folders with all images below them.

    Files that cannot be read are left out with a warning.

    Args:
        run: a run's folder, "latest", or None: zero-shot with `clip` and `classes`.
        classes: names, a list in prompts/class_names or a .txt file; None: those of the run.
        topk: how many classes of each image.
        out: a CSV file for the same: image, prediction, then class_1, probability_1 ... class_k, probability_k.
        text: options of `class_text` for `classes`; None: as the run's own text was made.
        clip: the tower; None: the one that the run names, on `device` in `precision`.

    Raises:
        UserError: no file can be read, or the run's method is bound to its classes and `classes` are others.
    """
    if topk < 1:
        raise UserError(f"{option('topk')} must be at least 1, found {topk}")
    files = images_of(images)
    classifier = _classifier(run, images, classes, text or {}, clip, device, precision)
    try:
        scores = scores_of(classifier, files, workers)
    except UserError as error:
        readable = {name: path for name, path in files.items() if is_readable(FileSource(Path("/")), str(path))}
        if not readable or len(readable) == len(files):
            raise
        log.warning("left out %d of %d files, the first because: %s", len(files) - len(readable), len(files), error)
        files, scores = readable, scores_of(classifier, readable, workers)
    if out is not None:
        write_predictions(user_path(out), list(files), None, scores, classifier.names, topk=topk)
    values, order = scores.topk(min(topk, len(classifier.names)), dim=1)                   # (n, k)
    return [Prediction(name, tuple(zip([classifier.names[index] for index in row], probabilities, strict=True)))
            for name, probabilities, row in zip(files, values.tolist(), order.tolist(), strict=True)]


def zero_shot_classifier(clip: FrozenCLIP, text: Any) -> Classifier:
    """A model that was not trained: the class whose sentences are nearest. `text` is a ClassText."""
    from xrvlm.methods.zero_shot import ZeroShot

    method = ZeroShot(clip, text).to(clip.device)
    method.prepare(clip, None)
    return Classifier(clip, method, ModelHeader.of(clip, ZeroShot, text))


def images_of(images: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """{name to show: absolute path}. The name is relative to the folder that was given; of several paths, as given."""
    given = [images] if isinstance(images, str | Path) else list(images)
    found: dict[str, Path] = {}
    for path in given:
        root, names = image_files(path)
        folder = Path(path) if user_path(path).is_dir() else Path(path).parent
        shown = folder if len(given) > 1 else Path()
        found |= {(shown / name).as_posix(): root / name for name in names}
    if not found:
        raise UserError(f"{option('images')} names no image")
    return found


def image_files(path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """(folder, sorted paths of the images below it, relative to it). For an image file: (its folder, its name).

    Raises UserError if `path` does not exist or holds no image.
    """
    found = user_path(path)
    if found.is_file():
        return found.parent.resolve(), (found.name,)
    if not found.is_dir():
        raise UserError(f"there is no image or folder {found}; check the path")
    root = found.resolve()
    files = list(files_below(root))
    names = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in SUFFIXES)
    if not names:
        held = Counter(file.suffix.lower() for file in files if file.suffix)
        raise UserError(f"found no image below {root}{f', only {counted_suffixes(held)}' if held else ''}; "
                        "it must hold .jpg, .png, .webp ... files")
    return root, tuple(names)


def _classifier(run: str | Path | None, images: str | Path | Sequence[str | Path],
                classes: str | Sequence[str] | None, text: Mapping[str, Any], clip: FrozenCLIP | None,
                device: DeviceName, precision: PrecisionName) -> Classifier:
    names = class_names(classes) if isinstance(classes, str) else classes
    given = {name: value for name, value in text.items() if value is not None}
    if run is None:
        if clip is None or names is None:
            raise UserError(f"predict needs {option('run')} (the folder of a finished run), or {option('classes')} and "
                            f"a tower, {either('clip', 'backbone=')}, for zero-shot")
        if "parts" in given:
            raise UserError(f"{option('text.parts')} is not read without {option('run')}: zero-shot reads "
                            f"{option('text.descriptions')} and {option('text.templates')}")
        return zero_shot_classifier(clip, text_maker(given)(names))
    if names is None and not given and str(run) != "latest":
        return Classifier.load(run, clip, device=device, precision=precision)
    from xrvlm.experiments.saved import SavedRun

    saved = SavedRun(run)
    classifier = saved.classifier(clip, device=device, precision=precision)
    if names is None and not given:
        return classifier
    first = user_path(images if isinstance(images, str | Path) else images[0])
    beside = first if first.is_dir() else first.parent
    return saved.for_classes(classifier, names or classifier.names, given, beside)


def scores_of(classifier: Classifier, files: Mapping[str, Path], workers: int) -> Tensor:
    """(n, c) probabilities."""
    ids, clip = [str(path) for path in files.values()], classifier.clip
    order = torch.arange(len(ids)).split(BATCH)
    loaded = load_images(ids, FileSource(Path("/")), EvaluationViews(clip.transform), order, workers, clip.device)
    return torch.cat([classifier.probabilities(images) for _, images in tqdm(
        loaded, total=len(order), disable=None, leave=False)])

