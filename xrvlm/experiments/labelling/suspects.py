"""Which labels of a data set look wrong, and which images are there twice."""

import logging
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import SUBSETS, Dataset, Item
from xrvlm.distributed import seeded
from xrvlm.errors import UserError, option
from xrvlm.evaluation.metrics import write_rows
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.inference.classifier import MethodFactory
from xrvlm.methods.base import Method
from xrvlm.methods.registry import find
from xrvlm.text.class_text import class_text, few
from xrvlm.training.fit import learn
from xrvlm.training.folds import folds_of, out_of_fold, rows_of
from xrvlm.views import decode, evaluation_view

log = logging.getLogger(__name__)
FOLDS, NEIGHBOURS, SHARPNESS, CHUNK = 5, 20, 20.0, 2048
COPIES, CUT, ALIKE = 64, 0.04, 0.1       # how like two photos are that are one: see `as_like_as_a_copy`
SUSPECT = ("image", "subset", "label", "suggestion", "suspicion", "probability", "neighbours", "like")
PAIR = ("image", "other", "likeness", "label", "other_label", "subset", "other_subset", "problem")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """What was found, the most suspicious first."""

    suspects: Rows                       # of the columns SUSPECT
    twice: Rows                          # of the columns PAIR

    def write(self, folder: Path, root: Path | None) -> None:
        """suspects.csv and duplicates.csv; `filepath` is the absolute path where the images are files."""
        for name, columns, rows in (("suspects.csv", SUSPECT, self.suspects), ("duplicates.csv", PAIR, self.twice)):
            paths = ["" if root is None else str(root / row["image"]) for row in rows]
            write_rows(folder / name, ("filepath", *columns), [
                {"filepath": path, **row} for path, row in zip(paths, rows, strict=True)])


def find_suspects(clip: FrozenCLIP, dataset: Dataset, method: MethodFactory | str = "linear_probe", *, seed: int = 1,
                  features: FeatureSettings | None = None, workers: int = 0) -> Found:
    """Rank all labelled images of `dataset`, of every subset, by how wrong their labels look.

    `suspicion` is 1 less the mean of two views of the label: its probability by `method`, trained on the other folds,
    and its share among the 20 images whose pooled features are nearest. An image that is the only one of its class is
    not judged. Raises UserError where fewer than two classes have two images.
    """
    items, subsets = _all_of(dataset)
    factory, classes = find(method) if isinstance(method, str) else method, class_text(dataset.split.classes)
    with seeded(seed, "initial weights"):
        fresh = factory(clip, classes).to(clip.device)
    if not fresh.learns or fresh.transductive:
        raise UserError(f"{fresh.label} learns nothing from labels of its own, so it finds none that is wrong: use "
                        f"{option('method', 'linear_probe')}")
    needs: frozenset[Need] = fresh.needs | frozenset[Need]({"pooled"})
    source = feature_source(clip, dataset.source, items, features or FeatureSettings(views=0), needs=needs, views=0,
                            seed=seed, workers=workers)
    fold = folds_of(items, dataset.source, FOLDS, seed)
    trained = deepcopy(fresh)
    train = partial(_learn, clip, seed)
    train(trained, source, None)
    chances = out_of_fold(fresh, trained, clip, source, fold, train).softmax(1)            # (k, c)
    pooled = F.normalize(torch.cat([x.pooled.float().cpu() for x, _ in source.in_order()]), dim=1)       # (n, d)
    likeness, nearest = neighbours(pooled, min(NEIGHBOURS, len(items) - 1))
    shares = _shares(likeness, nearest, source.labels, len(classes.names))                 # (n, c)
    if alone := sorted({classes.names[items[row].label] for row in (fold < 0).nonzero().flatten().tolist()}):
        log.warning("not judged: %d images that are the only ones of their class (%s)", len(alone), few(alone))
    images = _Images(items, subsets, classes.names, likeness, nearest)
    limit = as_like_as_a_copy(clip, dataset, items, pooled)
    return Found(_suspects(images, rows_of(fold), chances, shares), _twice(images, limit))


@dataclass(frozen=True)
class _Images:
    """All n images, and of each its nearest others."""

    items: tuple[Item, ...]
    subsets: list[str]
    names: tuple[str, ...]               # of the classes
    likeness: Tensor                     # (n, k)
    nearest: Tensor                      # (n, k)

    def label(self, row: int) -> str:
        return self.names[self.items[row].label]


