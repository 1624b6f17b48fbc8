"""What a method says of every image of a source: the language side once, then the images in order."""

import torch
from torch import Tensor

from xrvlm.backbone import FrozenCLIP
from xrvlm.features import FeatureSource
from xrvlm.method import Method


@torch.no_grad()
def probabilities(method: Method, clip: FrozenCLIP, source: FeatureSource) -> Tensor:
    """(n, c) on the CPU, float32, in the order of `source.ids`."""
    method.eval()
    class_features = method.class_features(clip)
    rows = [method.logits(x.map(lambda value: value.to(clip.device)), class_features).softmax(dim=1)
            for x, _ in source.in_order()]
    return torch.cat(rows).cpu()         # once at the end: a GPU does not wait between batches
