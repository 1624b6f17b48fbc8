"""The page itself, with Gradio, whose API is the REST endpoint: photos in, answers out, and nothing kept.

What a request can ask for is bounded: so many photos at once, so many bytes each, so many requests that wait. No file
is read but those that were uploaded through the page, and none is fetched from elsewhere.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from xrvlm.backbones.base import DeviceName, PrecisionName
from xrvlm.errors import UserError, check_fields, option, typed
from xrvlm.inference.answers import Asked
from xrvlm.inference.nearest import Neighbour
from xrvlm.reporting.plots.figures import data_uri
from xrvlm.reporting.serve.models import Answer, Model, load_models, photo_bytes
from xrvlm.views import decode

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
PHOTO_SIDE, SMALL_SIDE = 448, 224        # pixels of pictures on the page
KEPT = 600                               # seconds after which an uploaded file is deleted


@dataclass(frozen=True)
class PageLimits:
    """What one visitor may ask for.

    Args:
        uploads: how many photos at once.
        megabytes: of one photo.
        waiting: how many requests may wait; further ones are told to come again.
    """

    uploads: int = 20
    megabytes: float | int = 20
    waiting: int = 64

    def __post_init__(self):
        check_fields(self)
        for name in ("uploads", "megabytes", "waiting"):
            if not getattr(self, name) > 0:
                raise UserError(f"{option(name)} must be more than 0, found {getattr(self, name)}")


@dataclass
class Page:
    """Models behind a page."""

    models: Mapping[str, Model]
    limits: PageLimits
    coverage: float | None = None        # of the sets, for their legend

    def rows(self, name: str, photos: Sequence[Any] | None) -> list[dict[str, Any]]:
        """The answers of the model `name` about uploaded files, as JSON; of a file that is no photo, its `problem`."""
        return [{"photo": photo, "problem": problem} if answer is None else {"photo": photo, **answer.row}
                for photo, _, answer, problem in self._answered(name, photos, parts=False)]

    def html(self, name: str, photos: Sequence[Any] | None, parts: bool) -> str:
        """The same for people, with pictures; `parts`: also of the parts that decided."""
        shown = [{"name": photo, "picture": image and data_uri(image, PHOTO_SIDE), "problem": problem, "answer": answer,
                  "parts": [(part, data_uri(part.picture, SMALL_SIDE)) for part in answer.parts] if answer else [],
                  "nearest": [(found, _picture(found)) for found in answer.nearest] if answer else []}
                 for photo, image, answer, problem in self._answered(name, photos, parts)]
        classes = len(self.models[name].classifier.names) if name in self.models else 0
        return self._template.render(answers=shown, coverage=self.coverage, classes=classes)

    def _answered(self, name: str, photos: Sequence[Any] | None,
                  parts: bool) -> list[tuple[str, Any, Answer | None, str]]:
        """Of each file: its name, its image, and the answer or what is wrong with it."""
        if name not in self.models:
            raise UserError(f"there is no model {name!r}: choose one of {', '.join(self.models)}")
        if len(photos or ()) > self.limits.uploads:
            raise UserError(f"{len(photos or ())} photos are too many: give at most {self.limits.uploads} at once")
        found = []
        for file in photos or ():
            path = Path(str(file))       # its name is the visitor's, without folders
            try:
                image = decode(photo_bytes(path, path.name, int(self.limits.megabytes * 1e6)), path.name)
                found.append((path.name, image, self.models[name].answer(image, parts=parts), ""))
            except UserError as error:
                found.append((path.name, None, None, str(error).partition("; ")[0]))      # without advice on data sets
        return found

    @cached_property
    def _template(self) -> Template:
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        return environment.from_string((HERE / "answers.html").read_text(encoding="utf-8"))


def _picture(found: Neighbour) -> str | None:
    try:
        return data_uri(found.photo(), SMALL_SIDE)
    except UserError as error:
        log.warning("%s", error)
        return None


@typed
def serve(run: str | Path | Sequence[str | Path], *, host: str = "127.0.0.1", port: int = 7860,
          limits: PageLimits | None = None, asked: Asked | None = None, topk: int = 5, nearest: int = 3,
          device: DeviceName = "auto", precision: PrecisionName = "auto", wait: bool = True) -> Any:
    """Open a page that answers about photos, at http://`host`:`port`, until it is interrupted.

    Args:
        run: finished runs, as `predict` takes them; a visitor chooses among them.
        host: 127.0.0.1 shows the page to this machine alone, 0.0.0.0 to its whole network, without a password.
        port: 0: any that is free.
        limits: None: those of `PageLimits`.
        asked: what the models say; None: unknown or not, sets at 0.9, groups at 0.9, where a model can.
        topk: how many classes of each photo.
        nearest: how many training photos beside each photo; 0 shows none to visitors.
        wait: False: return Gradio's page, which runs in threads of its own, at once; its `close` ends it.

    Raises:
        UserError: gradio is not installed, an option is out of range, a run cannot be loaded, or the port is taken.
    """
    for name, value, least, most in (("topk", topk, 1, 10**6), ("nearest", nearest, 0, 100), ("port", port, 0, 65535)):
        if not least <= value <= most:
            raise UserError(f"{option(name)} must be from {least:,} to {most:,}, found {value}")
    try:
        from xrvlm.reporting.serve.interface import interface, launch
    except ImportError as error:
        raise UserError("the page needs gradio: run `pip install 'xrvlm[page]'`") from error
    runs = [run] if isinstance(run, str | Path) else run
    limits, asked = limits or PageLimits(), asked or Asked(coverage=0.9, certainty=0.9)
    models = load_models(runs, asked, topk=topk, nearest=nearest, device=device, precision=precision)
    return launch(interface(Page(models, limits, asked.coverage), KEPT), host, port, limits, wait=wait)
