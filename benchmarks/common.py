"""What the benchmarks share: options, towers, drawn inputs, timing in turns, and how figures are printed.

`--tiny` is for tests: a few seconds on the embedded tower. Its figures say nothing about speed.
"""

import argparse
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import xrvlm
from xrvlm.backbones.base import FrozenCLIP, PromptLayout
from xrvlm.backbones.text_encoder import GIB
from xrvlm.backbones.tower import Tower
from xrvlm.features.bank import FeatureBank
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM

MODELS = {"vit_b16": "ViT-B-16-quickgelu", "rn50": "RN50-quickgelu", "vit_b16_gelu": "ViT-B-16"}
PARTS, LENGTH = 4, 16                    # prompts of a class, and the learned vectors in each
WORDS = "bird dog cat house red blue green wing car plane fish tree flower water stone king night light road".split()


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; read it with `parse`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes and the embedded tower, for tests")
    return parser


def parse(parser: argparse.ArgumentParser, **tiny: Any) -> argparse.Namespace:
    """The arguments. With `--tiny` the values of `tiny` replace the defaults. Sets the number of threads."""
    if parser.parse_args().tiny:
        parser.set_defaults(**tiny)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def image_options(description: str | None, *, towers: str, images: int) -> argparse.ArgumentParser:
    """`options`, and those of the benchmarks of images per second."""
    parser = options(description)
    parser.add_argument("--towers", default=towers, help="comma-separated: vit_b16, rn50, photo, tiny")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def tower(name: str, device: str, precision: str) -> FrozenCLIP:
    """The embedded tower (`tiny`), the photo tower, or an architecture with random weights, the same in every call."""
    if name == "photo":
        return xrvlm.load_photo(device=device, precision=precision)
    if name == "tiny":
        return xrvlm.load_tiny_clip(device=device, precision=precision)
    torch.manual_seed(0)
    return xrvlm.load_openclip(MODELS[name], allow_random=True, device=device, precision=precision)


def text_tower(arguments: argparse.Namespace, precision: str) -> Any:
    """The tower whose text side is measured: ViT-B/16, or with `--tiny` the embedded one."""
    return tower("tiny" if arguments.tiny else "vit_b16_gelu", arguments.device, precision)


def machine(clip: FrozenCLIP) -> str:
    """Hardware, threads, library and precision in one line."""
    gpu = f"{torch.cuda.get_device_name()}, " if clip.device.type == "cuda" else ""
    return (f"{gpu}{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, {clip.name}, {clip.precision}")


def class_names(number: int, longest: int) -> list[str]:
    """Names of 1 to `longest` tokens, all lengths equally often."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=1 + index % longest)) for index in range(number)]


def some_labels(count: int, classes: int) -> Tensor:
    """(count,)"""
    return torch.arange(count) % classes


def random_images(clip: FrozenCLIP, count: int) -> Tensor:
    """(count, 3, s, s) on the tower's device."""
    size = clip.transform.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(clip.device)


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels and about 70 kB, as photos have: coarse shapes under fine noise."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + draws.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=90)


def class_folder(folder: Path, classes: int, images: int) -> Path:
    """`folder` with a folder of photos for each class; the photos are the same in all."""
    for name in class_names(classes, 4):
        write_photos(folder / name, images)
    return folder


def drawn_bank(clip: FrozenCLIP, count: int, classes: int) -> FeatureBank:
    """Random features of `count` images, as XR-VLM reads them, in the types that a bank has on disk."""
    example = clip.encode_image(random_images(clip, 1), XRVLM.needs)
    shard = {name: torch.randn(count, 1, *value.shape[1:]).to(torch.float32 if name == "pooled" else torch.float16)
             for name, value in vars(example).items() if value is not None}
    return FeatureBank([shard], count, tuple(map(str, range(count))), some_labels(count, classes), views=0, seed=0)


