"""The section of one run in a report, read from the run's folder, whatever the report's format."""

import base64
import contextlib
import csv
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch

from xrvlm import files
from xrvlm.errors import UserError, fits, option, plain_text
from xrvlm.evaluation import metrics
from xrvlm.evaluation.metrics import METRICS_FILE, PREDICTIONS
from xrvlm.experiments.record import LOSSES, RunRecord
from xrvlm.experiments.saved import recorded_hashes
from xrvlm.files import sha256
from xrvlm.reporting.paired import Outcomes, read_outcomes
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots import report as plots_report
from xrvlm.reporting.results import Row
from xrvlm.views import ImageSource, decode

LISTED = 10                     # confused pairs, and worst classes, in the Markdown tables
PER_CLASS = {"class": str, "images": int, "accuracy": float | None, "precision": float | None}      # of metrics.json
CONFUSED = {"true": str, "predicted": str, "count": int, "share": float}
PICTURED = 6                    # confused pairs with photos
PHOTOS = 3                      # photos of each of these
SIDE = 128                      # pixels of a photo's longer side
MOST_BYTES = 5_000_000          # of all photos of a page
ROUNDED = 1e-6                  # between two writings of one share


class Album:
    """Small copies of the test images of runs, as data URIs.

    `source_of` returns the image source of a run's folder, or raises UserError if the images cannot be read. None: no
    photos are wanted.
    """

    def __init__(self, source_of: Callable[[Path], ImageSource] | None, *, most_bytes: int = MOST_BYTES):
        self.source_of, self.bytes_left = source_of, most_bytes
        self._copies: dict[str, str] = {}                # by the hash of the image file
        self._folder: Path | None = None                 # the one that _source and _hashes belong to

    def photo(self, folder: Path, image: str) -> str:
        """The image as a data URI; UserError with the reason if there is none."""
        if self.source_of is None:
            raise UserError(f"the report was made with {option('photos', False)}")
        if folder != self._folder:
            self._source = self.source_of(folder)
            hashes = recorded_hashes(folder / "split.json")
            self._hashes = hashes["train"] | hashes["test"]
            self._folder = folder
        if (expected := self._hashes.get(image)) is None:
            raise UserError(f"{image} is not among the images of the run's split.json")
        if expected not in self._copies:
            data = self._source.read(image)
            if sha256(data) != expected:
                raise UserError(f"{image} is not the image that the run was tested on: its hash has changed")
            self._copies[expected] = self._copy(data, image)
        return self._copies[expected]

    def _copy(self, data: bytes, image: str) -> str:
        photo, file = decode(data, image), BytesIO()
        photo.thumbnail((SIDE, SIDE))
        photo.save(file, "JPEG", quality=80)
        if (size := file.tell()) > self.bytes_left:
            raise UserError("the photos of this page have reached their size limit")
        self.bytes_left -= size
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


HIERARCHY = ("mistake_severity", "hierarchical_precision", "hierarchical_recall")


@dataclass(frozen=True)
class Picture:
    path: Path
    alternative: str                     # what it shows
    note: str = ""                       # how to read it


@dataclass(frozen=True)
class Confused:
    """A pair of classes with photos (data URIs) of the true class that were predicted as the other."""

    true: str
    predicted: str
    count: int
    share: float                         # of the images of the true class, 0..1
    photos: list[str]
    known: list[str]                     # a photo of the predicted class that was predicted correctly
    nearest: list[tuple[str, str]]       # the training photos that are nearest to the first one, with their classes


