"""What a training step pays for its learned prompts: the plain text side beside this project's, forward and backward.

    python benchmarks/text_side.py [--classes 10 37 100 200] [--device cuda] [--dtype bf16]

ViT-B/16's text tower with random weights, 4 text parts, 16 learned vectors, names of 1 to 4 tokens or of 1 to 15
("spread"). The baseline is what CoOp does: 77 positions, every token, every block, a context for each class; it costs
the same whatever the names are and whether the context is shared. All variants take turns in one process; times are
medians, of the clock and of the processors (which other work on the machine does not lengthen as much). Memory is that
of the tensors that autograd keeps for the backward pass (the baseline's: of 4 classes, scaled, since each class keeps
the same), on CUDA the peak of the allocator over a whole step instead. "recomputed" gives the text side a sixth (own
context) or an 18th (shared) of the baseline's memory.
"""

from collections.abc import Callable
from functools import partial

import torch
from common import LENGTH, PARTS, class_names, machine, options, parse, plain, take_turns, text_tower
from torch import Tensor

from xrvlm.backbones.base import PromptLayout
from xrvlm.backbones.text_encoder import GIB, saved_bytes
from xrvlm.backbones.tower import Tower

MOST_AT_ONCE = 200                       # prompts of the baseline, which keeps 18 MiB of each: more than that in turns
Step = tuple[Callable[[], None], float]  # a forward and backward pass, and the bytes that autograd keeps for it


def plain_step(clip: Tower, context: Tensor, layout: PromptLayout) -> None:
    context.grad = None
    for part in context.split(max(1, MOST_AT_ONCE // context.shape[1])):
        plain(clip, part, layout).float().sum().backward()


def fast_step(clip: Tower, context: Tensor, layout: PromptLayout, memory_gb: float) -> None:
    context.grad = None
    clip.text.memory_gb = memory_gb
    fast(clip, context, layout).float().sum().backward()


def fast(clip: Tower, context: Tensor, layout: PromptLayout) -> Tensor:
    return clip.text.encode_prompts(context, layout.tokens, layout.slots, layout.ends)


def all_steps(clip: Tower, classes: int) -> dict[str, Step]:
    """The baseline (`plain`) and each variant of this project's text side."""
    layouts = {name: clip.layout(class_names(classes, longest), LENGTH) for name, longest in (("", 4), ("spread", 15))}
    own, shared = (torch.nn.Parameter(0.02 * torch.randn(PARTS, count, LENGTH, clip.text_width, device=clip.device))
                   for count in (classes, 1))
    weights = saved_bytes(lambda: plain(clip, own[:1, :1], _first(layouts[""], 1)))
    few = (saved_bytes(lambda: plain(clip, own[:1, :5], _first(layouts[""], 5))) - weights) / 4
    baseline = few * PARTS * classes
    steps: dict[str, Step] = {"plain": (partial(plain_step, clip, own, layouts[""]), baseline)}
    for name, layout in layouts.items():
        for kind, context, share in (("own context", own, 6), ("shared context", shared, 18)):
            for how, memory_gb in (("", 1e9), ("recomputed", baseline / share / GIB)):
                clip.text.memory_gb = memory_gb
                kept = saved_bytes(partial(fast, clip, context, layout)) - _weight_bytes(clip)
                steps[f"{kind} {name} {how}"] = partial(fast_step, clip, context, layout, memory_gb), kept
    return steps


def measure(clip: Tower, classes: int, turns: int) -> None:
    steps = all_steps(clip, classes)
    times = take_turns({name: step for name, (step, _) in steps.items()}, turns, clip.device)
    on_gpu = clip.device.type == "cuda"
    memory = {name: times[name].peak - times[name].before if on_gpu else kept / GIB
              for name, (_, kept) in steps.items()}
    print(f"\n{classes} classes, median of {turns}")
    for name, turn in times.items():
        print(f"{name:33} {turn.against(times['plain'])}   {memory[name]:5.2f} GiB  "
              f"1/{memory['plain'] / memory[name]:.1f}", flush=True)


def _first(layout: PromptLayout, count: int) -> PromptLayout:
    return PromptLayout(layout.tokens[:count], layout.slots[:count], layout.ends[:count])


def _weight_bytes(clip: Tower) -> int:
    """What `saved_bytes` counts of the tower's own weights."""
    return sum(weight.nbytes for weight in clip.model.transformer.parameters() if weight.ndim > 1)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 37, 100, 200])
    parser.add_argument("--turns", type=int, help="how often all take turns; default 5, 3, 2 by the number of classes")
    arguments = parse(parser, classes=[5], turns=1)
    clip = text_tower(arguments, arguments.dtype)
    print(machine(clip))
    measure(clip, 5, 1)                  # warms up
    for classes in arguments.classes:
        measure(clip, classes, arguments.turns or (5 if classes <= 10 else 3 if classes <= 50 else 2))


if __name__ == "__main__":
    main()
