"""Cross-validation: each image is held out once, by a draw from its own path, and asked about then.

Files of equal bytes are one image: a method that had trained on a copy would be asked about what it knows.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Item, is_extra
from xrvlm.distributed import seed_of
from xrvlm.errors import UserError, option
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSource, OnlineFeatures
from xrvlm.methods.base import Method
from xrvlm.views import ImageSource

# trains a method in place on a source, and shows it the held-out images without labels where it is transductive
Learn = Callable[[Method, FeatureSource, FeatureSource], object]


def folds_of(items: Sequence[Item], source: ImageSource, folds: int, seed: int) -> Tensor:
    """(n,) the fold that holds each image out, -1 for none: the only image of a class is always trained on, and extra
    images are.

    The images of a class stand in as many folds as there can be, so that no fold leaves a class without a training
    image; a class with fewer images than folds is missing from the others. Images whose files in `source` have equal
    bytes are held out together, of two classes too, and count once. UserError where fewer than two classes have two
    images.
    """
    own = [row for row, item in enumerate(items) if not is_extra(item.id)]
    own.sort(key=lambda row: (items[row].label, seed_of(seed, "fold", items[row].id)))
    copies: dict[str, list[int]] = defaultdict(list)       # the rows of each image, in the order of their draws
    for row in own:
        copies[source.sha256(items[row].id)].append(row)
    images: dict[int, list[list[int]]] = defaultdict(list)           # of each class
    for rows in copies.values():
        for label in {items[row].label for row in rows}:
            images[label].append(rows)
    counts = torch.tensor([len(images[label]) for label in sorted(images)])
    if (counts > 1).sum() < 2:
        each = "each class but one" if counts.max() > 1 else "each class"
        raise UserError(f"{each} has one labelled image (what is kept for testing does not count, copies count once), "
                        "and cross-validation needs two classes with two: use more shots or images, or "
                        f"{option('method', 'zero_shot')}, which needs none")
    fold, given = torch.full((len(items),), -1), 0
    for rows in copies.values():
        if all(len(images[items[row].label]) > 1 for row in rows):
            fold[rows], given = given % folds, given + 1
    for first, *others in images.values():       # copies in two classes can bring all images of one into one fold
        if others and all(fold[rows[0]] == fold[first[0]] for rows in others):
            fold[first] = -1
    return fold


def rows_of(fold: Tensor) -> Tensor:
    """The images that are held out, fold by fold, as `out_of_fold` returns them."""
    return torch.cat([(fold == number).nonzero().flatten() for number in range(int(fold.max()) + 1)])


def out_of_fold(fresh: Method, trained: Method, clip: FrozenCLIP, source: FeatureSource, fold: Tensor, learn: Learn, *,
                done: dict[str, Tensor] | None = None, keep: Callable[[dict[str, Tensor]], object] | None = None,
                ) -> Tensor:
    """(k, c) the logits of the images that are held out, in the order of `rows_of`, each from a method without them.

    Args:
        fresh: the method before its training.
        trained: the same, trained on all images: what it chose by them is not chosen anew, or the logits of the folds
            would be of other sizes.
        done: folds that were finished before, by their numbers.
        keep: called with `done` after each fold.
    """
    done = {} if done is None else done
    for number in range(int(fold.max()) + 1):
        if str(number) not in done:
            method, held = deepcopy(fresh), _part(source, fold == number)
            method.settle(trained)
            learn(method, _part(source, fold != number), held)
            done[str(number)] = logits_of(method, clip, held)
            if keep is not None:
                keep(done)
    return torch.cat([done[str(number)] for number in range(int(fold.max()) + 1)])


@torch.no_grad()
def logits_of(method: Method, clip: FrozenCLIP, source: FeatureSource) -> Tensor:
    """(n, c) the logits of the images of `source`, without any scaling, on the CPU."""
    method.eval()
    class_features = method.class_features(clip)
    return torch.cat([method.logits(x.to(clip.device), class_features) for x, _ in source.in_order()]).cpu()


def _part(source: FeatureSource, which: Tensor) -> FeatureSource:
    rows = which.nonzero().flatten()
    if isinstance(source, FeatureBank):
        return source.take(rows)
    assert isinstance(source, OnlineFeatures), "there are two kinds of sources"
    return replace(source, items=tuple(source.items[row] for row in rows.tolist()))
