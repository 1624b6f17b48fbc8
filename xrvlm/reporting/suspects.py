"""`xrvlm suspects`: labels that look wrong, as a page with the photos side by side and as tables."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset
from xrvlm.errors import UserError, option, typed
from xrvlm.experiments.labelling.suspects import Found, find_suspects
from xrvlm.experiments.saved import check_writable
from xrvlm.features.source import FeatureSettings
from xrvlm.files import as_file_name, user_path, write_text
from xrvlm.inference.classifier import MethodFactory
from xrvlm.reporting.plots.figures import data_uri
from xrvlm.views import decode

log = logging.getLogger(__name__)
PIXELS = 320                             # the longer side of a photo on the page


@dataclass(frozen=True)
class Suspects:
    """The folder with index.html, suspects.csv and duplicates.csv, and what they hold."""

    folder: Path
    found: Found

    @property
    def summary(self) -> str:
        worst = "\n".join(f"{row['suspicion']:.2f}  {row['image']}: {row['label']}, rather {row['suggestion']}?"
                          for row in self.found.suspects[:10])
        return f"{worst}\n{len(self.found.twice)} pairs of images are there twice\n{self.folder / 'index.html'}"


@typed
def suspects(clip: FrozenCLIP, dataset: Dataset, method: MethodFactory | str = "linear_probe", *, count: int = 50,
             seed: int = 1, features: FeatureSettings | None = None, workers: int = 0,
             out: str | Path | None = None) -> Suspects:
    """Rank the labels of `dataset` by how wrong they look, find images that are there twice, and write a page of it.

    Args:
        method: trained without each fold of the images in turn, and asked about it.
        count: how many labels, and how many pairs, the page shows; the tables hold all.
        out: a folder; None: suspects/<name of the data set>.

    Raises:
        UserError: fewer than two classes have two images, or the folder cannot be written.
    """
    if count < 1:
        raise UserError(f"{option('count')} must be at least 1, found {count}")
    folder = user_path(Path("suspects") / as_file_name(dataset.name) if out is None else out)
    check_writable(folder, "out")
    found = find_suspects(clip, dataset, method, seed=seed, features=features, workers=workers)
    found.write(folder, getattr(dataset.source, "root", None))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "suspects.html").read_text(encoding="utf-8"))
    write_text(folder / "index.html", template.render(
        data=dataset.name, images=len(found.suspects), pairs=len(found.twice),
        suspects=[_shown(dataset, row, "like") for row in found.suspects[:count]],
        twice=[_shown(dataset, row, "other") for row in found.twice[:count]]))
    return Suspects(folder, found)


def _shown(dataset: Dataset, row: dict[str, Any], beside: str) -> dict[str, Any]:
    pictures = [name and _embedded(dataset, name) for name in (row["image"], row[beside])]
    return row | dict(zip(("picture", "beside"), pictures, strict=True))


def _embedded(dataset: Dataset, name: str) -> str:
    return data_uri(decode(dataset.source.read(name), name), PIXELS)
