"""Memories of images: which unlabelled ones to keep, and how near an image is to those that are kept."""

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """(n,) of the softmax of `logits` (n, c), in nats."""
    shares = logits.log_softmax(dim=1)
    return -(shares.exp() * shares).sum(dim=1)


def most_certain(logits: Tensor, capacity: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For each class the images that are predicted as it with the lowest entropy, the lowest first.

    A memory that takes images one by one, and gives up its least certain one for a more certain one, ends with these,
    whatever the order. Of equals the first is kept.

    Args:
        logits: (n, c)
        among: (n,) bool, the images that may be kept; None: all.

    Returns:
        Rows (c, capacity), 0 where a class has fewer, and whether there is an image (c, capacity).
    """
    uncertain, predicted = entropy(logits), logits.argmax(dim=1)                           # (n,), (n,)
    if among is not None:
        predicted = predicted.masked_fill(~among, -1)
    rows = predicted.new_zeros(logits.shape[1], capacity)
    there = torch.zeros_like(rows, dtype=torch.bool)
    for label, (row, is_there) in enumerate(zip(rows, there, strict=True)):
        members = (predicted == label).nonzero().flatten()
        kept = members[uncertain[members].argsort(stable=True)[:capacity]]
        row[:len(kept)], is_there[:len(kept)] = kept, True
    return rows, there


def nearness(cosines: Tensor, sharpness: Tensor | float) -> Tensor:
    """`exp(-sharpness * (1 - cosine))`, 1 for the image itself."""
    return torch.exp(-sharpness * (1 - cosines))
