"""A whole 16-shot run at CUB's size, beside the authors' way: where the time goes.

    python benchmarks/cub_scale.py [--device cuda --workers 16] [--steps 20] [--views 8]

200 classes, 3,200 training and 5,794 test images (JPEG, drawn), 100 epochs of 50 batches of 64, ViT-B/16 with random
weights, a context for each class. Ours as shipped, towers in bf16: all images into feature banks on disk, `fit` with a
checkpoint an epoch, the test images. On a GPU all of it is run. On a CPU features are made of `--images` photos, `fit`
takes `--steps` steps, and the rest is extrapolated; the output says so. The authors' way is extrapolated from `--steps`
of their steps on both, in fp32; what they decode, and their evaluation of every epoch, are left out: a lower bound.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import class_names, drawn_bank, machine, once, options, parse, some_labels, take_turns, write_photos
from train_step import BATCH, PROMPTS_ON_CPU, AuthorsStep, load_towers, make_method, warm_up

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Item
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.files import sha256
from xrvlm.methods.base import Recipe, probabilities
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM
from xrvlm.training.fit import fit

CLASSES, TRAIN, TEST, EPOCHS = 200, 3200, 5794, 100
STEPS = EPOCHS * TRAIN // BATCH
PHOTOS = 256                             # drawn ones; each stands for several images


class Photos:
    """An image source in memory: JPEG files, each under several ids, in `classes` classes."""

    def __init__(self, count: int, classes: int):
        self.classes = classes
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), count)
            self.files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]

    def read(self, item_id: str, /) -> bytes:
        return self.files[int(item_id) % len(self.files)]

    def sha256(self, item_id: str, /) -> str:
        return sha256(self.read(item_id))

    def bank(self, clip: FrozenCLIP, count: int, views: int, folder: str, workers: int) -> FeatureBank:
        items = [Item(str(index), label) for index, label in enumerate(some_labels(count, self.classes).tolist())]
        settings = FeatureSettings(views=views, cache=folder)
        bank = feature_source(clip, self, items, settings, needs=XRVLM.needs, views=views, seed=0, workers=workers)
        assert isinstance(bank, FeatureBank)
        return bank


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    results = []
    return once(lambda: results.append(call()), device).clock, results[0]


def our_stages(clip: FrozenCLIP, folder: str, arguments: Namespace) -> dict[str, float]:
    """Seconds of each stage at full size: measured on a GPU, scaled up from a few images and steps on a CPU."""
    device, in_full = clip.device, clip.device.type == "cuda" and not arguments.tiny
    photos = Photos(PHOTOS if in_full else arguments.images, arguments.classes)
    method = make_method(clip, names(arguments), "specific")
    train, test = (TRAIN, TEST) if in_full else (arguments.images, arguments.images)
    in_train, bank = timed(device, lambda: photos.bank(clip, train, arguments.views, folder, arguments.workers))
    in_test, test_bank = timed(device, lambda: photos.bank(clip, test, 0, folder, arguments.workers))
    recipe, steps, checkpoint = XRVLM.recipe, STEPS, Path(folder) / "last.safetensors"
    if not in_full:
        recipe, steps, checkpoint = Recipe("steps", epochs=1, batch_size=BATCH), arguments.steps, None
        bank, test_bank = (drawn_bank(clip, BATCH * count, arguments.classes) for count in (steps, 4))
    in_fit, _ = timed(device, lambda: fit(method, clip, bank, recipe, seed=0, checkpoint=checkpoint))
    in_evaluation, _ = timed(device, lambda: probabilities(method, clip, test_bank))
    pieces = pieces_of_a_step(clip, method, bank, arguments.steps)
    print("a step of ours, piece by piece: " + ", ".join(f"{name} {1000 * value:.1f} ms"
                                                         for name, value in pieces.items()), flush=True)
    return {f"features of {TRAIN} images in {arguments.views + 1} views": in_train * TRAIN / train,
            f"features of {TEST} test images": in_test * TEST / test, f"{STEPS} steps of fit": in_fit * STEPS / steps,
            "evaluation of the test images": in_evaluation * TEST / len(test_bank.labels)}


def pieces_of_a_step(clip: FrozenCLIP, method: XRVLM, bank: FeatureBank, turns: int) -> dict[str, float]:
    """Median seconds of reading a batch, of the text side and of all between the two and the loss."""
    rows = torch.arange(BATCH, device=bank.device) % len(bank.labels)
    x = bank.select(rows, torch.zeros_like(rows)).to(clip.device)
    with torch.no_grad():
        features = method.class_prompts(clip)                                              # (g, c, d)
    method.train()

    def head() -> None:
        prompts = method.relations.of_prompts(features.detach().requires_grad_())
        method.logits(x, prompts).logsumexp(dim=1).sum().backward()

    calls: dict[str, Callable[[], Any]] = {
        "batch": lambda: bank.select(rows, torch.zeros_like(rows)).to(clip.device),
        "text side": lambda: method.class_prompts(clip).sum().backward(), "parts and head": head}
    return {name: turn.clock for call in calls for name, turn in take_turns({call: calls[call]}, turns,
                                                                            clip.device).items()}


def names(arguments: Namespace) -> list[str]:
    return class_names(arguments.classes, 4)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--steps", type=int, default=20, help="of the authors, and on a CPU of ours")
    parser.add_argument("--images", type=int, default=16, help="photos that features are made of on a CPU")
    parser.add_argument("--views", type=int, default=8, help="augmented ones beside the evaluation view")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parse(parser, classes=3, steps=1, images=2, views=1, workers=0)
    towers = load_towers(arguments)
    print("; ".join(map(machine, towers.values())), flush=True)
    warm_up(towers)
    device = towers["fp32"].device
    with tempfile.TemporaryDirectory() as folder:
        stages = our_stages(towers["bf16"], folder, arguments)
    few = f"extrapolated from {arguments.images} photos and {arguments.steps} steps"
    how = "measured" if device.type == "cuda" and not arguments.tiny else few
    ours = sum(stages.values())
    print(f"ours, as shipped: {ours:.0f} s ({how})")
    for name, value in stages.items():
        print(f"    {name:44} {value:8.1f} s {value / ours:6.1%}")
    step = AuthorsStep(towers["fp32"], names(arguments), at_once=PROMPTS_ON_CPU if device.type == "cpu" else 10**9)
    theirs = STEPS * take_turns({"authors": step}, arguments.steps, device)["authors"].clock
    print(f"the authors' way: {theirs:.0f} s (extrapolated from {arguments.steps} steps); ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
