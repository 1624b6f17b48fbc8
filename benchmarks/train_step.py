"""One training step of XR-VLM as the authors take it beside one step of `fit`: the clock, the processors, the ratio.

    python benchmarks/train_step.py [--classes 100 200] [--turns 3] [--device cuda]

ViT-B/16 with random weights, 64 images, 4 image parts, 4 prompts a class, 16 learned vectors. The authors' step: the
image tower on the 64 images, the text tower on 77 positions of 4 x classes prompts, forward and backward, part pooling,
relation head, SGD; in fp32. Ours is an epoch of `fit` on a feature bank (positions in float16, as on disk), divided by
its batches; with a context for each class, and shared. "same dtype": both towers in fp32. "as shipped": our towers in
bf16 beside the authors' fp32. All take turns in one process; figures are medians.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.nn.functional as F
from text_side import LENGTH, class_names, machine, plain, tower, wait
from torch import Tensor

import xrvlm
from xrvlm.backbones.base import Features, FrozenCLIP, Precision
from xrvlm.backbones.text_encoder import GIB
from xrvlm.features.bank import FeatureBank
from xrvlm.methods.base import Recipe
from xrvlm.text.learned_prompts import ContextKind, ContextPrompts
from xrvlm.training.fit import fit

BATCH = 64
PROMPTS_ON_CPU = 200                     # of the authors' at once: 18 MiB are kept of each for the backward pass
NEEDS = xrvlm.XRVLM.needs


class AuthorsStep:
    """Towers and head in every step, nothing kept from one to the next but what is learned.

    Where the prompts do not fit memory at once (`at_once`), they take turns, each part forward and backward. The head
    then sees the class features of the step before: the step does the authors' work, once, on other numbers.
    """

    def __init__(self, clip: FrozenCLIP, names: list[str], *, at_once: int):
        self.clip, self.method = clip, make_method(clip, names, "specific")
        prompts = self.method.class_prompts
        assert isinstance(prompts, ContextPrompts)
        assert prompts.specific is not None
        self.context, self.layout = prompts.specific, prompts.layout
        self.optimizer = self.method.recipe.make_optimizer(self.method.parameters())
        self.images = torch.randn(BATCH, 3, *[clip.transform.image_size] * 2, device=clip.device)
        self.labels = some_labels(BATCH, len(names)).to(clip.device)
        self.parts_of = max(1, at_once // len(names))              # text parts at once
        self.before = torch.randn(len(self.context), len(names), clip.embed_dim, device=clip.device)    # (g, c, d)

    def __call__(self) -> None:
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        x = self.clip.encode_image(self.images, NEEDS)
        if self.parts_of >= len(self.context):
            self._loss(x, self._encode(self.context)).backward()
        else:
            features = F.normalize(self.before, dim=-1).requires_grad_()
            self._loss(x, features).backward()
            assert features.grad is not None
            for part, gradient, before in zip(*(value.split(self.parts_of) for value in (
                    self.context, features.grad, self.before)), strict=True):
                encoded = self._encode(part)                                               # (k, c, d)
                encoded.backward(gradient)
                before.copy_(encoded.detach())
        self.optimizer.step()

    def _encode(self, context: Tensor) -> Tensor:
        return F.normalize(plain(self.clip, context, self.layout).float(), dim=-1)

    def _loss(self, x: Features, class_features: Tensor) -> Tensor:
        prompts = self.method.relations.of_prompts(class_features)
        return F.cross_entropy(self.method.logits(x, prompts), self.labels)


class OurSteps:
    """`fit` for one epoch on a bank of that many batches."""

    def __init__(self, clip: FrozenCLIP, names: list[str], context: ContextKind, *, batches: int):
        self.clip, self.method = clip, make_method(clip, names, context)
        self.recipe = Recipe("one epoch", epochs=1, batch_size=BATCH, warmup_epochs=0)
        self.bank = drawn_bank(clip, BATCH * batches, len(names))

    def __call__(self) -> None:
        fit(self.method, self.clip, self.bank, self.recipe, seed=0)


def make_method(clip: FrozenCLIP, names: list[str], context: ContextKind) -> xrvlm.XRVLM:
    classes = xrvlm.ClassText(tuple(names), tuple((name,) for name in names))
    return xrvlm.XRVLM(clip, classes, context=context, context_length=LENGTH).to(clip.device)


def drawn_bank(clip: FrozenCLIP, count: int, classes: int) -> FeatureBank:
    """Random features in the types that a bank has on disk."""
    size = clip.transform.image_size
    example = clip.encode_image(torch.zeros(1, 3, size, size, device=clip.device), NEEDS)
    shard = {name: torch.randn(count, 1, *value.shape[1:]).to(torch.float32 if name == "pooled" else torch.float16)
             for name, value in vars(example).items()}
    return FeatureBank([shard], count, tuple(map(str, range(count))), some_labels(count, classes), views=0, seed=0)


def some_labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) % classes


def alternate(steps: Mapping[str, tuple[Callable[[], None], int]], turns: int,
              device: torch.device) -> dict[str, tuple[float, float, float]]:
    """Medians of the seconds of the clock and of the processors for one step, and GiB of the peak on CUDA.

    Each of `steps` is a call and how many steps that takes.
    """
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, (call, count) in steps.items():
            wait(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start, busy = time.perf_counter(), time.process_time()
            call()
            wait(device)
            clock, busy = time.perf_counter() - start, time.process_time() - busy
            peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
            found[name].append((clock / count, busy / count, peak))
    clocks, processors, peaks = ({name: median(row[column] for row in rows) for name, rows in found.items()}
                                 for column in range(3))
    return {name: (clocks[name], processors[name], peaks[name]) for name in steps}


def measure(towers: Mapping[Precision, FrozenCLIP], classes: int, arguments: argparse.Namespace) -> None:
    names, fp32 = class_names(classes, 4), towers["fp32"]
    at_once = arguments.at_once or (PROMPTS_ON_CPU if fp32.device.type == "cpu" else 10**9)
    steps: dict[str, tuple[Callable[[], None], int]] = {"authors fp32": (AuthorsStep(fp32, names, at_once=at_once), 1)}
    kinds: tuple[tuple[str, ContextKind], ...] = (("own context", "specific"), ("shared context", "shared"))
    for precision, clip in towers.items():
        for kind, context in kinds:
            ours = OurSteps(clip, names, context, batches=arguments.batches)
            steps[f"ours {precision}, {kind}"] = (ours, arguments.batches)
    times = alternate(steps, arguments.turns, fp32.device)
    print(f"\n{classes} classes, batch {BATCH}, median of {arguments.turns}; one step:")
    slow_clock, slow_busy, _ = times["authors fp32"]
    for name, (clock, busy, peak) in times.items():
        title = "" if name.startswith("authors") else "same dtype" if "fp32" in name else "as shipped"
        memory = f"   peak {peak:.1f} GiB" if peak else ""
        print(f"{name:26} {clock:8.3f} s {slow_clock / clock:6.1f}x   processors {busy:8.3f} s {slow_busy / busy:6.1f}x"
              f"   {title}{memory}", flush=True)


def step_options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def load_towers(arguments: argparse.Namespace) -> dict[Precision, FrozenCLIP]:
    """The same random weights in fp32 and in bf16."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    return {dtype: tower(argparse.Namespace(**vars(arguments) | {"dtype": dtype})) for dtype in precisions}


def warm_up(towers: Mapping[Precision, FrozenCLIP]) -> None:
    names = class_names(5, 4)
    AuthorsStep(towers["fp32"], names, at_once=10**9)()
    for clip in towers.values():
        OurSteps(clip, names, "specific", batches=1)()


def main() -> None:
    parser = step_options(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1, help="steps of ours in a turn; on a GPU at least 20")
    parser.add_argument("--at-once", type=int, help="prompts of the authors' step; default: 200 on a CPU, else all")
    arguments = parser.parse_args()
    towers = load_towers(arguments)
    print("; ".join(map(machine, towers.values())))
    warm_up(towers)
    for classes in arguments.classes:
        measure(towers, classes, arguments)


if __name__ == "__main__":
    main()