@dataclass
class Section:
    """The run of a row's first seed."""

    row: Row
    name: str
    folder: Path
    missing: list[tuple[str, str]] = field(default_factory=list)     # files, and why not read; "": no such file
    pictures: list[Picture] = field(default_factory=list)
    classes: list[dict] = field(default_factory=list)                # the rows of metrics.per_class, the worst first
    confused: list[dict] | None = None                               # the rows of metrics.most_confused
    photographed: list[Confused] = field(default_factory=list)
    no_photos: str = ""                                              # why there are none, or not all
    outcomes: Outcomes | None = None
    contradiction: str | None = None                                 # between the run's files

    @property
    def anchor(self) -> str:
        return "run-" + slugged(self.row.first.run)

    @property
    def notes(self) -> list[str]:
        """What the run says beyond its table: of its calibration, and of the hierarchy of its classes."""
        run = self.row.first
        values = {name: value for name, value in run.metrics.items() if fits(value, float)}
        found = []
        if run.calibrate and {"ece_before", "nll_before", "nll"} <= values.keys():
            found.append(f"Calibrated by {run.calibrate}: calibration error {values['ece_before']:.1%} before, "
                         f"{values['ece']:.1%} now; negative log-likelihood {values['nll_before']:.3f} and "
                         f"{values['nll']:.3f}.")
        if {"level_0", *HIERARCHY} <= values.keys():
            levels = ", ".join(f"{values[name]:.1%}" for name in sorted(values) if name.startswith("level_"))
            found.append(f"Top-1 at the levels of the hierarchy, from the top down: {levels}; the mean mistake is "
                         f"{values['mistake_severity']:.2f} levels high; hierarchical precision "
                         f"{values['hierarchical_precision']:.1%}, recall {values['hierarchical_recall']:.1%}.")
        return found

    domain_titles = ("Domain", "Classes", "Images", "Top-1 % among all", "Top-1 % within")      # of `domains`

    @property
    def domains(self) -> list[list[str]]:
        """The table of a joint run over its domains; a domain whose figures are missing is left out."""
        return [[name, *(str(of[key]) for key in ("classes", "images")),
                 *(f"{100 * of[key]:.1f}" for key in ("top1", "top1_within"))]
                for name, of in self.row.first.domains.items()
                if {"classes", "images", "top1", "top1_within"} <= of.keys()]

    @property
    def worst(self) -> list[dict]:
        return self.classes[:LISTED]


def read_section(row: Row, name: str, root: Path, out: Path, album: Album) -> Section:
    """The section of the row's first seed, whose run is below `root`; pictures are written to `out`."""
    section = Section(row, name, root / row.first.run)
    slug = f"{slugged(row.benchmark, name)}-{files.digest(row.identity)[:8]}"
    _read(section, PREDICTIONS, partial(_draw_outcomes, section, out, slug))
    if _should_have_losses(section):
        _read(section, LOSSES, partial(_draw_losses, section, out, slug))
    _read(section, METRICS_FILE, partial(_read_classes, section))
    if section.outcomes is not None and section.confused:
        _photograph(section, section.outcomes, album)
    return section


def _should_have_losses(section: Section) -> bool:
    """False without training steps. A method whose folder lacks the file is solved in closed form."""
    first, folder = section.row.first, section.folder
    trained = first.learned_parameters > 0 and first.protocol != "transfer"
    return trained and ((folder / LOSSES).is_file() or not folder.is_dir())


def _read(section: Section, file: str, read: Callable[[Path], None]) -> None:
    """Call `read` with the path of `file`; a missing or damaged file is noted in the section."""
    path = section.folder / file
    if not path.is_file():
        section.missing.append((file, ""))
        return
    try:
        read(path)
    except UserError:                    # a full disk: the run is not damaged
        raise
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        section.missing.append((file, f"{type(error).__name__}: {error}"))


def slugged(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:100]


def _keep(section: Section, figure: plots.Figure, out: Path, slug: str, shows: str) -> None:
    path = out / f"{slug}-{slugged(shows)}.png"
    plots.save(figure, path)
    section.pictures.append(Picture(path, f"{shows} of {section.name}"))


