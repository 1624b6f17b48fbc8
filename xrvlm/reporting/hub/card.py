"""The card of a model: what it is, how it was made, figures with intervals, limits; all from the run's record."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from xrvlm.backbones.registry import with_inner
from xrvlm.errors import CONTROL
from xrvlm.evaluation.text_tables import escape, markdown
from xrvlm.experiments.record import RunRecord
from xrvlm.inference.classifier import ModelHeader
from xrvlm.methods.registry import class_called
from xrvlm.reporting.paired import Outcomes, read_outcomes

RESAMPLES, PERCENTILES = 1000, (2.5, 97.5)
WORST = 5                                # classes that the card names
PROTOCOLS = {"few_shot": "few-shot: trained and tested on all classes",
             "base_to_new": "base to new: trained on the first half of the classes",
             "open_set": "open set: trained on the classes below, tested on others too",
             "all_images": "zero-shot on all images of a data set without a test set"}
NAMES = {"top1": "Top-1", "top5": "Top-5", "mean_per_class": "Mean per class", "macro_f1": "Macro-F1",
         "ece": "Calibration error"}


def card(repo: str, header: ModelHeader, record: RunRecord, folder: Path, *, licence: str | None = None) -> str:
    """README.md of the repository `repo` (owner/name), of the run in `folder`.

    The intervals resample the test images of `folder`/predictions.csv; without that file there are none.
    """
    outcomes = _outcomes(folder / "predictions.csv")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["md"] = _plain
    template = environment.from_string((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    options = ", ".join(f"{name}={value}" for name, value in record.options.items())
    return template.render(
        repo=repo, name=repo.split("/")[1], record=record, license=licence, classes=header.classes.names,
        method=_plain(_about_method(header)), options=options,
        protocol=PROTOCOLS.get(record.protocol, _plain(record.protocol)), local=local_tower(header),
        selection={"val": ", the epoch chosen on validation images", "last": ", the last epoch"}.get(
            record.selection or "", "") if record.recipe != "none" else "",
        package="'xrvlm[photo]'" if any(each.get("name") == "photo" for each in with_inner(header.backbone.loader))
        else "xrvlm",
        versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
        figures=_figures(record, outcomes), intervals=_intervals(outcomes), calibration=_calibration(header, record),
        limits=_limits(header, record, outcomes))


def local_tower(header: ModelHeader) -> str | None:
    """The file or folder that the tower is loaded from, where that is none that others can fetch."""
    loader = header.backbone.loader
    if loader is None:
        return "made in memory"
    values = [value for each in with_inner(loader)
              for value in (each.get("options") or each.get("arguments") or {}).values() if isinstance(value, str)]
    return next((Path(value).name for value in values if Path(value).is_absolute()
                 or (set(value) & {"/", "."} and Path(value).exists())), None)


def _plain(text: object) -> str:
    return escape(CONTROL.sub(" ", str(text)))


def _about_method(header: ModelHeader) -> str:
    """The first line of the method's module, which names its paper."""
    return (getattr(inspect.getmodule(class_called(header.method.name)), "__doc__", None) or "").split("\n")[0]


def _outcomes(path: Path) -> Outcomes | None:
    try:
        return read_outcomes(path)
    except (OSError, ValueError, LookupError):
        return None


def _figures(record: RunRecord, outcomes: Outcomes | None) -> str:
    bounds = {} if outcomes is None else _bounds(outcomes)
    rows = [[heading, f"{100 * record.metrics[name]:.1f}",
             "{:.1f} to {:.1f}".format(*(100 * each for each in bounds[name])) if name in bounds else "-"]
            for name, heading in NAMES.items() if name in record.metrics]
    return markdown(["Metric", "%", "95 % interval"], rows, numbers=2).strip()


def _intervals(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return "The run's predictions were not kept: there are no intervals."
    return (f"The intervals are bootstraps over the test images ({RESAMPLES:,} resamples): they say what other test "
            "images of the same kind would give, not what another draw of the training images would.")


def _bounds(outcomes: Outcomes) -> dict[str, tuple[float, float]]:
    """The percentiles of each metric that needs no probabilities, when the test images are resampled."""
    names = sorted({*outcomes.labels, *outcomes.predictions})
    index = {name: row for row, name in enumerate(names)}
    true, guess = (np.array([index[name] for name in column]) for column in (outcomes.labels, outcomes.predictions))
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(true), len(true))
        images, guessed = (np.bincount(column[rows], minlength=len(names)) for column in (true, guess))
        hits = np.bincount(true[rows][outcomes.right[rows]], minlength=len(names))
        there = images > 0
        f1 = 2 * hits / np.maximum(images + guessed, 1)
        found.append((hits.sum() / len(rows), (hits[there] / images[there]).mean(), f1[there].mean()))
    low, high = np.percentile(np.array(found), PERCENTILES, axis=0)
    return dict(zip(("top1", "mean_per_class", "macro_f1"), zip(low.tolist(), high.tolist(), strict=True),
                    strict=True))


def _calibration(header: ModelHeader, record: RunRecord) -> str:
    error = record.metrics.get("ece", float("nan"))
    if header.calibration is None:
        return (f"They are **not calibrated**: on the test images they are {100 * error:.1f} points off on average "
                "(expected calibration error, 15 bins), and the model cannot say that a photo is of none of its "
                "classes.")
    before = record.metrics.get("ece_before")
    was = "" if before is None else f", {100 * before:.1f} before"
    return (f"They are calibrated on images held out of training ({_plain(record.calibrate)}): on the test images they "
            f"are {100 * error:.1f} points off on average (expected calibration error, 15 bins{was}). `xrvlm predict` "
            "says `unknown` of photos that look like none of the classes, and gives sets of classes with `coverage=`.")


def _limits(header: ModelHeader, record: RunRecord, outcomes: Outcomes | None) -> Sequence[str]:
    found = ["The figures are of photos from the same source as the training photos. Of other cameras, places or "
             "seasons they may be far lower: measure on your own photos first (`xrvlm eval`)."]
    if header.calibration is None:
        found.append("It gives every photo one of its classes, also one of something else.")
    if record.shots != "all" and record.protocol != "all_images":
        found.append(f"It was adapted with {record.shots} images a class and one seed; another draw gives other "
                     "figures.")
    if outcomes is not None:
        right: dict[str, list[bool]] = {}
        for label, hit in zip(outcomes.labels, outcomes.right.tolist(), strict=True):
            right.setdefault(label, []).append(hit)
        worst = sorted(right, key=lambda name: (sum(right[name]) / len(right[name]), name))[:WORST]
        found.append("Its worst classes: " + ", ".join(
            f"{_plain(name)} ({sum(right[name])} of {len(right[name])} right)" for name in worst) + ".")
    found.append("It was not examined for uses in which a mistake harms someone.")
    return found
