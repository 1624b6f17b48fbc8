"""What the runs of paper.py will cost: images through the tower, steps, time on this device, disk, weights to download.

The time is an estimate from a few timed batches. The tower that is timed has random weights, since its speed does not
depend on them: nothing is downloaded to tell the cost.
"""

import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from common import drawn_bank, once, random_images, take_turns
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.backbones.openclip_load import load_openclip
from xrvlm.cli.main import quote
from xrvlm.cli.runs import recipe_of
from xrvlm.data.dataset import Dataset, Split, with_test_set
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError
from xrvlm.features.source import FeatureSettings, bank_bytes
from xrvlm.methods.base import Recipe
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM
from xrvlm.text.class_text import ClassText
from xrvlm.training.fit import fitting_recipe, learn
from xrvlm.views import EvaluationViews, load_images

BATCH, CLASSES, STEPS, DECODED = {"cpu": 8, "cuda": 64}, {"cpu": 20, "cuda": 100}, {"cpu": 2, "cuda": 10}, 32
GB = 1e9


@dataclass(frozen=True)
class Asked:
    """A data set of the suite, and the words that all of its commands have."""

    name: str
    root: Path
    words: tuple[str, ...]
    coop: bool = False                   # on CoOp's split

    @property
    def options(self) -> dict[str, Any]:
        return {"split": "coop"} if self.coop else {}

    @property
    def dataset(self) -> Dataset:
        return load_dataset(self.name, root=str(self.root), **self.options)


@dataclass(frozen=True)
class Job:
    """One run: what `xrvlm adapt` is given."""

    asked: Asked
    method: str                          # name or name:head
    shots: str                           # 0 for a method that learns nothing
    seed: int
    words: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.asked.name}: {self.method}, shots={self.shots}, seed={self.seed}"


@dataclass(frozen=True)
class Cost:
    lines: list[str]                     # for people, before any work
    machine: dict[str, str]              # what the runs are done on


@dataclass(frozen=True)
class Share:
    """What one run costs."""

    images: int                          # through the tower
    steps: int
    seconds: float
    saved: float                         # bytes of its model


@dataclass
class Probe:
    """Speeds of one tower on this device."""

    config: Any                          # of one job, composed

    @cached_property
    def clip(self) -> FrozenCLIP:
        load = instantiate(self.config.backbone, _partial_=True, _convert_="all")
        if load.func is load_openclip and load.keywords.get("pretrained"):
            load = partial(load, pretrained=None, allow_random=True)
        return load(device=self.config.device, precision=self.config.precision)

    @property
    def device(self) -> str:
        return "cuda" if self.clip.device.type == "cuda" else "cpu"

    @cached_property
    def tower(self) -> float:
        """Images/s of the tower alone, with the positions that XR-VLM reads."""
        images = random_images(self.clip, BATCH[self.device])
        call = {"tower": partial(self.clip.encode_image, images, XRVLM.needs)}
        return len(images) / take_turns(call, 3, self.clip.device, warm_up=True)["tower"].clock

    def decoder(self, dataset: Dataset) -> float:
        """Images/s of one process that decodes images of the data set."""
        ids = [item.id for item in dataset.split.train[:DECODED]]
        order = torch.arange(len(ids)).split(DECODED)
        view = EvaluationViews(self.clip.transform)
        turn = once(lambda: list(load_images(ids, dataset.source, view, order, 0, self.clip.device)), self.clip.device)
        return len(ids) / turn.clock

    def step(self, config: Any, names: Sequence[str]) -> tuple[Recipe, float, float]:
        """The recipe of a method, and of `names` the seconds of a step and the bytes of the model, without images.

        Both are measured with a few of the names and scaled by their number: nearly all of them is of the classes.
        """
        few = tuple(names[:CLASSES[self.device]])
        method = instantiate(config.method, _partial_=True, _convert_="all")(
            self.clip, ClassText(few, tuple((name,) for name in few))).to(self.clip.device)
        recipe, scale = fitting_recipe(recipe_of(config.recipe), method), len(names) / len(few)
        if not recipe.epochs:
            return recipe, 0.0, 0.0
        short = replace(recipe, epochs=1, average_last=0, soup=())
        bank = drawn_bank(self.clip, STEPS[self.device] * recipe.batch_size, len(few))
        call: Callable[[], Any] = lambda: learn(method, self.clip, short, seed=0, train=bank)  # noqa: E731
        warm_up = self.device == "cuda"  # on a CPU a step takes seconds, and its first one hardly longer
        clock = take_turns({"steps": call}, 1, self.clip.device, warm_up=warm_up)["steps"].clock
        return recipe, scale * clock / STEPS[self.device], scale * 4.0 * method.learned_parameters


def cost_of(jobs: Sequence[Job]) -> Cost:
    """What all runs cost if none is finished yet. UserError where a command does not compose."""
    configs = {job: composed(job) for job in jobs}
    probe = Probe(configs[jobs[0]])
    lines, shares, banks = [], [], 0.0
    for asked in dict.fromkeys(job.asked for job in jobs):
        own = {job: config for job, config in configs.items() if job.asked == asked}
        dataset = asked.dataset
        split = with_test_set(dataset.split)
        lines.append(f"{asked.name}: {len(split.classes)} classes, {len(split.train):,} training images to draw from, "
                     f"{len(split.test):,} test images")
        found, stored = _shares(own, dataset, split, probe, lines)
        shares += found
        banks += stored
    told = Cost([*lines, *_in_all(shares, banks, probe)], machine_of(probe))
    del probe
    if torch.cuda.is_available():        # the runs are in other processes, which need the memory
        torch.cuda.empty_cache()
    return told


