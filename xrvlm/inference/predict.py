"""Label image files with a model."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Item
from xrvlm.data.folder import image_files
from xrvlm.errors import UserError
from xrvlm.experiments.record import write_predictions
from xrvlm.features.source import OnlineFeatures
from xrvlm.inference.classifier import Classifier, describe
from xrvlm.methods import ZeroShot
from xrvlm.text.class_text import ClassText
from xrvlm.views import Augmentation, FileSource, read_image

log = logging.getLogger(__name__)


def zero_shot_classifier(clip: FrozenCLIP, classes: ClassText) -> Classifier:
    """A model that was not trained: the class whose sentences are nearest."""
    method = ZeroShot(clip, classes).to(clip.device)
    method.prepare(clip, None)
    return Classifier(clip, method, describe(clip, ZeroShot, classes))


def predict_images(classifier: Classifier, images: Path, *, topk: int = 5, workers: int = 0,
                   out: Path | None = None) -> Iterator[str]:
    """Label a file, or every image below a folder; yields a line of text for each.

    Files that cannot be read are left out with a warning; UserError where none can. `out` also gets all of it as CSV:
    image, prediction, then class_1, probability_1 ... class_k, probability_k.
    """
    if topk < 1:
        raise UserError(f"topk must be at least 1, found {topk}")
    root, names = image_files(images)
    try:
        scores = _scores(classifier, root, names, workers)
    except UserError as error:
        readable = tuple(name for name in names if _is_readable(root / name))
        if not readable or len(readable) == len(names):
            raise
        log.warning("left out %d of %d files, the first because: %s", len(names) - len(readable), len(names), error)
        names, scores = readable, _scores(classifier, root, readable, workers)
    if out is not None:
        write_predictions(out, names, None, scores, classifier.names, topk=topk)
    values, order = scores.topk(min(topk, len(classifier.names)), dim=1)                   # (n, k)
    for name, chances, classes in zip(names, values.tolist(), order.tolist(), strict=True):
        guesses = ", ".join(f"{classifier.names[index]} {chance:.1%}"
                            for index, chance in zip(classes, chances, strict=True))
        yield f"{name}: {guesses}"


def _scores(classifier: Classifier, root: Path, names: Sequence[str], workers: int) -> Tensor:
    """(n, c) probabilities."""
    source = OnlineFeatures(classifier.clip, FileSource(root), tuple(Item(name, 0) for name in names),
                            frozenset(classifier.method.needs), Augmentation(), seed=0, workers=workers)
    return torch.cat([classifier.from_features(x) for x, _ in tqdm(source.in_order(), disable=None, leave=False)])


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except UserError:
        return False
    return True
