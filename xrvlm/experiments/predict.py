"""Label image files with a finished run, or with a tower and a list of classes."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.backbones.tower import hash_state
from xrvlm.data.folder import counted_suffixes, files_below, warn_of_ignored
from xrvlm.errors import UserError, either, option, typed
from xrvlm.evaluation.domains import domains_of
from xrvlm.evaluation.unknown import UNKNOWN
from xrvlm.files import FileSource, alone, digest, user_path
from xrvlm.inference.answers import Answering, Asked
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.text.class_names import read_list
from xrvlm.text.class_text import text_maker
from xrvlm.views import SUFFIXES, EvaluationViews, load_images

if TYPE_CHECKING:
    from xrvlm.experiments.labelling.file import LabelFile

log = logging.getLogger(__name__)
BATCH = 64                               # images encoded at once


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable first, with their probabilities."""

    image: str
    classes: tuple[tuple[str, float], ...]
    problem: str = ""                    # why the image could not be read
    known: float | None = None           # how much it looks like one of the classes, where that is asked for
    unknown: bool = False                # whether that is too little
    held: tuple[str, ...] | None = None  # the set of classes, the most probable first, where one is asked for
    taxon: tuple[str, float] | None = None         # the deepest node of the hierarchy that is sure, "" above all
    domain: str | None = None            # of a joint model: the data set of the most probable class; "" if unknown

    def __str__(self) -> str:
        best = ", ".join(f"{name} {probability:.1%}" for name, probability in self.classes)
        best = f"unknown ({best})" if self.unknown else best
        held = "" if self.held is None else f"; one of: {', '.join(self.held)}"
        name, certainty = self.taxon or ("", 0.0)
        taxon = f"; sure of: {name} {certainty:.1%}" if name else "; sure of no node" if self.taxon else ""
        domain = f"; domain: {self.domain}" if self.domain else ""
        return f"{self.image}: {best}{domain}{held}{taxon}"

    @property
    def prediction(self) -> str:
        """The most probable class, or "unknown"."""
        return UNKNOWN if self.unknown else self.classes[0][0] if self.classes else ""


@typed
def predict(run: str | Path | None, images: str | Path | Sequence[str | Path], *,
            classes: str | Sequence[str] | None = None, topk: int = 5, asked: Asked | None = None,
            out: str | Path | None = None, echo: Callable[[str], object] | None = None,
            text: Mapping[str, Any] | None = None, workers: int = 0, clip: FrozenCLIP | None = None,
            device: DeviceName = "auto", precision: PrecisionName = "auto") -> list[Prediction]:
    """Label `images`: files, and folders with all images below them.

    A list of files gets one answer for each, in its order: twice for one that is named twice, and without classes for
    one that cannot be read (`problem` says why). Of folders, unreadable files are left out. A warning names them.

    Args:
        run: a run's folder, "latest", or None: zero-shot with `clip` and `classes`.
        classes: names, a list in prompts/class_names, or a .txt or .json file; None: those of the run.
        topk: how many classes of each image.
        asked: what to say beside probabilities; None: `unknown`, where the run is calibrated.
        out: a .csv or .jsonl file with a line for each file, see docs/reference/files.md. The same call goes on where
            it was stopped, by a file beside it that ends in .part.
        echo: called with each prediction, as text, as soon as it is made.
        text: options of `class_text` for `classes`; None: as the run's own text was made.
        clip: the tower; None: the one that the run names, on `device` in `precision`.

    Raises:
        UserError: no file can be read, or the run's method is bound to its classes and `classes` are others.
    """
    if topk < 1:
        raise UserError(f"{option('topk')} must be at least 1, found {topk}")
    files = images_of(images)
    classifier = _classifier(run, images, classes, text or {}, clip, device, precision)
    topk, answering = min(topk, len(classifier.names)), _answering(classifier, asked)
    if out is None:
        return _answers(images, files, _labelled(classifier, answering, files, workers, topk, echo, None))
    table = _label_file(out, topk, answering, classifier.header.joint, [
        classifier.header.to_json(), hash_state(classifier.method), topk, asdict(asked or Asked()),
        [[name, str(path), *_state(path)] for name, path in files.items()]])
    with _only_writer(table.path):
        return _answers(images, files, _labelled(classifier, answering, files, workers, topk, echo, table))


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """UserError where another process writes the table `path`."""
    lock = path.with_name(f".{path.name}.lock")
    with alone(lock, f"another predict writes {path.name}; wait for it, or name another file, {option('out')}"):
        try:
            yield
        finally:
            with suppress(OSError):          # Windows keeps a file that is open
                lock.unlink()