def composed(job: Job) -> Any:
    """The configuration of a job, as its command composes it."""
    try:
        with initialize_config_module("xrvlm.conf", version_base="1.3"):
            return compose("adapt", [quote(word) for word in job.words])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{job.title}: {' '.join(str(error).split())}") from error


def _shares(configs: dict[Job, Any], dataset: Dataset, split: Split, probe: Probe,
            lines: list[str]) -> tuple[list[Share], float]:
    """The share of each run on one data set, and the bytes of its feature banks; adds a line for each method."""
    first = next(iter(configs.values()))
    settings: FeatureSettings = instantiate(first.features, _convert_="all")()
    online, views = settings.mode == "online", settings.views
    images = split.train[:1] or split.test[:1]
    decoder = probe.decoder(dataset) if images else float("inf")
    workers = max(1, int(first.workers))
    rate = (min(probe.tower, decoder * workers) if probe.device == "cuda"
            else 1 / (1 / probe.tower + 1 / (decoder * min(workers, os.cpu_count() or 1))))
    steps = {method: probe.step(config, split.classes)
             for method, config in {job.method: config for job, config in configs.items()}.items()}
    shares: dict[Job, Share] = {}
    for job in configs:
        recipe, seconds, saved = steps[job.method]
        drawn = _drawn(split, job.shots)
        passes = recipe.epochs * max(1, len(recipe.soup)) or bool(drawn)
        count = passes * -(-drawn // recipe.batch_size) if recipe.epochs else 0
        # from disk every view is encoded once, whatever the number of methods
        new = online or job.method == next(iter(configs)).method
        encoded = (drawn * passes if online else drawn * (views + 1) * new) + len(split.test) * new
        shares[job] = Share(encoded, count, encoded / rate + count * seconds, saved)
    lines += [_line(method, [share for job, share in shares.items() if job.method == method], steps[method])
              for method in steps]
    lines.append(f"    decoding {decoder:,.1f} images/s a process, {workers} process{'es' * (workers > 1)}")
    size = partial(bank_bytes, probe.clip, settings=settings, needs=XRVLM.needs)
    drawn = max(_drawn(split, job.shots) for job in configs) * len({job.seed for job in configs})
    banks = 0.0 if online else size(count=len(split.test), views=0) + size(count=drawn, views=views)
    return list(shares.values()), banks


def _drawn(split: Split, shots: str) -> int:
    """Training images of a run."""
    each = Counter(item.label for item in split.train)
    return sum(count if shots == "all" else min(int(shots), count) for count in each.values())


def _line(method: str, shares: Sequence[Share], step: tuple[Recipe, float, float]) -> str:
    recipe, seconds, _ = step
    images, steps = sum(share.images for share in shares), sum(share.steps for share in shares)
    trained = f", {recipe.epochs} epochs, {steps:,} steps of {1000 * seconds:.0f} ms without the tower" * (steps > 0)
    return (f"    {method}: {len(shares)} run{'s' * (len(shares) > 1)}, {images:,} images through the tower{trained}; "
            f"about {_time(sum(share.seconds for share in shares))}")


def _in_all(shares: Sequence[Share], banks: float, probe: Probe) -> list[str]:
    images, seconds = sum(share.images for share in shares), sum(share.seconds for share in shares)
    largest = max(share.saved for share in shares)
    disk = sum(share.saved for share in shares) + 2 * largest          # and the checkpoint of the run in progress
    weights = sum(parameter.numel() for parameter in probe.clip.parameters()) * 4 / GB
    name = str(probe.config.backbone.get("pretrained") or "")
    fetched = name and not Path(name).exists()
    download = f"about {weights:.1f} GB, once, if they are not there yet" if fetched else "none"
    runs = f"{len(shares)} run{'s' * (len(shares) > 1)}"
    return [f"In all {runs}, {images:,} images through the tower (a finished run is not done again).",
            f"Time: about {_time(seconds)}. This is an estimate, from a few timed batches on this device: tower "
            f"{probe.tower:,.1f} images/s, {probe.clip.precision}, {_device(probe.clip)}. Starting the runs, closed "
            "forms, evaluation and the report are not counted.",
            f"Disk: about {disk / GB:.2f} GB of models and {banks / GB:.1f} GB of features.",
            f"Weights to download: {download}."]


def _time(seconds: float) -> str:
    return (f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes" if seconds >= 120
            else f"{seconds:.0f} s")


def _device(clip: FrozenCLIP) -> str:
    threads = torch.get_num_threads()
    cores = f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"
    return torch.cuda.get_device_name(clip.device) if clip.device.type == "cuda" else cores


def machine_of(probe: Probe) -> dict[str, str]:
    return {"Device": _device(probe.clip), "Precision of the tower": probe.clip.precision,
            "System": platform.platform()}
