"""Explanations of image files as pictures and as numbers in a file: `xrvlm explain`."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.data.dataset import Dataset
from xrvlm.distributed import Bar
from xrvlm.errors import UserError, option, typed
from xrvlm.experiments.predict import images_of
from xrvlm.experiments.saved import SavedRun, check_writable, inside
from xrvlm.files import user_path, write_json
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.explain import (
    STEPS,
    Photo,
    Words,
    check_explainable,
    explained,
    part_names,
    prompt_names,
    prompt_words,
)
from xrvlm.inference.explanation import Attribution, Explanation
from xrvlm.inference.nearest import TrainingImages
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots.explained import Names, named, overlap_in_words, picture, verdict
from xrvlm.text.class_text import readable
from xrvlm.views import decode

LISTED = 20                              # strongest relations in explanations.json


@dataclass(frozen=True)
class Photos:
    """Images to explain, with their names."""

    names: Sequence[str]                 # paths relative to `root` where there is one
    images: Iterable[Photo]
    root: Path | None = None
    classes: Sequence[str] = ()          # the true class of each, where they are known

    @classmethod
    def below(cls, images: str | Path | Sequence[str | Path]) -> "Photos":
        """Files, and every image below folders."""
        files = images_of(images)
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
            shared = Path(os.path.commonpath([path.parent for path in files.values()]))
            files = {path.relative_to(shared).as_posix(): path for path in files.values()}
        roots = {path.parents[len(Path(name).parts) - 1] for name, path in files.items()}
        return cls(list(files), list(files.values()), roots.pop() if len(roots) == 1 else None)

    @classmethod
    def test_set(cls, dataset: Dataset) -> "Photos":
        """The test images of a data set, each read when it is needed."""
        source, names = dataset.source, [item.id for item in dataset.split.test]
        classes = [dataset.split.classes[item.label] for item in dataset.split.test]
        return cls(names, (decode(source.read(name), name) for name in names), getattr(source, "root", None), classes)


@dataclass(frozen=True)
class Explanations:
    """Explained images, as they were written."""

    rows: list[dict[str, Any]]           # one for each image, as in explanations.json
    folder: Path                         # of explanations.json and the pictures
    lines: list[str]                     # the results as text: a line for each image, then about all of them


@typed
def explain(run: str | Path, images: str | Path | Sequence[str | Path] | None = None, *, against: str | None = None,
            out: str | Path | None = None, pictures: bool = True, nearest: int = 3,
            echo: Callable[[str], None] | None = None, clip: FrozenCLIP | None = None, device: DeviceName = "auto",
            precision: PrecisionName = "auto") -> Explanations:
    """Explain what the run in the folder `run` predicts of `images`: where the parts look, which relations decide.

    Args:
        run: the folder of a run of a method with image parts (xr_vlm, xr_vlm_plus) or words (filip), or "latest".
        images: files, and folders with all images below them; None: the test images of the run.
        against: see `explain_images`, as `echo`.
        out: the folder of explanations.json and the pictures; None: the folder `explain` in that of the run.
        nearest: how many of the nearest training images to show beside each image; left out, with a line that says why,
            where the run's images cannot be read.
        clip: the tower; None: the one that the run names, on `device` in `precision`.

    Raises:
        UserError: see `explain_images`; or the run does not say where its images are.
    """
    if nearest < 0:
        raise UserError(f"{option('nearest')} must be at least 0, found {nearest}")
    saved = SavedRun(run)
    folder = inside(saved.home, "explain") if out is None else user_path(out)
    check_writable(folder)
    classifier = saved.classifier(clip, device=device, precision=precision)
    photos = Photos.test_set(saved.dataset()) if images is None else Photos.below(images)
    check_explainable(classifier.method)             # raises before images are read
    training = saved.training_images(classifier.clip) if nearest else None
    return explain_images(classifier, photos, folder, against=against, pictures=pictures, echo=echo,
                          training=training, nearest=nearest)


def explain_images(classifier: Classifier, photos: Photos, out: Path, *, against: str | None = None,
                   pictures: bool = True, echo: Callable[[str], None] | None = None,
                   training: TrainingImages | None = None, nearest: int = 3) -> Explanations:
    """Explain `photos`; writes `out`/explanations.json and, with `pictures`, a PNG for each image, named after it.

    Args:
        against: the name of a class: explain also why an image was predicted as its class and not as this one. For
            an image that is predicted as `against`, the runner-up takes its place, and its line says so.
        echo: called with each of `lines` as soon as it is known: `print` shows the progress.
        training: the images of which the `nearest` are shown beside each; None: none are.

    Raises:
        UserError: see `explain`; or a picture would replace an image.
    """
    names, lines = photos.names, _Lines(echo)
    files = _picture_files(names)
    if pictures:
        _check_nothing_is_replaced(photos, out, files)
    rows, words = [], {}
    found = Bar(explained(classifier, photos.images, against), total=len(names), desc="explain", unit="image")
    for name, file, true, explanation in zip(names, files, photos.classes or [None] * len(names), found, strict=True):
        called = Names(part_names(classifier, explanation), prompt_names(classifier, explanation), classifier.names,
                       "word" if explanation.words else "part")
        near = training.nearest(explanation.pooled[None], nearest)[0] if training else []
        rows.append({"image": name} | ({"true": true} if true else {}) | _row(explanation, called)
                    | ({"nearest": [each.row for each in near]} if training else {}))
        if explanation.predicted not in words:
            words[explanation.predicted] = prompt_words(classifier, explanation.predicted)
        if pictures:
            shown = [(each.photo(), f"{each.label}\n{each.similarity:.2f}") for each in near]
            plots.save(picture(explanation, called, name, true, shown), out / file)
        lines.add(f"{name}: {_line(explanation, called, true, against)}")
    summary = _summary(rows)
    write_json(out / "explanations.json", {
        "method": asdict(classifier.header.method), "steps": None if rows[0]["attribution"] == "exact" else STEPS,
        "summary": summary, "images": rows, "words": {name: near for name, near in words.items() if near}})
    lines.add(*(_word_lines(words[rows[0]["prediction"]]) if len(rows) == 1 else ()), _summary_line(summary), str(out))
    return Explanations(rows, out, lines.lines)


class _Lines:
    """Lines of text, each passed on to `echo` too."""

    def __init__(self, echo: Callable[[str], None] | None):
        self.lines: list[str] = []
        self.echo = echo

    def add(self, *lines: str) -> None:
        self.lines += lines
        if self.echo is not None:
            for line in lines:
                self.echo(line)


def _row(explanation: Explanation, called: Names) -> dict[str, Any]:
    """The numbers of an image, as in explanations.json."""
    row = {
        "prediction": explanation.predicted, "probability": _rounded(explanation.probabilities.max().item()),
        "overlap": None if math.isnan(explanation.overlap) else _rounded(explanation.overlap),
        "dead": explanation.dead.tolist(), "class_token": [_rounded(share) for share in
                                                           explanation.class_token.tolist()],
        "attribution": explanation.logit.method, "logit": _terms(explanation.logit, called)}
    if explanation.windows is not None:
        row["windows"] = [[_rounded(edge) for edge in window] for window in explanation.windows.tolist()]
    if explanation.words:
        row["words"] = list(explanation.words)
    if explanation.margin is not None:
        row |= {"against": explanation.against, "margin": _terms(explanation.margin, called)}
    return row


def _terms(attribution: Attribution, called: Names) -> dict[str, Any]:
    strongest = [{"part": called.parts[strong.part], "prompt": called.prompts[strong.prompt],
                  "class": called.classes[strong.label], "contribution": _rounded(strong.contribution)}
                 for strong in attribution.strongest(LISTED)]
    return {"value": _rounded(attribution.value), "baseline": _rounded(attribution.baseline),
            "added": _rounded(attribution.added), "gap": float(f"{attribution.gap:.2g}"),
            "parts": list(called.parts), "prompts": list(called.prompts),
            "contributions": [[_rounded(value) for value in row] for row in attribution.by_part.tolist()],
            "strongest": strongest}


def _line(explanation: Explanation, called: Names, true: str | None, asked: str | None) -> str:
    name, value = named(explanation.margin or explanation.logit, called, 1)[0]
    rival = ""
    if explanation.against is not None:
        instead = readable(explanation.predicted) == readable(asked or "")
        rival = f" against {explanation.against}{', the runner-up, since this is the class asked for' * instead}"
    overlap = overlap_in_words(explanation.overlap)
    return (f"{verdict(explanation, called, true)}{rival}; strongest: {name} "
            f"{value:+.2f}; overlap {overlap}, dead {called.what}s {int(explanation.dead.sum())} of "
            f"{len(explanation.dead)}")


def _summary_line(summary: dict[str, Any]) -> str:
    if "words" in summary:
        return (f"{summary['images']} image{'s' * (summary['images'] != 1)}: mean overlap of the word maps "
                f"{overlap_in_words(summary['overlap'])}, dead words {summary['dead_words']} of {summary['words']}")
    images = "1 image" if summary["images"] == 1 else f"{summary['images']} images"
    return (f"{images}: mean overlap of the part maps {overlap_in_words(summary['overlap'])}, dead "
            f"parts {summary['dead_parts']} of {summary['parts']}, {summary['dead_everywhere']} of them parts that are "
            "dead in every image")


def _word_lines(words: Words | None) -> Iterator[str]:
    """For each learned prompt, the word nearest to each of its context vectors."""
    for prompt, vectors in enumerate(words or (), start=1):
        nearest = ", ".join(f"{near[0][0]} {near[0][1]:.2f}" for near in vectors)
        yield f"prompt {prompt}, the nearest word to each learned vector and its distance: {nearest}"


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    overlaps = [row["overlap"] for row in rows if row["overlap"] is not None]
    whole = {"images": len(rows), "overlap": _rounded(sum(overlaps) / len(overlaps)) if overlaps else None}
    if "words" in rows[0]:               # another class has other words: there is no sum over images
        return whole | {"words": sum(len(row["words"]) for row in rows),
                        "dead_words": sum(sum(row["dead"]) for row in rows),
                        "largest_gap": max(row["logit"]["gap"] for row in rows)}
    by_part = list(zip(*(row["dead"] for row in rows), strict=True))
    dead = sum(map(sum, by_part))
    return whole | {
        "parts": len(rows) * len(by_part), "dead_parts": dead, "dead_everywhere": sum(map(all, by_part)),
        "class_token": [_rounded(sum(shares) / len(rows)) for shares in
                        zip(*(row["class_token"] for row in rows), strict=True)],
        "logit_by_part": _shares([zip(*row["logit"]["contributions"], strict=True) for row in rows]),
        "logit_by_prompt": _shares([row["logit"]["contributions"] for row in rows]),
        "largest_gap": max(row["logit"]["gap"] for row in rows)}


def _shares(images: Sequence[Iterable[Sequence[float]]]) -> list[float]:
    """For each group of contributions, its share in their absolute sum, as the mean over the images."""
    sums = [[sum(map(abs, group)) for group in groups] for groups in images]
    shares = [[value / (sum(values) or 1) for value in values] for values in sums]
    return [_rounded(sum(column) / len(images)) for column in zip(*shares, strict=True)]


def _picture_files(names: Sequence[str]) -> list[Path]:
    """`finches/1.jpg` -> `finches/1.png`, or `finches/1.jpg.png` where two images would share a picture."""
    counts = Counter(Path(name).with_suffix(".png") for name in names)
    return [file if counts[file := Path(name).with_suffix(".png")] == 1 else Path(f"{name}.png") for name in names]


def _check_nothing_is_replaced(photos: Photos, out: Path, files: Sequence[Path]) -> None:
    pictures = {(out / file).resolve() for file in files}
    if photos.root is not None and any(photos.root / name in pictures for name in photos.names):
        raise UserError(f"the pictures would replace the images in {photos.root}; name another folder with "
                        f"{option('out', 'DIR')}")


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
