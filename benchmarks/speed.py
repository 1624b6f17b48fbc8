"""What the benchmarks of images per second share: towers with random weights, drawn photos, and fair turns."""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import xrvlm
from xrvlm.backbones.base import FrozenCLIP

MODELS = {"vit_b16": "ViT-B-16-quickgelu", "rn50": "RN50-quickgelu"}


def arguments(description: str | None, *, towers: str, images: int) -> argparse.ArgumentParser:
    """The options that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--towers", default=towers, help="comma-separated: vit_b16, rn50, tiny")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def tower(name: str, device: str, precision: str) -> FrozenCLIP:
    if name == "tiny":
        return xrvlm.load_tiny_clip(device=device, precision=precision)
    return xrvlm.load_openclip(MODELS[name], allow_random=True, device=device, precision=precision)


def random_images(clip: FrozenCLIP, count: int) -> torch.Tensor:
    """(count, 3, s, s) on the tower's device."""
    size = clip.transform.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(clip.device)


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels and about 70 kB, as photos have: coarse shapes under fine noise."""
    draws = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + draws.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=90)


@dataclass(frozen=True)
class Speed:
    """Medians."""

    rate: float                          # images/s on the wall clock
    work: float                          # milliseconds of all processors an image, worker processes included

    def __str__(self) -> str:
        return f"{self.rate:.1f} images/s ({self.work:.2f} ms of CPU each)"


def alternate(calls: Mapping[str, Callable[[], object]], images: int, *, rounds: int, device: str) -> dict[str, Speed]:
    """The speed of each call, taken in turns so that what else the machine does meets all of them alike.

    On a machine that others use too, CPU time says more than the wall clock; run with OMP_WAIT_POLICY=passive there,
    or threads that wait for each other count as work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    worked: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):       # the first is for caches and kernels
        for name, call in calls.items():
            begin, before = time.perf_counter(), _cpu_seconds()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
                worked[name].append(_cpu_seconds() - before)
    return {name: Speed(images / statistics.median(values), 1000 * statistics.median(worked[name]) / images)
            for name, values in seconds.items()}


def told(speeds: Mapping[str, Speed], ours: str) -> str:
    """Beside the tower and the decoder: the slower is the limit, or on a CPU, which they share, one after the other."""
    tower, decoder, whole = speeds["tower"], speeds["decoder"], speeds[ours]
    lower, in_turn = min(tower.rate, decoder.rate), 1 / (1 / tower.rate + 1 / decoder.rate)
    return (f"{ours} {whole}; tower {tower}, decoder {decoder}; ratio to the lower {whole.rate / lower:.3f}, to one "
            f"after the other {whole.rate / in_turn:.3f} ({(tower.work + decoder.work) / whole.work:.3f} of CPU)")


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    times = os.times()                   # in steps of 10 ms, which are enough for worker processes
    return time.process_time() + times.children_user + times.children_system
