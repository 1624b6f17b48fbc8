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

import argparse
import platform
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from xrvlm.backbones import load_openclip
from xrvlm.backbones.base import FrozenCLIP, PromptLayout
from xrvlm.backbones.text_encoder import GIB, kept_bytes
from xrvlm.backbones.tower import Tower

PARTS, LENGTH = 4, 16
WORDS = "bird dog cat house red blue green wing car plane fish tree flower water stone king night light road".split()
MOST_AT_ONCE = 200                       # prompts of the baseline, which keeps 18 MiB of each: more than that in turns


def class_names(number: int, longest: int) -> list[str]:
    """Names of 1 to `longest` tokens, all lengths equally often."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=1 + index % longest)) for index in range(number)]


def plain(clip: Tower, context: Tensor, layout: PromptLayout) -> Tensor:
    """(n, c, d) from a context (n, c, l, w) as CoOp computes it."""
    text = clip.model
    (n, c, length, _), tokens = context.shape, layout.tokens.to(context.device)
    embedded = text.token_embedding(tokens)                                            # (c, 77, w)
    context = context.to(embedded.dtype)
    begin, rest = embedded[:, :1].expand(n, -1, -1, -1), embedded[:, 1 + length:].expand(n, -1, -1, -1)
    x = torch.cat([begin, context, rest], dim=2).flatten(0, 1) + text.positional_embedding
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask.to(x.dtype)))       # (n * c, 77, w)
    ends = layout.ends.to(x.device).repeat(n)
    return (x[torch.arange(len(x), device=x.device), ends] @ text.text_projection).unflatten(0, (n, c))


def plain_step(clip: Tower, context: Tensor, layout: PromptLayout) -> None:
    for part in context.split(max(1, MOST_AT_ONCE // context.shape[1])):
        plain(clip, part, layout).float().sum().backward()


def fast_step(clip: Tower, context: Tensor, layout: PromptLayout, memory_gb: float) -> None:
    clip.text.memory_gb = memory_gb
    fast(clip, context, layout).float().sum().backward()


def fast(clip: Tower, context: Tensor, layout: PromptLayout) -> Tensor:
    return clip.text.encode_prompts(context, layout.tokens, layout.slots, layout.ends)


def seconds(step: Callable[[], None], context: Tensor) -> tuple[float, float]:
    """Of the clock and of the processors."""
    context.grad = None
    wait(context.device)
    start, busy = time.perf_counter(), time.process_time()
    step()
    wait(context.device)
    return time.perf_counter() - start, time.process_time() - busy


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(step: Callable[[], None], context: Tensor) -> int:
    """Bytes of a whole step beyond what was there before it, on CUDA."""
    context.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def measure(clip: Tower, classes: int, turns: int) -> None:
    layouts = {name: clip.layout(class_names(classes, longest), LENGTH) for name, longest in (("", 4), ("spread", 15))}
    own, shared = (torch.nn.Parameter(0.02 * torch.randn(PARTS, count, LENGTH, clip.text_width, device=clip.device))
                   for count in (classes, 1))
    weights = kept_bytes(lambda: plain(clip, own[:1, :1], _first(layouts[""], 1)))
    few = (kept_bytes(lambda: plain(clip, own[:1, :5], _first(layouts[""], 5))) - weights) / 4
    baseline = few * PARTS * classes
    steps: dict[str, tuple[Callable[[], None], Tensor, float]] = {}
    for name, layout in layouts.items():
        for kind, context, share in (("own context", own, 6), ("shared context", shared, 18)):
            for how, memory_gb in (("", 1e9), ("recomputed", baseline / share / GIB)):
                clip.text.memory_gb = memory_gb
                kept = kept_bytes(partial(fast, clip, context, layout)) - _weight_bytes(clip)
                steps[f"{kind} {name} {how}"] = partial(fast_step, clip, context, layout, memory_gb), context, kept
    steps = {"plain": (partial(plain_step, clip, own, layouts[""]), own, baseline), **steps}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, (step, context, _) in steps.items():
            times[name].append(seconds(step, context))
    print(f"\n{classes} classes, median of {turns}")
    for name, (step, context, kept) in steps.items():
        memory = peak(step, context) if context.device.type == "cuda" else kept
        if name == "plain":
            most = memory
        (clock, busy), (slow_clock, slow_busy) = (map(median, zip(*times[which], strict=True))
                                                  for which in (name, "plain"))
        print(f"{name:33} {clock:7.2f} s {slow_clock / clock:6.2f}x   processors {busy:7.2f} s {slow_busy / busy:6.2f}x"
              f"   {memory / GIB:5.2f} GiB  1/{most / memory:.1f}", flush=True)


def _first(layout: PromptLayout, count: int) -> PromptLayout:
    return PromptLayout(layout.tokens[:count], layout.slots[:count], layout.ends[:count])


def _weight_bytes(clip: Tower) -> int:
    """What `kept_bytes` counts of the tower's own weights."""
    return sum(weight.nbytes for weight in clip.model.transformer.parameters() if weight.ndim > 1)


def tower(arguments: argparse.Namespace) -> FrozenCLIP:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    return load_openclip("ViT-B-16", allow_random=True, device=arguments.device, precision=arguments.dtype)


def machine(clip: FrozenCLIP) -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if clip.device.type == "cuda" else ""
    return (f"{gpu}{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, {clip.precision}")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def main() -> None:
    parser = options()
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 37, 100, 200])
    parser.add_argument("--turns", type=int, help="how often all take turns; default 5, 3, 2 by the number of classes")
    arguments = parser.parse_args()
    clip = tower(arguments)
    print(machine(clip))
    measure(clip, 5, 1)                  # warms up
    for classes in arguments.classes:
        measure(clip, classes, arguments.turns or (5 if classes <= 10 else 3 if classes <= 50 else 2))


if __name__ == "__main__":
    main()