def _draw_outcomes(section: Section, out: Path, slug: str, path: Path) -> None:
    section.outcomes = outcomes = read_outcomes(path)
    section.contradiction = _contradiction(section.row.first, path, outcomes)
    known: list[str] = []        # in the order of the data set, with those that have no test image
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        known = [row["class"] for row in _of_metrics(section.folder / METRICS_FILE, "per_class", PER_CLASS)]
    classes = [*known, *sorted({*outcomes.labels, *outcomes.predictions} - set(known))]
    index = {word: i for i, word in enumerate(classes)}
    cells = torch.tensor([index[label] * len(classes) + index[guess]
                          for label, guess in zip(outcomes.labels, outcomes.predictions, strict=True)])
    matrix = torch.bincount(cells, minlength=len(classes)**2).reshape(len(classes), len(classes))
    bins = metrics.calibration_bins(torch.from_numpy(outcomes.confidence), torch.from_numpy(outcomes.right))
    _keep(section, plots.confusion(matrix, classes, title=section.name), out, slug, "confusion matrix")
    _keep(section, plots_report.reliability(bins, title=section.name), out, slug, "reliability diagram")


def _contradiction(record: RunRecord, path: Path, outcomes: Outcomes) -> str | None:
    """What predictions.csv says otherwise than the record."""
    images, right, said = len(outcomes.right), float(outcomes.right.mean()), record.metrics["top1"]
    if abs(said - right) < ROUNDED and record.images in (0, images):          # 0 in records of older versions
        return None
    of = f" of {record.images}" if record.images else ""
    return (f"{path} has {100 * right:.1f} % of {images} images right, and the run's line in results.jsonl says "
            f"{100 * said:.1f} %{of}")


def _draw_losses(section: Section, out: Path, slug: str, path: Path) -> None:
    with StringIO(files.file_text(path), newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    if not rows or not all({"epoch", "loss"} <= row.keys() for row in rows):
        raise ValueError("no epochs")
    _keep(section, plots.losses({section.name: rows}, title=section.name), out, slug, "training loss")


def _read_classes(section: Section, path: Path) -> None:
    rows = _of_metrics(path, "per_class", PER_CLASS)
    confused = _of_metrics(path, "most_confused", CONFUSED)[:LISTED]
    section.classes = sorted((row for row in rows if row["images"]), key=lambda row: row["accuracy"])
    section.confused = confused


def _of_metrics(path: Path, table: str, columns: Mapping[str, Any]) -> list[dict]:
    """The rows of a table of metrics.json. ValueError where a value is of another type, or no share of 1."""
    rows = [{key: row[key] for key in columns} for row in files.parsed(files.file_bytes(path))[table]]
    for row in rows:
        for key, value in plain_text(row).items():
            most = math.inf if columns[key] is int else 1
            beyond = isinstance(value, int | float) and not 0 <= value <= most
            if beyond or not fits(value, columns[key]):
                raise ValueError(f"{table}: {key} is {value!r}")
    return rows


def _photograph(section: Section, outcomes: Outcomes, album: Album) -> None:
    nearest = _nearest(section.folder / "nearest.csv")
    for row in (section.confused or [])[:PICTURED]:
        true, predicted = row["true"], row["predicted"]
        images = (outcomes.by_pair.get((true, predicted), [])[:PHOTOS],
                  outcomes.by_pair.get((predicted, predicted), [])[:1])
        try:
            photos, known = ([album.photo(section.folder, image) for image in group] for group in images)
        except UserError as error:
            section.no_photos = str(error)
            return
        first = images[0][0] if images[0] else ""
        shown = [(album.photo(section.folder, image), name) for image, name in nearest.get(first, [])]
        section.photographed.append(Confused(true, predicted, row["count"], row["share"], photos, known, shown))


def _nearest(path: Path) -> dict[str, list[tuple[str, str]]]:
    """{test image: the nearest training images, with their classes} of a nearest.csv; none where it is damaged."""
    try:
        with StringIO(files.file_text(path), newline="") as file:
            rows = list(csv.DictReader(file))
        return {metrics.from_cell(row["image"]): [
            (metrics.from_cell(row[f"nearest_{place}"]), metrics.from_cell(row[f"class_{place}"]))
            for place in range(1, metrics.NEAREST + 1) if row.get(f"nearest_{place}")] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
