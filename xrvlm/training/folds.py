"""The folds of a cross-validation: each image is held out once, by a draw from its own path."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xrvlm.data.dataset import Item
from xrvlm.distributed import seed_of
from xrvlm.errors import UserError, option


def folds_of(items: Sequence[Item], folds: int, seed: int) -> Tensor:
    """(n,) the fold that holds each image out, -1 for none: the only image of a class is always trained on.

    The images of a class stand in as many folds as there can be, so that no fold leaves a class without a training
    image; a class with fewer images than folds is missing from the others. UserError where fewer than two classes have
    two images.
    """
    order = sorted(range(len(items)), key=lambda row: (items[row].label, seed_of(seed, "fold", items[row].id)))
    counts = torch.tensor([item.label for item in items]).bincount()
    if (counts > 1).sum() < 2:
        each = "each class but one" if counts.max() > 1 else "each class"
        raise UserError(f"{each} has one labelled image (what is kept for testing does not count), and "
                        "cross-validation needs two classes with two: use more shots or images, or "
                        f"{option('method', 'zero_shot')}, which needs none")
    fold, given = torch.full((len(items),), -1), 0
    for row in order:
        if counts[items[row].label] > 1:
            fold[row], given = given % folds, given + 1
    return fold
