"""Time to accuracy of XR-VLM: the paper's recipe beside recipe=fast, on drawn birds with the embedded tower.

    python benchmarks/time_to_accuracy.py [--seeds 1 2 3] [--shots 16] [--threads 2] [--device cpu]

Both train from the same cached features and start; the recipes take turns over the seeds. Accuracy is that on the
training images of world 0 that the shots leave over: nothing of a test part is looked at.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import yaml

import xrvlm
from xrvlm.data import Split, sample_shots
from xrvlm.draws import seeded
from xrvlm.evaluation import probabilities
from xrvlm.features import FeatureSettings, extract
from xrvlm.methods import XRVLM
from xrvlm.recipe import Recipe
from xrvlm.text import class_text
from xrvlm.train import fit

CONF = Path(__file__).parents[1] / "conf" / "recipe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = xrvlm.load_tiny_clip(device=arguments.device, precision=arguments.precision)
    world = xrvlm.load_world()
    recipes = {"paper": XRVLM.recipe, "fast": read_recipe("fast")}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    right: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in arguments.seeds:
        for name, recipe in recipes.items():
            took, top1 = trained(clip, world, recipe, arguments.shots, seed)
            seconds[name].append(took)
            right[name].append(top1)
            print(f"seed {seed}, {name}: {recipe.epochs} epochs in {took:.1f} s, top-1 {top1:.1f} %", flush=True)
    print(f"{arguments.shots} shots, {arguments.precision} on {arguments.device}, {arguments.threads} threads, "
          f"torch {torch.__version__}")
    for name in recipes:
        spread = f" ± {statistics.stdev(right[name]):.1f}" if len(right[name]) > 1 else ""
        print(f"{name:6} median {statistics.median(seconds[name]):7.1f} s, top-1 "
              f"{statistics.fmean(right[name]):.1f}{spread} %")
    print(f"ratio of the medians: {statistics.median(seconds['paper']) / statistics.median(seconds['fast']):.1f}")


def read_recipe(name: str) -> Recipe:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return Recipe(**{key: value for key, value in values.items() if not key.startswith("_")})


def trained(clip: xrvlm.FrozenCLIP, world: xrvlm.Dataset, recipe: Recipe, shots: int, seed: int) -> tuple[float, float]:
    """Seconds of training, and top-1 in % on the training images that are left over."""
    split: Split = sample_shots(world.split, shots, seed)
    drawn = set(split.train)
    rest = [item for item in world.split.train if item not in drawn]
    settings = FeatureSettings()
    train = extract(clip, world.source, split.train, settings, needs=XRVLM.needs, views=settings.views, seed=seed)
    held_out = extract(clip, world.source, rest, settings, needs=XRVLM.needs)
    with seeded(seed, "initial weights"):
        method = XRVLM(clip, class_text(world.split.classes)).to(clip.device)
    method.prepare(clip, train)
    start = time.perf_counter()
    fit(method, clip, train, recipe, seed=seed)
    took = time.perf_counter() - start
    right = probabilities(method, clip, held_out).argmax(dim=1) == held_out.labels
    return took, 100 * right.float().mean().item()


if __name__ == "__main__":
    main()
