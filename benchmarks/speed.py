"""What the benchmarks of images per second share: towers with random weights, drawn photos, and fair turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import xrvlm
from xrvlm.backbone import FrozenCLIP

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


def alternate(calls: Mapping[str, Callable[[], object]], images: int, *, rounds: int, device: str) -> dict[str, float]:
    """Median images/s of each call, taken in turns so that what else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):       # the first is for caches and kernels
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: images / statistics.median(values) for name, values in seconds.items()}
