"""What a method says of every image of a source: the language side once, then the images in order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xrvlm.backbone import FrozenCLIP
from xrvlm.features import FeatureSource
from xrvlm.method import Method


@torch.no_grad()
def probabilities(method: Method, clip: FrozenCLIP, source: FeatureSource,
                  among: Sequence[int] | None = None) -> Tensor:
    """(n, c) on the CPU, float32, in the order of `source.ids`; `among`: of these classes alone, in their order."""
    method.eval()
    class_features = method.class_features(clip)
    rows = []
    for x, _ in source.in_order():
        logits = method.logits(x.to(clip.device), class_features)     # (b, c)
        rows.append((logits if among is None else logits[:, list(among)]).softmax(dim=1))
    return torch.cat(rows).cpu()         # once at the end: a GPU does not wait between batches
