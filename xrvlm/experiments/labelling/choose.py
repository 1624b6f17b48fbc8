"""Which images to label next: those that stand for most of what the model is unsure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import DeviceName, FrozenCLIP, Need, PrecisionName
from xrvlm.data.dataset import SUBSETS
from xrvlm.errors import UserError, option, typed
from xrvlm.evaluation.metrics import write_rows
from xrvlm.experiments.predict import BATCH, images_of
from xrvlm.experiments.saved import SavedRun
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.files import FileSource, check_replaceable, user_path
from xrvlm.inference.classifier import Classifier
from xrvlm.views import EvaluationViews, load_images

MOST = 10_000                            # images that are compared with each other
COLUMNS = ("filepath", "image", "rank", "prediction", "probability", "uncertainty")


@dataclass(frozen=True)
class Choice:
    """One image to label, in the order of the choice."""

    image: str
    path: Path
    prediction: str                      # what the model would call it
    probability: float
    uncertainty: float                   # 1 less how far the two most probable classes are apart

    def __str__(self) -> str:
        return f"{self.image}: {self.prediction} {self.probability:.1%}?"


@typed
def next_to_label(run: str | Path, images: str | Path | Sequence[str | Path], *, count: int = 20,
                  out: str | Path | None = None, workers: int = 0, clip: FrozenCLIP | None = None,
                  device: DeviceName = "auto", precision: PrecisionName = "auto") -> list[Choice]:
    """Choose `count` of `images` to label next, for the run in the folder `run`.

    See `chosen` for the rule. Images of the run's own data set, which have labels, are not chosen. With `out`, a
    .csv file holds the choice: filepath, image, rank, prediction, probability, uncertainty.

    Raises:
        UserError: `count` is below 1, or no image can be read.
    """
    if count < 1:
        raise UserError(f"{option('count')} must be at least 1, found {count}")
    if out is not None:
        check_replaceable(user_path(out))
    saved = SavedRun(run)
    classifier = saved.classifier(clip, device=device, precision=precision)
    files = images_of(images)
    names, chances, features = _read(classifier, files, workers)
    labelled, known = _labelled(saved, classifier, workers)
    source = FileSource(Path("/"))
    fresh = [row for row, name in enumerate(names) if source.sha256(str(files[name])) not in known] if known else \
        list(range(len(names)))
    if not fresh:
        raise UserError("all of these images are of the run's own data set, which has their labels: name others")
    unsure = uncertainty(chances)
    rows = [fresh[place] for place in chosen(unsure[fresh], features[fresh], labelled, count).tolist()]
    best = chances.max(1)
    found = [Choice(names[row], files[names[row]], classifier.names[int(best.indices[row])], best.values[row].item(),
                    unsure[row].item()) for row in rows]
    if out is not None:
        write_rows(user_path(out), COLUMNS, [
            {"filepath": str(each.path), "image": each.image, "rank": rank, "prediction": each.prediction,
             "probability": round(each.probability, 6), "uncertainty": round(each.uncertainty, 6)}
            for rank, each in enumerate(found, start=1)])
    return found


def uncertainty(chances: Tensor) -> Tensor:
    """(n,) 1 less the distance of the two largest of probabilities (n, c)."""
    first, second = chances.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def chosen(unsure: Tensor, features: Tensor, labelled: Tensor, count: int) -> Tensor:
    """The indices of `count` of n images, one after the other, that cover best what the model is unsure of.

    An image covers another by exp(-d / t): d is 1 less the cosine of their features, t a third of the median d. What is
    covered by its best labelled or chosen image counts with how unsure the model is of it, `unsure` (n,), and each
    choice adds the most to the sum (greedy facility location). Of more than 10,000 images the most unsure are read.

    Args:
        features: (n, d), of length 1.
        labelled: (k, d) those of the labelled images; k may be 0.
    """
    read = unsure.argsort(descending=True, stable=True)[:MOST].sort().values
    unsure, features = unsure[read].clamp_min(1e-6), features[read]
    distance = 1 - features @ features.T                                                   # (n, n)
    scale = distance[~torch.eye(len(features), dtype=torch.bool)].median().clamp_min(1e-6) / 3 if len(read) > 1 else 1
    near, covered = (-distance / scale).exp(), torch.zeros(len(features))
    for rows in labelled.split(BATCH) if len(labelled) else ():
        covered = torch.maximum(covered, ((features @ rows.T - 1) / scale).exp().amax(1))
    found: list[int] = []
    for _ in range(min(count, len(features))):
        worth = (near - covered).clamp_min(0) @ unsure       # of covering all others from each: `near` is symmetric
        worth[found] = -1
        found.append(int(worth.argmax()))
        covered = torch.maximum(covered, near[found[-1]])
    return read[found]


def _read(classifier: Classifier, files: dict[str, Path], workers: int) -> tuple[list[str], Tensor, Tensor]:
    """The names of the images that can be read, their probabilities (n, c) and features (n, d)."""
    clip, problems, names = classifier.clip, {}, list(files)
    needs: frozenset[Need] = classifier.method.needs | frozenset[Need]({"pooled"})
    order = torch.arange(len(names)).split(BATCH)
    kept, chances, features = [], [], []
    for rows, images in load_images([str(files[name]) for name in names], FileSource(Path("/")),
                                    EvaluationViews(clip.transform), order, workers, clip.device, problems):
        if len(rows):
            x = clip.encode_image(images, needs)
            kept += [names[row] for row in rows.tolist()]
            chances.append(classifier.from_features(x))
            features.append(F.normalize(x.pooled.float().cpu(), dim=1))
    if not kept:
        raise UserError(next(iter(problems.values())))
    return kept, torch.cat(chances), torch.cat(features)


def _labelled(saved: SavedRun, classifier: Classifier, workers: int) -> tuple[Tensor, set[str]]:
    """The features (k, d) of the images that the run learned from, and the hashes of all images of its data set.

    None of either where they are gone.
    """
    try:
        dataset, whole = saved.dataset(), saved.every_image()
        items = (*dataset.split.train, *dataset.split.val)
        known = {source.source.sha256(item.id) for source in (dataset, whole) for subset in SUBSETS
                 for item in getattr(source.split, subset)}
        if not items:
            raise UserError("the run learned from no image")
        bank = feature_source(classifier.clip, dataset.source, items, FeatureSettings(views=0),
                              needs=frozenset[Need]({"pooled"}), views=0, seed=0, workers=workers)
        rows = [x.pooled.float().cpu() for x, _ in bank.in_order()]
    except UserError:
        return torch.zeros(0, classifier.clip.embed_dim), set()
    return F.normalize(torch.cat(rows), dim=1), known
