"""How long a comparison may take, and how long its parts would."""

import re
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.errors import UserError
from xrvlm.features.bank import FeatureBank
from xrvlm.methods.base import Method, Recipe
from xrvlm.training.fit import fit

UNITS = {"s": 1, "m": 60, "h": 3600}
PILOT_BATCHES = 2                        # of training, from which the time of the whole is told
TIMED_IMAGES = 8


def seconds_of(budget: Any) -> float:
    """`10`, `10m`, `90s` or `1.5h` in seconds; a bare number counts minutes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smh]?)", str(budget).strip())
    seconds = float(found[1]) * UNITS[found[2] or "m"] if found else 0
    if not seconds:
        raise UserError(f"budget must be a time such as 10m, 90s or 1h; found {budget!r}")
    return seconds


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def training_seconds(method: Method, clip: FrozenCLIP, support: FeatureBank, recipe: Recipe, seed: int) -> float:
    """How long `method` would train on `support`, about: two of its batches, the second time that they are trained."""
    start = time.perf_counter()
    method.prepare(clip, support)
    prepared = time.perf_counter() - start
    count = min(len(support.labels), max(PILOT_BATCHES, recipe.text_every) * recipe.batch_size)
    some = support.take(torch.arange(count))
    short = replace(recipe, epochs=1, average_last=0, reestimate=False)
    fit(method, clip, some, short, seed=seed)                                  # the first steps are slower
    epochs = recipe.epochs + (recipe.reestimate or recipe.averaged > 1)        # the pass behind the last is no longer
    return prepared + fit(method, clip, some, short, seed=seed).seconds * epochs * len(support.labels) / count


def seconds_an_image(clip: FrozenCLIP, needs: Collection[Need]) -> float:
    """What one view of one image costs the tower; reading and augmenting it goes on beside that."""
    size = clip.transform.image_size
    images = torch.zeros(TIMED_IMAGES, 3, size, size, device=clip.device)
    clip.encode_image(images, needs)
    start = time.perf_counter()
    clip.encode_image(images, needs).pooled.cpu()
    return (time.perf_counter() - start) / TIMED_IMAGES
