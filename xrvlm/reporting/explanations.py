"""`xrvlm explain`: explanations of image files as pictures and as numbers in a file."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xrvlm.data.dataset import Dataset
from xrvlm.data.folder import image_files
from xrvlm.errors import UserError
from xrvlm.files import write_json
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.explain import (
    STEPS,
    Attribution,
    Explanation,
    Photo,
    Words,
    explained,
    part_names,
    prompt_names,
    prompt_words,
)
from xrvlm.reporting.plots import explain as plots_explain
from xrvlm.reporting.plots import figures as plots
from xrvlm.views import decode

log = logging.getLogger(__name__)
BARS, LISTED = 8, 20                     # strongest relations in a picture, and in the file


@dataclass(frozen=True)
class Photos:
    """Images with their names; `root` is the folder below which these are paths, where there is one."""

    names: Sequence[str]
    images: Iterable[Photo]
    root: Path | None = None

    @classmethod
    def below(cls, path: Path) -> "Photos":
        """A file, or every image below a folder."""
        root, names = image_files(path)
        return cls(names, [root / name for name in names], root)

    @classmethod
    def test_part(cls, dataset: Dataset) -> "Photos":
        """Read one after the other."""
        source, names = dataset.source, [item.id for item in dataset.split.test]
        return cls(names, (decode(source.read(name), name) for name in names), getattr(source, "root", None))


def explain_images(classifier: Classifier, photos: Photos, out: Path, *, against: str | None = None,
                   pictures: bool = True) -> Iterator[str]:
    """Explain `photos`; yields a line of text for each, then about all of them.

    Writes `out`/explanations.json and, with `pictures`, a PNG for each image, called as it is.

    Raises:
        UserError: see `explain`; or a picture would replace an image. What is predicted as `against` has nothing to
            be held against; that is an error only where it is so for every image.
    """
    names, root = photos.names, photos.root
    places = _picture_places(names)
    drawn = {(out / place).resolve() for place in places} if pictures else set()
    if root is not None and any(root / name in drawn for name in names):
        raise UserError(f"the pictures would replace the images in {root}; name another folder with out=DIR")
    rows, words = [], {}
    found = tqdm(explained(classifier, photos.images, against), total=len(names), disable=None, leave=False)
    for name, place, explanation in zip(names, places, found, strict=True):
        called = _Names(part_names(classifier, len(explanation.maps)), prompt_names(classifier, explanation),
                        classifier.names)
        rows.append({"image": name} | _row(explanation, called))
        if explanation.predicted not in words:
            words[explanation.predicted] = prompt_words(classifier, explanation.predicted)
        if pictures:
            plots.save(_picture(explanation, called), out / place)
        yield f"{name}: {_line(explanation, called)}"
    summary = _summary(rows)
    write_json(out / "explanations.json", {
        "method": classifier.about["method"], "steps": None if rows[0]["attribution"] == "exact" else STEPS,
        "summary": summary, "images": rows, "words": {name: near for name, near in words.items() if near}})
    if against is not None and not any("against" in row for row in rows):
        raise UserError(f"against={against} is what the model says of {_of(names)}, explained in {out}; name another "
                        "class")
    shown = "undefined" if summary["overlap"] is None else f"{summary['overlap']:.2f}"
    if len(rows) == 1:
        yield from _word_lines(words[rows[0]["prediction"]])
    yield (f"{len(rows)} images: mean overlap of the part maps {shown}, dead parts {summary['dead_parts']} of "
           f"{summary['parts']}, {summary['dead_everywhere']} of them parts that are dead in every image")
    yield str(out)


@dataclass(frozen=True)
class _Names:
    """What the m parts, the g prompts and the c classes are called."""

    parts: Sequence[str]
    prompts: Sequence[str]
    classes: Sequence[str]


def _row(explanation: Explanation, called: _Names) -> dict[str, Any]:
    """The numbers of an image, as they are written."""
    row = {
        "prediction": explanation.predicted, "probability": _rounded(explanation.probabilities.max().item()),
        "overlap": None if math.isnan(explanation.overlap) else _rounded(explanation.overlap),
        "dead": explanation.dead.tolist(), "class_token": [_rounded(share) for share in
                                                           explanation.class_token.tolist()],
        "attribution": explanation.logit.method, "logit": _terms(explanation.logit, called)}
    if explanation.margin is not None:
        row |= {"against": explanation.against, "margin": _terms(explanation.margin, called)}
    return row


def _terms(attribution: Attribution, called: _Names) -> dict[str, Any]:
    strongest = [{"part": called.parts[strong.part], "prompt": called.prompts[strong.prompt],
                  "class": called.classes[strong.label], "contribution": _rounded(strong.contribution)}
                 for strong in attribution.strongest(LISTED)]
    return {"value": _rounded(attribution.value), "baseline": _rounded(attribution.baseline),
            "added": _rounded(attribution.added), "gap": float(f"{attribution.gap:.2g}"),
            "parts": list(called.parts), "prompts": list(called.prompts),
            "contributions": [[_rounded(value) for value in row] for row in attribution.by_part.tolist()],
            "strongest": strongest}


def _line(explanation: Explanation, called: _Names) -> str:
    name, value = _named(explanation.margin or explanation.logit, called, 1)[0]
    rival = ""
    if explanation.against is not None:
        rival = " (nothing to hold against it)" if explanation.margin is None else f" against {explanation.against}"
    overlap = "undefined" if math.isnan(explanation.overlap) else f"{explanation.overlap:.2f}"
    return (f"{explanation.predicted} {explanation.probabilities.max().item():.1%}{rival}; strongest: {name} "
            f"{value:+.2f}; overlap {overlap}, dead parts {int(explanation.dead.sum())} of {len(explanation.dead)}")


def _picture(explanation: Explanation, called: _Names) -> Any:
    parts = [f"{part} (dead)" if dead else part
             for part, dead in zip(called.parts, explanation.dead.tolist(), strict=True)]
    panels = [_panel(explanation.logit, called, f"for {explanation.predicted}", explanation.predicted, "others")]
    if explanation.margin is not None and explanation.against is not None:
        panels.append(_panel(explanation.margin, called, f"{explanation.predicted} against {explanation.against}",
                             explanation.predicted, explanation.against))
    overlap = "undefined" if math.isnan(explanation.overlap) else f"{explanation.overlap:.2f}"
    how = ("the terms of the logit, exact" if explanation.logit.exact else
           f"integrated gradients from the mean relations of training, {STEPS} steps")
    return plots_explain.explanation(
        explanation.photo, explanation.maps, panels, parts=parts, prompts=called.prompts,
        title=f"{explanation.predicted}  {explanation.probabilities.max().item():.1%}",
        note=f"contributions: {how}  ·  overlap of the part maps {overlap}  ·  each map stretched to its own range")


def _panel(attribution: Attribution, called: _Names, what: str, more: str, less: str) -> plots_explain.Panel:
    added = f"  +  prior {attribution.added:+.2f}" if attribution.added else ""
    title = (f"{what}: {attribution.value:+.2f}  =  relations {attribution.contributions.sum().item():+.2f}  +  "
             f"baseline {attribution.baseline:+.2f}{added}")
    return plots_explain.Panel(title, attribution.by_part, _named(attribution, called, BARS),
                               attribution.contributions.numel(), more, less)


def _named(attribution: Attribution, called: _Names, count: int) -> list[tuple[str, float]]:
    return [(f"{called.parts[strong.part]} x {called.prompts[strong.prompt]}, {called.classes[strong.label]}",
             strong.contribution) for strong in attribution.strongest(count)]


def _word_lines(words: Words | None) -> Iterator[str]:
    """For each learned prompt the word nearest to each of its vectors."""
    for prompt, vectors in enumerate(words or (), start=1):
        nearest = ", ".join(f"{near[0][0]} {near[0][1]:.2f}" for near in vectors)
        yield f"prompt {prompt}, the nearest word to each learned vector and its distance: {nearest}"


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    overlaps = [row["overlap"] for row in rows if row["overlap"] is not None]
    by_part = list(zip(*(row["dead"] for row in rows), strict=True))
    dead = sum(map(sum, by_part))
    return {"images": len(rows), "overlap": _rounded(sum(overlaps) / len(overlaps)) if overlaps else None,
            "parts": len(rows) * len(by_part), "dead_parts": dead, "dead_everywhere": sum(map(all, by_part)),
            "class_token": [_rounded(sum(shares) / len(rows)) for shares in
                            zip(*(row["class_token"] for row in rows), strict=True)],
            "logit_by_part": _shares([zip(*row["logit"]["contributions"], strict=True) for row in rows]),
            "logit_by_prompt": _shares([row["logit"]["contributions"] for row in rows]),
            "largest_gap": max(row["logit"]["gap"] for row in rows)}


def _shares(images: Sequence[Iterable[Sequence[float]]]) -> list[float]:
    """The share of each of an image's groups in the sum of all absolute contributions, as the mean over the images."""
    sums = [[sum(map(abs, group)) for group in groups] for groups in images]
    shares = [[value / (sum(values) or 1) for value in values] for values in sums]
    return [_rounded(sum(column) / len(images)) for column in zip(*shares, strict=True)]


def _picture_places(names: Sequence[str]) -> list[Path]:
    """`finches/1.jpg` -> `finches/1.png`, or `finches/1.jpg.png` where two images would share a picture."""
    stems = Counter(Path(name).with_suffix(".png") for name in names)
    return [place if stems[place := Path(name).with_suffix(".png")] == 1 else Path(f"{name}.png") for name in names]


def _of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"all {len(names)} images"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
