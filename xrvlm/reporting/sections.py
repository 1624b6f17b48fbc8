"""What a report shows of one run, read from its folder, before it becomes Markdown or HTML."""

import base64
import contextlib
import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import torch

from xrvlm import files
from xrvlm.data.dataset import SPLIT_FIX
from xrvlm.errors import UserError
from xrvlm.evaluation import metrics
from xrvlm.experiments.record import LOSSES, METRICS_FILE, PREDICTIONS
from xrvlm.files import read_json, sha256
from xrvlm.reporting.paired import Outcomes, read_outcomes
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.plots import report as plots_report
from xrvlm.reporting.results import SETTING, Setting
from xrvlm.views import ImageSource, decode

LISTED = 10                     # confused pairs, and worst classes, that are named
PICTURED = 6                    # confused pairs with photos
PHOTOS = 3                      # of each of these
SIDE = 128                               # pixels of a copy's longer side
MOST_BYTES = 5_000_000                   # of all copies of a page


class Album:
    """Reads the test images of runs through `source_of`, which finds the images of a run's folder.

    `source_of` may raise UserError where they are not to be had; None: no photos are wanted.
    """

    def __init__(self, source_of: Callable[[Path], ImageSource] | None, *, most_bytes: int = MOST_BYTES):
        self.source_of, self.left = source_of, most_bytes
        self._copies: dict[str, str] = {}                # by the hash of the image file
        self._folder: Path | None = None                 # whose source and hashes are at hand

    def photo(self, folder: Path, image: str) -> str:
        """The image as a data URI; UserError, which says why, where there is none."""
        if self.source_of is None:
            raise UserError("photos were not asked for")
        if folder != self._folder:
            self._source = self.source_of(folder)
            record = read_json(folder / "split.json", SPLIT_FIX)
            self._hashes = {entry["path"]: entry["sha256"] for entry in record["test"]}
            self._folder = folder
        if (expected := self._hashes.get(image)) is None:
            raise UserError(f"{image} is not among the test images of the run's split.json")
        if expected not in self._copies:
            data = self._source.read(image)
            if sha256(data) != expected:
                raise UserError(f"{image} is no longer the image that the run was tested on")
            self._copies[expected] = self._copy(data, image)
        return self._copies[expected]

    def _copy(self, data: bytes, image: str) -> str:
        photo, file = decode(data, image), BytesIO()
        photo.thumbnail((SIDE, SIDE))
        photo.save(file, "JPEG", quality=80)
        if (size := file.tell()) > self.left:
            raise UserError("the page holds as many photos as it may")
        self.left -= size
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Picture:
    path: Path
    alternative: str                     # what it shows
    note: str = ""                       # how to read it


@dataclass(frozen=True)
class Confused:
    """A pair of classes with photos (data URIs) of the first that were taken for the second."""

    true: str
    predicted: str
    count: int
    share: float                         # of the images of the true class, 0..1
    photos: list[str]
    known: list[str]                     # a photo of the second class that was recognised


@dataclass
class Section:
    """One run: the first seed's of a setting."""

    row: Setting
    name: str
    folder: Path
    missing: list[tuple[str, str]] = field(default_factory=list)     # files, and why not read; "" where there is none
    pictures: list[Picture] = field(default_factory=list)
    classes: list[dict] = field(default_factory=list)                # the rows of metrics.per_class, the worst first
    confused: list[dict] | None = None                               # the rows of metrics.most_confused
    photographed: list[Confused] = field(default_factory=list)
    no_photos: str = ""                                              # why there are none, or not all

    @property
    def anchor(self) -> str:
        return "run-" + slugged(self.row.first.run)

    @property
    def worst(self) -> list[dict]:
        return self.classes[:LISTED]


def read_section(row: Setting, name: str, root: Path, out: Path, album: Album) -> Section:
    """The section of the run of the first seed; `root` is what its path is relative to. Pictures go to `out`."""
    section = Section(row, name, root / row.first.run)
    slug = f"{slugged(row.place, name)}-{files.digest([getattr(row.first, field) for field in SETTING])[:8]}"
    outcomes = None
    for file in (PREDICTIONS, LOSSES, METRICS_FILE):
        path = section.folder / file
        steps = row.first.learned_parameters and row.first.protocol != "transfer"
        if file == LOSSES and (not steps or (section.folder.is_dir() and not path.is_file())):    # a closed form
            continue
        if not path.is_file():
            section.missing.append((file, ""))
            continue
        try:
            if file == PREDICTIONS:
                outcomes = read_outcomes(path)
                _draw_outcomes(section, outcomes, out, slug)
            elif file == LOSSES:
                _keep(section, _losses(path, name), out, slug, "training loss")
            else:
                _read_classes(section, path)
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            if isinstance(error, UserError):     # a full disk is no fault of the run's
                raise
            section.missing.append((file, f"{type(error).__name__}: {error}"))
    if outcomes is not None and section.confused:
        _photograph(section, outcomes, album)
    return section


def slugged(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:100]


def _keep(section: Section, figure: plots.Figure, out: Path, slug: str, shows: str) -> None:
    path = out / f"{slug}-{slugged(shows)}.png"
    plots.save(figure, path)
    section.pictures.append(Picture(path, f"{shows} of {section.name}"))


def _draw_outcomes(section: Section, outcomes: Outcomes, out: Path, slug: str) -> None:
    known: list[str] = []        # in the order of the data set, those that no image shows included
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads((section.folder / METRICS_FILE).read_text(encoding="utf-8"))
        known = [row["class"] for row in content["per_class"]]
    classes = [*known, *sorted({*outcomes.labels, *outcomes.predictions} - set(known))]
    index = {word: i for i, word in enumerate(classes)}
    cells = torch.tensor([index[label] * len(classes) + index[guess]
                          for label, guess in zip(outcomes.labels, outcomes.predictions, strict=True)])
    matrix = torch.bincount(cells, minlength=len(classes)**2).reshape(len(classes), len(classes))
    bins = metrics.calibration_bins(torch.from_numpy(outcomes.confidence), torch.from_numpy(outcomes.right))
    _keep(section, plots.confusion(matrix, classes, title=section.name), out, slug, "confusion matrix")
    _keep(section, plots_report.reliability(bins, title=section.name), out, slug, "reliability diagram")


def _losses(path: Path, name: str) -> plots.Figure:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    if not rows or not all({"epoch", "loss"} <= row.keys() for row in rows):
        raise ValueError("no epochs")
    return plots.losses({name: rows}, title=name)


def _read_classes(section: Section, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [{key: row[key] for key in ("class", "images", "accuracy", "precision")} for row in content["per_class"]]
    confused = [{key: row[key] for key in ("true", "predicted", "count", "share")}
                for row in content["most_confused"][:LISTED]]
    section.classes = sorted((row for row in rows if row["images"]), key=lambda row: row["accuracy"])
    section.confused = confused


def _photograph(section: Section, outcomes: Outcomes, album: Album) -> None:
    for row in (section.confused or [])[:PICTURED]:
        true, predicted = row["true"], row["predicted"]
        images = (outcomes.by_pair.get((true, predicted), [])[:PHOTOS],
                  outcomes.by_pair.get((predicted, predicted), [])[:1])
        try:
            photos, known = ([album.photo(section.folder, image) for image in part] for part in images)
        except UserError as error:
            section.no_photos = str(error)
            return
        section.photographed.append(Confused(true, predicted, row["count"], row["share"], photos, known))
