"""The training images that are nearest to an image, by the cosine of the frozen tower's pooled features.

They say what the tower finds alike, which is not what the method's classifier decided by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSettings, extract
from xrvlm.views import ImageSource, decode


@dataclass(frozen=True)
class Neighbour:
    """A training image beside another image."""

    image: str                           # its id in the data set
    label: str                           # the name of its class
    similarity: float                    # the cosine of the pooled features, -1..1
    source: ImageSource

    def photo(self) -> Image.Image:
        """The image itself; UserError where it cannot be read."""
        return decode(self.source.read(self.image), self.image)

    @property
    def row(self) -> dict[str, Any]:
        """As in files: image, class, similarity."""
        return {"image": self.image, "class": self.label, "similarity": float(f"{self.similarity:.5g}")}


@dataclass(frozen=True)
class TrainingImages:
    """The training images of a run with their features."""

    features: Tensor                     # (n, d) of unit norm, on the CPU
    ids: Sequence[str]
    labels: Sequence[str]                # the class of each
    source: ImageSource

    @classmethod
    def of(cls, clip: FrozenCLIP, dataset: Dataset, settings: FeatureSettings, *, views: int, seed: int,
           workers: int = 0) -> "TrainingImages":
        """Those of `dataset`, from the bank that a run with these settings made; what it lacks is encoded now.

        Raises UserError where there is no training image, or one cannot be read.
        """
        items, classes = dataset.split.train, dataset.split.classes
        if not items:
            raise UserError("the run was trained on no image: there is none to show beside a photo")
        bank = extract(clip, dataset.source, items, settings, views=views, seed=seed, workers=workers)
        return cls(bank.pooled.cpu(), [item.id for item in items], [classes[item.label] for item in items],
                   dataset.source)

    def nearest(self, pooled: Tensor, count: int) -> list[list[Neighbour]]:
        """Of each row of `pooled` (b, d), of unit norm, the `count` nearest, the nearest first."""
        cosines = pooled.cpu() @ self.features.T                                               # (b, n)
        values, order = cosines.sort(dim=1, descending=True, stable=True)
        return [[Neighbour(self.ids[int(row)], self.labels[int(row)], value, self.source)
                 for row, value in zip(rows, cosines, strict=True)]
                for rows, cosines in zip(order[:, :count].tolist(), values[:, :count].tolist(), strict=True)]
