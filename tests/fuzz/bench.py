"""What all inputs share: photos, a tower, and finished runs, made once in a folder of their own."""

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

from photos import photo_folder

import xrvlm
from xrvlm.demo import tiny_clip
from xrvlm.experiments.run import Run

SMALL = partial(xrvlm.XRVLM, image_parts=2, text_parts=2, context_length=2, hidden=8)
METHODS = ("linear_probe", "xr_vlm")


class Bench:
    """A folder with `photos/`, `runs/` and `cases/`."""

    def __init__(self, root: Path):
        self.root = root
        self.scratch = root / "scratch"
        self.photos = photo_folder(root / "photos", images=4)
        self.photo = self.photos / "wren" / "0.png"
        (root / "home").mkdir()

    @cached_property
    def clip(self) -> xrvlm.FrozenCLIP:
        return xrvlm.load_tiny_clip(device="cpu")

    def adapt(self, method: str, place: Path, photos: Path | None = None, views: int = 0, **more: Any) -> Run:
        """A short run in place/runs with its features in place/cache."""
        features = xrvlm.FeatureSettings(views=views, cache=str(place / "cache"))
        given: dict[str, Any] = {"shots": 2, "options": xrvlm.RunOptions(runs=place / "runs", features=features)}
        if method == "xr_vlm":
            given["recipe"] = {"epochs": 3, "warmup_epochs": 1}
        return xrvlm.adapt(self.clip, xrvlm.image_folder(photos or self.photos),
                           SMALL if method == "xr_vlm" else method, **given | more)

    @cached_property
    def runs(self) -> dict[str, Run]:
        return {method: self.adapt(method, self.root / "made") for method in METHODS}

    def ready(self) -> None:
        """Make and import what inputs use, so that no input pays for it, or is watched while it happens."""
        if (self.root / "made" / "report").exists():
            return
        for run in self.runs.values():
            run.classifier.predict(self.photo)
        xrvlm.report(self.root / "made" / "runs", self.root / "made" / "report", photos=False)

    def copied(self, method: str, place: Path) -> Path:
        """A copy of a finished run, with its line, in place/runs."""
        made = self.runs[method].folder
        folder = shutil.copytree(made, place / "runs" / made.name)
        lines = (made.parent / "results.jsonl").read_text().splitlines()
        own = [line for line in lines if made.name in line]
        (place / "runs" / "results.jsonl").write_text("\n".join([*own, ""]))
        return folder

    @contextmanager
    def case(self, name: str) -> Iterator[Path]:
        """An empty folder for one input, and in it the working folder; deleted in the end."""
        place, before = self.root / "cases" / name, Path.cwd()
        shutil.rmtree(place, ignore_errors=True)
        (place / "work").mkdir(parents=True)
        os.chdir(place / "work")
        try:
            yield place
        finally:
            os.chdir(before)
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def benched(root: Path | None = None) -> Iterator[Bench]:
    """A Bench in `root` or in a temporary folder. The tiny tower is read from disk once: commands get the same one."""
    original, kept = tiny_clip.load_tiny_clip, {}

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, kwargs))
        return kept[key] if key in kept else kept.setdefault(key, original(*args, **kwargs))

    with tempfile.TemporaryDirectory(prefix="xrvlm-fuzz-") as temporary:
        root = Path(root or temporary).resolve()
        (root / "scratch").mkdir()
        environment = {"HOME": str(root / "home"), "XRVLM_CACHE": str(root / "cache"),
                       "MPLCONFIGDIR": str(root / "scratch")}
        with mock.patch.dict(os.environ, environment), mock.patch.object(tiny_clip, "load_tiny_clip", load), \
                mock.patch.object(tempfile, "tempdir", str(root / "scratch")):
            yield Bench(root)