def _suspects(images: _Images, rows: Tensor, chances: Tensor, shares: Tensor) -> Rows:
    """The images `rows` (k,), the most suspicious first; `chances` (k, c) are theirs, `shares` (n, c) of all images."""
    both = (chances + shares[rows]) / 2
    labels = torch.tensor([images.items[row].label for row in rows.tolist()])
    suspicion = 1 - both.gather(1, labels[:, None])[:, 0]
    found = []
    for place in suspicion.argsort(descending=True, stable=True).tolist():
        row, own = int(rows[place]), int(labels[place])
        other = int(both[place].scatter(0, labels[place], -1).argmax())
        like = [int(each) for each in images.nearest[row] if images.items[int(each)].label == other]
        found.append({
            "image": images.items[row].id, "subset": images.subsets[row], "label": images.label(row),
            "suggestion": images.names[other], "suspicion": round(suspicion[place].item(), 4),
            "probability": round(chances[place, own].item(), 4), "neighbours": round(shares[row, own].item(), 4),
            "like": images.items[like[0]].id if like else ""})
    return found


def _all_of(dataset: Dataset) -> tuple[tuple[Item, ...], list[str]]:
    parts = {subset: getattr(dataset.split, subset) for subset in SUBSETS}
    return tuple(item for part in parts.values() for item in part), [
        subset for subset, part in parts.items() for _ in part]


def _learn(clip: FrozenCLIP, seed: int, method: Method, support: Any, held: Any) -> None:
    learn(method, clip, method.recipe, seed=seed, train=support, test=held)


def neighbours(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The cosines with the `count` nearest other rows of unit features (n, d), and their indices; both (n, count)."""
    found = []
    for rows in torch.arange(len(features)).split(CHUNK):
        cosines = features[rows] @ features.T
        cosines[torch.arange(len(rows)), rows] = -2
        found.append(cosines.topk(count, dim=1))
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _shares(likeness: Tensor, nearest: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(n, c) the share of each class among the neighbours, the nearer counting more."""
    weights = (SHARPNESS * (likeness - likeness[:, :1])).softmax(1)
    return torch.zeros(len(likeness), classes).scatter_add_(1, labels[nearest], weights)


def as_like_as_a_copy(clip: FrozenCLIP, dataset: Dataset, items: tuple[Item, ...], features: Tensor) -> float:
    """The cosine from which two images count as one: that of a photo with itself, mirrored and cut by 4 % at each side.

    Of 64 photos the cosine that nine of ten reach; towers differ in how near everything is.
    """
    rows = torch.linspace(0, len(items) - 1, min(COPIES, len(items))).long().tolist()
    copies = []
    for row in rows:
        image = ImageOps.mirror(decode(dataset.source.read(items[row].id), items[row].id))
        width, height = image.size
        box = (int(CUT * width), int(CUT * height), width - int(CUT * width), height - int(CUT * height))
        copies.append(evaluation_view(image.crop(box), clip.transform))
    pooled: frozenset[Need] = frozenset({"pooled"})
    encoded = [clip.encode_image(images.to(clip.device), pooled).pooled for images in torch.stack(copies).split(16)]
    copied = F.normalize(torch.cat(encoded).float().cpu(), dim=1)
    return (copied * features[rows]).sum(1).quantile(ALIKE).item()


def _twice(images: _Images, limit: float) -> Rows:
    """Pairs of images as like as copies that stand in two classes, or in test images and others."""
    pairs = {}
    for row, place in (images.likeness >= limit).nonzero().tolist():
        other = int(images.nearest[row, place])
        problem = [word for word, there in (
            ("two classes", images.label(row) != images.label(other)),
            ("train and test", (images.subsets[row] == "test") != (images.subsets[other] == "test"))) if there]
        if problem:
            one, two = sorted((row, other))
            pairs[one, two] = {
                "image": images.items[one].id, "other": images.items[two].id,
                "likeness": round(images.likeness[row, place].item(), 4), "label": images.label(one),
                "other_label": images.label(two), "subset": images.subsets[one], "other_subset": images.subsets[two],
                "problem": " and ".join(problem)}
    return sorted(pairs.values(), key=lambda pair: (-pair["likeness"], pair["image"]))
