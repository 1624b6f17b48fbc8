"""`xrvlm demo`: the main job from end to end, in a few minutes on two cores.

On drawn birds and the tiny CLIP, or on a folder of the user's own photos and the photo tower.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from xrvlm.backbones.base import DeviceName, FrozenCLIP, PrecisionName
from xrvlm.backbones.registry import load_tower
from xrvlm.data.dataset import Dataset
from xrvlm.data.folder import image_folder
from xrvlm.demo.drawn_birds import description, load_world, part_descriptions, species
from xrvlm.demo.tiny_clip import load_tiny_clip
from xrvlm.experiments.run import Run, RunOptions, adapt
from xrvlm.experiments.saved import check_writable
from xrvlm.features.source import FeatureSettings
from xrvlm.files import RESULTS
from xrvlm.methods import XRVLM, CoOp, LinearProbe, XRVLMPlus, ZeroShot
from xrvlm.methods.xr_vlm.parts import grid
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.report import write_report
from xrvlm.reporting.sections import Picture
from xrvlm.text.class_text import class_text
from xrvlm.views import decode, evaluation_view

PICTURED = 6
EPOCHS = 20                              # of CoOp and XR-VLM, few enough that the demo takes minutes


def run_demo(runs: Path, *, photos: Path | None = None, small: bool = False, device: DeviceName = "auto",
             precision: PrecisionName = "auto", workers: int = 0) -> Path:
    """Run a few methods, write the report and print its table.

    Args:
        runs: the folder of the runs and of the report.
        photos: a folder of photos, one folder a class: three methods on these, with the photo tower and up to 16 labels
            a class. None: six methods on drawn birds.
        small: a quick test of every step, with one epoch and fewer images; its scores mean nothing.

    Returns:
        The path of report.md.

    Raises:
        UserError: `photos` is no such folder, or the photo tower is not installed.
    """
    start = time.monotonic()
    check_writable(runs / "report", "runs")
    shots, views = (2, 1) if small else (16, 8)
    options = RunOptions(runs=runs, features=FeatureSettings(views=views if photos is None else 0), workers=workers)
    if photos is None:
        dataset = load_world(train_images=3, test_images=2) if small else load_world()
        clip = load_tiny_clip(device=device, precision=precision)
        run = _on_drawn_birds(clip, dataset, shots, options, epochs=1 if small else EPOCHS)
        pictures = [_picture_part_maps(runs / "report" / "parts.png", run, dataset)]
    else:
        dataset, pictures = image_folder(photos), []
        clip = load_tower({"name": "photo", "options": {}}, device=device, precision=precision)
        for method in (ZeroShot, LinearProbe, XRVLMPlus):
            adapt(clip, dataset, method, shots=shots, options=options)
    report = write_report(runs, source_of=lambda _: dataset.source, pictures=pictures)
    print(report.table)
    print(f"{time.monotonic() - start:.0f} s; the results of all runs: {runs / RESULTS}")
    print(f"the report, with pictures: {report.markdown}\nthe same as one page: {report.html}")
    return report.markdown


def _on_drawn_birds(clip: FrozenCLIP, dataset: Dataset, shots: int, options: RunOptions, *, epochs: int) -> Run:
    """Six runs; returns that of XR-VLM."""
    described = partial(class_text, descriptions={kind.name: description(kind) for kind in species(0)})
    parts = {kind.name: part_descriptions(kind) for kind in species(0)}
    adapt(clip, dataset, ZeroShot, options=options)
    adapt(clip, dataset, ZeroShot, text=described, options=options)
    adapt(clip, dataset, LinearProbe, shots=shots, options=options)
    adapt(clip, dataset, XRVLMPlus, shots=shots, text=partial(described, parts=parts), options=options)
    trained = [adapt(clip, dataset, method, shots=shots, options=options,
                     recipe=replace(method.recipe, name=f"{epochs} epochs", epochs=epochs, warmup_epochs=1))
               for method in (CoOp, XRVLM)]
    return trained[-1]


def _picture_part_maps(path: Path, run: Run, dataset: Dataset) -> Picture:
    """The part maps of XR-VLM over some test images."""
    items = dataset.split.test[::max(1, len(dataset.split.test) // PICTURED)][:PICTURED]
    photos = [decode(dataset.source.read(item.id), item.id) for item in items]
    method = run.classifier.method
    assert isinstance(method, XRVLM)
    maps = part_maps(run.classifier.clip, method, photos)
    names = [dataset.split.classes[item.label] for item in items]
    plots.save(plots.grid(photos, list(maps), names=names), path)
    return Picture(path, "Where the parts look", "The part maps of XR-VLM over test images, each stretched to its own "
                   "range.")


@torch.no_grad()
def part_maps(clip: FrozenCLIP, method: XRVLM, photos: list[Image.Image]) -> torch.Tensor:
    """(b, m, h, w): the part maps, without the map of the background."""
    views = torch.stack([evaluation_view(photo, clip.transform) for photo in photos])
    features = clip.encode_image(views.to(clip.device), {"mid_tokens", "tokens"})
    assert features.mid_tokens is not None
    return grid(method.pooling.maps(features.mid_tokens)[:, :-1]).cpu()
