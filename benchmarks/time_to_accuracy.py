"""Time to accuracy of XR-VLM: the paper's recipe beside recipe=fast, on drawn birds with the embedded tower.

    python benchmarks/time_to_accuracy.py [--recipes own fast] [--seeds 1 2 3] [--shots 16] [--threads 2]

All train from the same cached features and start; the recipes take turns over the seeds. Accuracy is that on the
training images of world 0 that the shots leave over: no test image is looked at. The clock stops while it is measured.
The goal is where the first of the recipes ends, as a mean over the seeds.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import class_folder, options, parse
from torch import Tensor

import xrvlm
from xrvlm.backbones.base import Features
from xrvlm.data.dataset import sample_shots
from xrvlm.distributed import seeded
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, extract
from xrvlm.methods.base import Recipe, chosen_recipe, probabilities
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit

POINTS = 20                              # of a curve
Curve = list[tuple[float, float]]        # seconds of training, and top-1 in % then


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["own", "fast"], help="names of conf/recipe, or own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--epochs", type=int, help="of every recipe, in place of its own")
    arguments = parse(parser, seeds=[1], shots=2, epochs=2)
    clip = xrvlm.load_tiny_clip(device=arguments.device, precision=arguments.precision)
    with tempfile.TemporaryDirectory() as folder:
        world = xrvlm.image_folder(class_folder(Path(folder), 3, 6)) if arguments.tiny else xrvlm.load_world()
        measure(clip, world, arguments)


def measure(clip: xrvlm.FrozenCLIP, world: xrvlm.Dataset, arguments: Namespace) -> None:
    curves: dict[str, list[Curve]] = {name: [] for name in arguments.recipes}
    for seed in arguments.seeds:
        for name in arguments.recipes:
            recipe = read_recipe(name, arguments.epochs)
            curves[name].append(curve := trained(clip, world, recipe, arguments.shots, seed))
            print(f"seed {seed}, {name}: {curve[-1][0]:.1f} s, top-1 {curve[-1][1]:.1f} %", flush=True)
    print(f"{arguments.shots} shots, {arguments.precision} on {clip.device}, {arguments.threads} threads, "
          f"torch {torch.__version__}")
    tell({name: mean_curve(several) for name, several in curves.items()}, curves)


def tell(means: dict[str, Curve], curves: dict[str, list[Curve]]) -> None:
    reference, goal = next((name, mean[-1][1]) for name, mean in means.items())
    for name, mean in means.items():
        ends = [curve[-1][1] for curve in curves[name]]
        spread = f" ± {statistics.stdev(ends):.1f}" if len(ends) > 1 else ""
        print(f"\n{name}: ends at {mean[-1][1]:.1f}{spread} % after {mean[-1][0]:.1f} s")
        print("  s -> %: " + ", ".join(f"{seconds:.1f} -> {score:.1f}" for seconds, score in mean))
        if name != reference:
            print(f"  where {reference} ends: {compared(means[reference], mean, goal)}")
            print(f"  where {name} ends: {compared(means[reference], mean, mean[-1][1])}")


def compared(reference: Curve, other: Curve, goal: float) -> str:
    """When two curves first reach `goal`."""
    first, second = (next((seconds for seconds, score in curve if score >= goal), None) for curve in (reference, other))
    told = f"{goal:.1f} %, " + " and ".join("not reached" if at is None else f"{at:.1f} s" for at in (first, second))
    return told + (f": {first / second:.1f} times as fast" if first and second else "")


def mean_curve(curves: list[Curve]) -> Curve:
    """Point by point: those of one recipe are at the same epochs."""
    return [(statistics.fmean(seconds), statistics.fmean(scores))
            for points in zip(*curves, strict=True) for seconds, scores in [zip(*points, strict=True)]]


def read_recipe(name: str, epochs: int | None) -> Recipe:
    recipe = chosen_recipe(XRVLM.recipe, name)
    return recipe if epochs is None else replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs))


class Watched:
    """A bank whose reader looks at the held-out images before every so many epochs."""

    def __init__(self, bank: FeatureBank, look: Callable[[], None], epochs: int):
        self.bank, self.look, self.epochs, self.every = bank, look, epochs, max(1, epochs // POINTS)
        self.ids, self.labels, self.in_order = bank.ids, bank.labels, bank.in_order

    def batches(self, order: list[Tensor], epoch: int) -> Iterator[tuple[Features, Tensor]]:
        if 0 < epoch < self.epochs and epoch % self.every == 0:      # not in a last pass for batch statistics
            self.look()
        return self.bank.batches(order, epoch)


def trained(clip: xrvlm.FrozenCLIP, world: xrvlm.Dataset, recipe: Recipe, shots: int, seed: int) -> Curve:
    split = sample_shots(world.split, shots, seed)
    drawn = set(split.train)
    rest = [item for item in world.split.train if item not in drawn]
    settings = FeatureSettings()
    train = extract(clip, world.source, split.train, settings, needs=XRVLM.needs, views=settings.views, seed=seed)
    held_out = extract(clip, world.source, rest, settings, needs=XRVLM.needs)
    with seeded(seed, "initial weights"):
        method = XRVLM(clip, class_text(split.classes)).to(clip.device)
    method.prepare(clip, train)
    curve: Curve = []
    looking = 0.0

    def look() -> None:
        nonlocal looking
        start = time.perf_counter()
        right = probabilities(method, clip, held_out).argmax(dim=1) == held_out.labels
        method.train()
        curve.append((start - began - looking, 100 * right.float().mean().item()))
        looking += time.perf_counter() - start

    began = time.perf_counter()
    fit(method, clip, Watched(train, look, recipe.epochs), recipe, seed=seed)
    look()
    return curve


if __name__ == "__main__":
    main()