def _label_file(out: str | Path, topk: int, answering: Answering | None, joint: bool, key: list[Any]) -> "LabelFile":
    from xrvlm.experiments.labelling.file import LabelFile

    return LabelFile(user_path(out), digest(key), topk, more=answering is not None, joint=joint)


def _state(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return 0, 0


def _answering(classifier: Classifier, asked: Asked | None) -> Answering | None:
    """None where probabilities are all that is said."""
    if classifier.calibration is None and asked is None:
        return None
    found = Answering(classifier, asked or Asked())
    return None if found.plain else found


def _labelled(classifier: Classifier, answering: Answering | None, files: Mapping[str, Path], workers: int, topk: int,
              echo: Callable[[str], object] | None, table: "LabelFile | None") -> dict[str, Prediction]:
    """The prediction of each of `files`, in their order, by its name."""
    done = {} if table is None else table.begun(files, classifier.names)
    found: dict[str, Prediction] = {}
    for prediction in chain(done.values(), labelled(classifier, files, workers, topk, skip=done, answering=answering)):
        found[prediction.image] = prediction
        if table is not None and prediction.image not in done:
            table.add(prediction)
        if echo is not None and not prediction.problem:
            echo(str(prediction))
    if table is not None and done and list(found) != list(files):      # as if it had not been stopped
        table.write([found[name] for name in files])
    _complete([found[name] for name in files], table)
    return {name: found[name] for name in files}


def _answers(images: str | Path | Sequence[str | Path], files: Mapping[str, Path], found: Mapping[str, Prediction],
             ) -> list[Prediction]:
    """What `predict` returns: one answer for each of a list of files, else those of the readable images."""
    paths = [] if isinstance(images, str | Path) else [user_path(path) for path in images]
    if not paths or not all(path.is_file() for path in paths):
        return [prediction for prediction in found.values() if not prediction.problem]
    names = {path: name for name, path in files.items()}
    return [found[names[path.parent.resolve() / path.name]] for path in paths]


def _complete(found: Sequence[Prediction], table: "LabelFile | None") -> None:
    """Says which of the images could not be read, and completes the table. UserError where none could."""
    readable = [prediction for prediction in found if not prediction.problem]
    unreadable = [prediction for prediction in found if prediction.problem]
    if not readable:
        if table is not None:
            table.part.unlink()
        raise UserError(unreadable[0].problem)
    if unreadable:
        log.warning("left out %d of %d files, the first because: %s\n%s", len(unreadable), len(found),
                    unreadable[0].problem, "\n".join(f"  left out: {prediction.image}" for prediction in unreadable))
    if table is not None:
        table.part.replace(table.path)
        log.info("labelled %d images: %s", len(readable), table.path)


def zero_shot_classifier(clip: FrozenCLIP, text: Any) -> Classifier:
    """A model that was not trained: the class whose sentences are nearest. `text` is a ClassText."""
    from xrvlm.methods.zero_shot import ZeroShot

    method = ZeroShot(clip, text).to(clip.device)
    method.prepare(clip, None)
    return Classifier(clip, method, ModelHeader.of(clip, ZeroShot, text))


def images_of(images: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """{name to show: absolute path}. The name is relative to the folder that was given; of several paths, as given."""
    given = [each for path in ([images] if isinstance(images, str | Path) else images) for each in _matches(path)]
    found: dict[str, Path] = {}
    for path in given:
        root, names = image_files(path)
        folder = Path(path) if user_path(path).is_dir() else Path(path).parent
        shown = folder if len(given) > 1 else Path()
        there = set(found.values())          # a file that is named twice is labelled once
        found |= {(shown / name).as_posix(): root / name for name in names if root / name not in there}
    if not found:
        raise UserError(f"{option('images')} names no image")
    return found


def _matches(path: str | Path) -> list[str | Path]:
    """The images and folders that a pattern such as `photos/*.jpg` matches, `**` any folders; of a path, itself."""
    if not set("*?[") & set(str(path)) or user_path(path).exists():
        return [path]
    pattern = user_path(path)
    there = next(parent for parent in pattern.parents if parent.exists())        # its name may hold a bracket
    found = sorted(there.glob(pattern.relative_to(there).as_posix()))
    if images := [each for each in found if each.is_dir() or each.suffix.lower() in SUFFIXES]:
        return list(images)
    raise UserError(f"the pattern {pattern} matches no image and no folder; check it")


def image_files(path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """(folder, sorted paths of the images below it, relative to it). For an image file: (its folder, its name).

    Raises UserError if `path` does not exist or holds no image.
    """
    found = user_path(path)
    if found.is_file() or (found.is_symlink() and not found.exists()):       # a broken link is a file, unreadable
        return found.parent.resolve(), (found.name,)
    if found.exists() and not found.is_dir():
        raise UserError(f"{found} is a pipe or a device, which may have no end: save the image as a file")
    if not found.is_dir():
        raise UserError(f"there is no image or folder {found}; check the path")
    root = found.resolve()
    files = list(files_below(root))
    names = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in SUFFIXES)
    if not names:
        held = Counter(file.suffix.lower() for file in files if file.suffix)
        raise UserError(f"found no image below {root}{f', only {counted_suffixes(held)}' if held else ''}; "
                        "it must hold .jpg, .png, .webp ... files")
    warn_of_ignored(files, root)
    return root, tuple(names)


def _classifier(run: str | Path | None, images: str | Path | Sequence[str | Path],
                classes: str | Sequence[str] | None, text: Mapping[str, Any], clip: FrozenCLIP | None,
                device: DeviceName, precision: PrecisionName) -> Classifier:
    names = read_list(classes) if isinstance(classes, str) else classes
    if names is not None and not names:
        raise UserError(f"{option('classes')} is empty: give at least one class name, or leave it out for the classes "
                        "of the run")
    given = {name: value for name, value in text.items() if value is not None}
    if run is None:
        if clip is None or names is None:
            raise UserError(f"predict needs {option('run')} (the folder of a finished run), or {option('classes')} and "
                            f"a tower, {either('clip', 'backbone=')}, for zero-shot")
        if "parts" in given:
            raise UserError(f"{option('text.parts')} is not read without {option('run')}: zero-shot reads "
                            f"{option('text.descriptions')} and {option('text.templates')}")
        return zero_shot_classifier(clip, text_maker(given)(names))
    if names is None and not given and Path(run).name != "latest":
        return Classifier.load(run, clip, device=device, precision=precision)
    from xrvlm.experiments.saved import SavedRun

    saved = SavedRun(run)
    classifier = saved.classifier(clip, device=device, precision=precision)
    if names is None and not given:
        return classifier
    first = user_path(images if isinstance(images, str | Path) else images[0])
    beside = first if first.is_dir() else first.parent
    return saved.for_classes(classifier, classifier.names if names is None else names, given, beside)


def labelled(classifier: Classifier, files: Mapping[str, Path], workers: int, topk: int,
             skip: Collection[str] = (), answering: Answering | None = None) -> Iterator[Prediction]:
    """The prediction of each of `files` that is not in `skip`, batch by batch; without classes where it is unreadable.
    """
    names, clip, header = [name for name in files if name not in skip], classifier.clip, classifier.header
    domains = domains_of(classifier.names, header.hierarchy) if header.joint and header.hierarchy else None
    ids, problems = [str(files[name]) for name in names], {}
    batches = torch.arange(len(ids)).split(BATCH) if ids else ()
    loaded = load_images(ids, FileSource(Path("/")), EvaluationViews(clip.transform), batches, workers, clip.device,
                         problems)
    for batch, (rows, images) in zip(batches, tqdm(loaded, total=len(batches), disable=None, leave=False), strict=True):
        found: dict[int, Prediction] = {}
        if len(rows):
            answers = None if answering is None else answering(images)
            chances = classifier.probabilities(images) if answers is None else answers.chances
            # of equal probabilities the first class; both (b, c)
            values, order = (each.tolist() for each in chances.sort(dim=1, descending=True, stable=True))
            for place, row in enumerate(rows.tolist()):
                best = [(classifier.names[index], chance)
                        for index, chance in zip(order[place][:topk], values[place][:topk], strict=True)]
                more = {} if answering is None or answers is None else answering.said(answers, place, order[place])
                domain = None if not domains else "" if more.get("unknown") else domains[best[0][0]]
                found[row] = Prediction(names[row], tuple(best), domain=domain, **more)
        yield from (found.get(row, Prediction(names[row], (), problems.get(row, ""))) for row in batch.tolist())
