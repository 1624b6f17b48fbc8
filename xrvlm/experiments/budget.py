"""How long a comparison may take, how long its stages would take, and the features that its candidates share."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from xrvlm.backbones.base import FrozenCLIP, Need
from xrvlm.data.dataset import Dataset, Item
from xrvlm.errors import UserError, option, seconds_of
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, bank_bytes, feature_source, images_to_encode
from xrvlm.methods.base import Method, Recipe
from xrvlm.training.fit import fit

PILOT_BATCHES = 2                        # of training, from which the time of a whole training is estimated
TIMED_IMAGES = 8

Asked = tuple[int, frozenset[Need]]      # augmented views, and the features that are read


def budget_seconds(budget: Any) -> float:
    """`10`, `10m`, `90s` or `1.5h` in seconds; a bare number counts minutes."""
    return seconds_of("budget", budget, "10m, 90s or 1h", units="smh", unit="m")


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def training_seconds(method: Method, clip: FrozenCLIP, support: FeatureBank, recipe: Recipe, seed: int) -> float:
    """Estimate of how long `method` trains on `support`: from two batches, the second time that they are trained."""
    start = time.perf_counter()
    method.prepare(clip, support)
    prepared = time.perf_counter() - start
    count = min(len(support.labels), max(PILOT_BATCHES, recipe.text_every) * recipe.batch_size)
    some = support.take(torch.arange(count))
    short = replace(recipe, epochs=1, average_last=0, reestimate=False)
    fit(method, clip, some, short, seed=seed)                                  # the first steps are slower
    epochs = recipe.epochs + (recipe.reestimate or recipe.averaged > 1)        # re-estimation is one more pass
    return prepared + fit(method, clip, some, short, seed=seed).seconds * epochs * len(support.labels) / count


def seconds_an_image(clip: FrozenCLIP, needs: Collection[Need]) -> float:
    """How long the tower takes for one view of one image; decoding and augmentation run at the same time."""
    size = clip.transform.image_size
    images = torch.zeros(TIMED_IMAGES, 3, size, size, device=clip.device)
    clip.encode_image(images, needs)
    start = time.perf_counter()
    clip.encode_image(images, needs).pooled.cpu()
    return (time.perf_counter() - start) / TIMED_IMAGES


@dataclass(frozen=True)
class SharedBanks:
    """One bank of all labelled images for each number of views, with what any of the candidates reads."""

    clip: FrozenCLIP
    dataset: Dataset
    items: tuple[Item, ...]
    settings: FeatureSettings
    seed: int
    workers: int
    needs: dict[int, frozenset[Need]] = field(default_factory=dict)    # by views
    made: dict[Asked, FeatureBank] = field(default_factory=dict)

    def register(self, views: int, needs: Collection[Need]) -> None:
        """A candidate will read `needs` of so many augmented views."""
        self.needs[views] = self.needs.get(views, frozenset()) | frozenset(needs)

    def bank(self, views: int, needs: frozenset[Need]) -> FeatureBank:
        """The bank as a candidate would find it if it were the only one."""
        asked = self._asked(views, needs)
        if asked not in self.made:
            found = feature_source(self.clip, self.dataset.source, self.items, self.settings, needs=asked[1],
                                   views=views, seed=self.seed, workers=self.workers)
            if not isinstance(found, FeatureBank):
                raise UserError("compare reads the features of all folds from one bank: raise "
                                f"{option('features.budget_gb')}, or use fewer {option('shots')}")
            self.made[asked] = found
        whole = self.made[asked]
        return replace(whole, shards=[{name: shard[name] for name in needs} for shard in whole.shards])

    def too_costly(self, views: int, needs: frozenset[Need], seconds_left: float) -> str | None:
        """Why the bank of a candidate is too large or takes too long."""
        asked = self._asked(views, needs)
        if (size := self._gigabytes(*asked)) > self.settings.budget_gb:
            return f"its features take {size:.1f} GB, over {option('features.budget_gb', self.settings.budget_gb)}"
        seconds = 0.0 if asked in self.made else self._seconds(*asked)
        if seconds > seconds_left:
            return (f"its features alone would take about {in_words(seconds)}, and {in_words(seconds_left)} were "
                    "left")
        return None

    def _asked(self, views: int, needs: frozenset[Need]) -> Asked:
        """What is extracted for a candidate: what all candidates of its views read, where that is not too large."""
        shared = self.needs[views]
        return views, shared if self._gigabytes(views, shared) <= self.settings.budget_gb else needs

    def _gigabytes(self, views: int, needs: frozenset[Need]) -> float:
        return bank_bytes(self.clip, len(self.items), self.settings, needs, views) / 1e9

    def _seconds(self, views: int, needs: frozenset[Need]) -> float:
        missing = images_to_encode(self.clip, self.dataset.source, self.items, self.settings, needs=needs, views=views,
                                   seed=self.seed)
        return missing * (views + 1) * seconds_an_image(self.clip, needs) if missing else 0.0


def rest_too_long(fold_seconds: Sequence[float], folds: int, seconds_left: float) -> str | None:
    """Why the folds that are not done yet do not fit in what is left of the budget, if they are as slow as the slowest
    of those that are.
    """
    return too_long(max(fold_seconds) * (folds - len(fold_seconds)), seconds_left)


def too_long(seconds: float, seconds_left: float) -> str | None:
    if seconds <= max(seconds_left, 0):
        return None
    return f"it would take about {in_words(seconds)} more, and {in_words(max(seconds_left, 0))} were left"