def plain(clip: Tower, context: Tensor, layout: PromptLayout) -> Tensor:
    """(n, c, d) from a context (n, c, l, w) as CoOp computes it: 77 positions, every token, every block."""
    text = clip.model
    (n, c, length, _), tokens = context.shape, layout.tokens.to(context.device)
    embedded = text.token_embedding(tokens)                                            # (c, 77, w)
    context = context.to(embedded.dtype)
    begin, rest = embedded[:, :1].expand(n, -1, -1, -1), embedded[:, 1 + length:].expand(n, -1, -1, -1)
    x = torch.cat([begin, context, rest], dim=2).flatten(0, 1) + text.positional_embedding
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask.to(x.dtype)))       # (n * c, 77, w)
    ends = layout.ends.to(x.device).repeat(n)
    return (x[torch.arange(len(x), device=x.device), ends] @ text.text_projection).unflatten(0, (n, c))


@dataclass(frozen=True)
class Turn:
    """What one call took."""

    clock: float                         # seconds
    processors: float                    # seconds of all processors, those of worker processes that ended included
    peak: float = 0.0                    # GiB on a GPU
    before: float = 0.0                  # GiB on a GPU that were allocated when the call began

    def per(self, count: int) -> "Turn":
        """One step of a call that makes `count`."""
        return Turn(self.clock / count, self.processors / count, self.peak, self.before)

    def against(self, baseline: "Turn") -> str:
        """Seconds, and how many times as fast as `baseline`."""
        memory = f"   peak {self.peak:.1f} GiB" if self.peak else ""
        return (f"{self.clock:8.3f} s {baseline.clock / self.clock:6.2f}x   processors {self.processors:8.3f} s "
                f"{baseline.processors / max(self.processors, 1e-9):6.2f}x{memory}")


def wait(device: torch.device) -> None:
    """Until a GPU has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def once(call: Callable[[], object], device: torch.device) -> Turn:
    """Measure one call."""
    wait(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / GIB if on_gpu else 0.0
    start, busy = time.perf_counter(), _cpu_seconds()
    call()
    wait(device)
    clock, busy = time.perf_counter() - start, _cpu_seconds() - busy
    return Turn(clock, busy, torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0, before)


def take_turns(calls: Mapping[str, Callable[[], object]], turns: int, device: torch.device, *,
               warm_up: bool = False) -> dict[str, Turn]:
    """The medians of each call. The calls alternate, so that what else the machine does meets all of them alike.

    On a machine that others use too, processor time says more than the clock; run with OMP_WAIT_POLICY=passive there,
    or threads that wait for each other count as work. `warm_up`: a first round is not counted.
    """
    found: dict[str, list[Turn]] = {name: [] for name in calls}
    for turn in range(turns + warm_up):
        for name, call in calls.items():
            measured = once(call, device)
            if turn >= warm_up:
                found[name].append(measured)
    return {name: Turn(*(median(getattr(turn, column) for turn in several)
                         for column in ("clock", "processors", "peak", "before")))
            for name, several in found.items()}


@dataclass(frozen=True)
class Speed:
    """Images per second of the clock, and milliseconds of all processors for an image."""

    rate: float
    work: float

    @classmethod
    def of(cls, turn: Turn, images: int) -> "Speed":
        return cls(images / turn.clock, 1000 * max(turn.processors, 1e-9) / images)

    def __str__(self) -> str:
        return f"{self.rate:.1f} images/s ({self.work:.2f} ms of CPU each)"


def speeds(calls: Mapping[str, Callable[[], object]], images: int, *, rounds: int, device: str) -> dict[str, Speed]:
    """The speed of each call, which handles `images` images."""
    turns = take_turns(calls, rounds, torch.device(device), warm_up=True)
    return {name: Speed.of(turn, images) for name, turn in turns.items()}


def beside_limits(found: Mapping[str, Speed], ours: str) -> str:
    """Beside the tower and the decoder: the slower is the limit, or on a CPU, which they share, one after the other."""
    tower, decoder, both = found["tower"], found["decoder"], found[ours]
    lower, in_turn = min(tower.rate, decoder.rate), 1 / (1 / tower.rate + 1 / decoder.rate)
    return (f"{ours} {both}; tower {tower}, decoder {decoder}; ratio to the lower {both.rate / lower:.3f}, to one "
            f"after the other {both.rate / in_turn:.3f} ({(tower.work + decoder.work) / both.work:.3f} of CPU)")


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()                   # children: in steps of 10 ms, which are enough for worker processes
    return time.process_time() + times.children_user + times.children_system
