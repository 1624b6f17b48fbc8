"""A training step with many classes, each with a context of its own: does it fit, and what takes the memory?

    python benchmarks/many_classes.py [--classes 1000] [--memory-gb 2] [--device cuda] [--dtype bf16]

ViT-B/16's text tower with random weights, 4 text parts, 16 learned vectors, names of 1 to 4 tokens; on it XR-VLM's
head (`cross`, 4 image parts of 64 images) and the cross-entropy, forward and backward. Peak memory is beyond what was
allocated before the step: of the process on a CPU, of the allocator on CUDA.
"""

import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import LENGTH, PARTS, class_names, machine, options, parse, some_labels, text_tower
from torch import Tensor

from xrvlm.backbones.text_encoder import GIB
from xrvlm.methods.xr_vlm.relations import CrossRelations

IMAGES = 64


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def allocated_bytes(device: torch.device) -> int:
    """What is allocated now; starts the count of the peak again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_bytes(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")    # the peak is from here on
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def peak_since(device: torch.device) -> int:
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return peak_bytes(device)
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def tell(what: str, start: float, before: int, device: torch.device) -> None:
    print(f"{what:42} {time.perf_counter() - start:8.1f} s   peak + {(peak_since(device) - before) / GIB:.2f} GiB",
          flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--memory-gb", type=float, help="of the text side; default: as in training")
    arguments = parse(parser, classes=5)
    clip, classes = text_tower(arguments, arguments.dtype), arguments.classes
    clip.text.memory_gb = arguments.memory_gb
    print(f"{machine(clip)}\n{classes} classes, {PARTS} text parts, memory of the text side: "
          f"{arguments.memory_gb or 'default'} GiB")
    layout = clip.layout(class_names(classes, 4), LENGTH)
    context = torch.nn.Parameter(0.02 * torch.randn(PARTS, classes, LENGTH, clip.text_width, device=clip.device))
    head = CrossRelations(clip.embed_dim, PARTS, PARTS, classes).to(clip.device)
    image_parts = torch.randn(IMAGES, PARTS, clip.embed_dim, device=clip.device)
    labels = some_labels(IMAGES, classes).to(clip.device)
    print(f"the contexts take {context.nbytes / GIB:.2f} GiB, the head's weights "
          f"{sum(weight.nbytes for weight in head.parameters()) / GIB:.2f} GiB; their gradients as much again")

    def loss(features: Tensor) -> Tensor:
        return F.cross_entropy(head(image_parts, head.of_prompts(features)), labels)

    features = torch.randn(PARTS, classes, clip.embed_dim, device=clip.device).requires_grad_()
    before, start = allocated_bytes(clip.device), time.perf_counter()
    loss(features).backward()
    tell("head and loss alone", start, before, clip.device)
    head.zero_grad(set_to_none=True)
    before, start = allocated_bytes(clip.device), time.perf_counter()
    loss(clip.encode_prompts(context, layout)).backward()
    tell("text side, head and loss", start, before, clip.device)


if __name__ == "__main__":
    main()
