"""XR-VLM's formulas written out slowly, and the tensors that the authors' formulas gave (where they are at hand)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "xr_vlm_reference.safetensors"
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason=f"the numeric reference is not at {REFERENCE}")


def reference() -> dict[str, Tensor]:
    return load_file(REFERENCE)


def load(module: nn.Module, tensors: dict[str, Tensor], names: dict[str, str]) -> None:
    """Load `module` from `tensors`; `names` maps prefixes of ours to prefixes of the reference."""
    state = {}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = value
            continue
        prefix = next(prefix for prefix in names if key.startswith(prefix + "."))
        found = tensors[names[prefix] + key.removeprefix(prefix)]
        state[key] = found.squeeze(-1) if found.dim() == 3 else found      # convolutions of width 1 are linear maps
    module.load_state_dict(state)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def slow_maps(mid_tokens: Tensor, weight: Tensor) -> Tensor:
    """(b, m + 1, p) in train mode with fresh BatchNorms, image by image."""
    normed = slow_norm(mid_tokens.reshape(-1, mid_tokens.shape[-1])).view_as(mid_tokens)
    attention = torch.stack([torch.stack([(image @ row).softmax(0) for row in weight]) for image in normed])
    rows = attention.transpose(1, 2).reshape(-1, len(weight))
    return slow_norm(rows).clamp(min=0).view(len(mid_tokens), -1, len(weight)).transpose(1, 2)


def slow_parts(maps: Tensor, tokens: Tensor) -> Tensor:
    """(b, m, d), number by number."""
    images = []
    for image_maps, image_tokens in zip(maps, tokens, strict=True):
        pooled = torch.stack([sum(w * t for w, t in zip(row, image_tokens, strict=True)) for row in image_maps])
        rooted = torch.sign(pooled) * (pooled.abs() + 1e-6) ** 0.5
        images.append((rooted / (rooted**2).sum() ** 0.5)[:-1])
    return torch.stack(images)


def slow_norm(rows: Tensor) -> Tensor:
    """BatchNorm in train mode with weight 1 and bias 0."""
    mean = rows.sum(0) / len(rows)
    variance = ((rows - mean) ** 2).sum(0) / len(rows)
    return (rows - mean) / (variance + 1e-5) ** 0.5


def slow_space(features: Tensor, linear: nn.Linear) -> Tensor:
    rows = features.reshape(-1, features.shape[-1])
    scaled = torch.stack([64 * row / max(float((row**2).sum() ** 0.5), 1e-6) for row in rows])
    normed = slow_norm(slow_norm(scaled) @ linear.weight.T + linear.bias)
    return torch.where(normed > 0, normed, torch.exp(normed) - 1).view(*features.shape[:-1], -1)
