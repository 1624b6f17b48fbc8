"""One training step of XR-VLM as the authors take it beside one step of `fit`: the clock, the processors, the ratio.

    python benchmarks/train_step.py [--classes 100 200] [--turns 3] [--device cuda]

ViT-B/16 with random weights, 64 images, 4 image parts, 4 prompts a class, 16 learned vectors. The authors' step: the
image tower on the 64 images, the text tower on 77 positions of 4 x classes prompts, forward and backward, part pooling,
relation head, SGD; in fp32. Ours is an epoch of `fit` on a feature bank (positions in float16, as on disk), divided by
its batches; with a context for each class, and shared. "same dtype": both towers in fp32. "as shipped": our towers in
bf16 beside the authors' fp32. All take turns in one process; figures are medians.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from common import (
    LENGTH,
    class_names,
    drawn_bank,
    machine,
    options,
    parse,
    plain,
    random_images,
    some_labels,
    take_turns,
    text_tower,
)
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP, Precision
from xrvlm.methods.base import Recipe
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ContextKind, ContextPrompts
from xrvlm.training.fit import fit

BATCH = 64
PROMPTS_ON_CPU = 200                     # of the authors' at once: 18 MiB are kept of each for the backward pass


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
        self.images = random_images(clip, BATCH)
        self.labels = some_labels(BATCH, len(names)).to(clip.device)
        self.parts_of = max(1, at_once // len(names))              # text parts at once
        self.before = torch.randn(len(self.context), len(names), clip.embed_dim, device=clip.device)    # (g, c, d)

    def __call__(self) -> None:
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        x = self.clip.encode_image(self.images, XRVLM.needs)
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


def make_method(clip: FrozenCLIP, names: list[str], context: ContextKind) -> XRVLM:
    classes = ClassText(tuple(names), tuple((name,) for name in names))
    return XRVLM(clip, classes, context=context, context_length=LENGTH).to(clip.device)


def measure(towers: Mapping[Precision, FrozenCLIP], classes: int, arguments: Namespace) -> None:
    names, fp32 = class_names(classes, 4), towers["fp32"]
    at_once = arguments.at_once or (PROMPTS_ON_CPU if fp32.device.type == "cpu" else 10**9)
    steps: dict[str, Callable[[], None]] = {"authors fp32": AuthorsStep(fp32, names, at_once=at_once)}
    kinds: tuple[tuple[str, ContextKind], ...] = (("own context", "specific"), ("shared context", "shared"))
    for precision, clip in towers.items():
        for kind, context in kinds:
            steps[f"ours {precision}, {kind}"] = OurSteps(clip, names, context, batches=arguments.batches)
    times = take_turns(steps, arguments.turns, fp32.device)
    print(f"\n{classes} classes, batch {BATCH}, median of {arguments.turns}; one step:")
    authors = times["authors fp32"]
    for name, turn in times.items():
        first = name.startswith("authors")
        title = "" if first else "same dtype" if "fp32" in name else "as shipped"
        print(f"{name:26} {turn.per(1 if first else arguments.batches).against(authors)}   {title}", flush=True)


def load_towers(arguments: Namespace) -> dict[Precision, FrozenCLIP]:
    """The same random weights in fp32 and in bf16."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    return {precision: text_tower(arguments, precision) for precision in precisions}


def warm_up(towers: Mapping[Precision, FrozenCLIP]) -> None:
    names = class_names(5, 4)
    AuthorsStep(towers["fp32"], names, at_once=10**9)()
    for clip in towers.values():
        OurSteps(clip, names, "specific", batches=1)()


def parser() -> ArgumentParser:
    made = options(__doc__)
    made.add_argument("--classes", type=int, nargs="+", default=[100, 200])
    made.add_argument("--turns", type=int, default=3)
    made.add_argument("--batches", type=int, default=1, help="steps of ours in a turn; on a GPU at least 20")
    made.add_argument("--at-once", type=int, help="prompts of the authors' step; default: 200 on a CPU, else all")
    return made


def main() -> None:
    arguments = parse(parser(), classes=[3], turns=1, at_once=6)
    towers = load_towers(arguments)
    print("; ".join(map(machine, towers.values())))
    warm_up(towers)
    for classes in arguments.classes:
        measure(towers, classes, arguments)


if __name__ == "__main__":
    main()
