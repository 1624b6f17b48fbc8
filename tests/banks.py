"""Feature banks of made-up numbers: what a method makes of them can be told beforehand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.bank import FeatureBank
from xrvlm.methods.base import Method
from xrvlm.text.class_text import ClassText, class_text
from xrvlm.text.fixed_prompts import ensemble

CLASSES = class_text(("bird", "dog", "cat"))
LABELS = torch.arange(3).repeat(8)       # of 24 images
CELLS = 16                               # of the grid; a class token stands before it


def bank_of(x: Features, labels: Tensor) -> FeatureBank:
    """The features and labels (n,) as a bank of one view."""
    shard = {name: value[:, None] for name, value in vars(x).items() if value is not None}
    return FeatureBank([shard], len(labels), tuple(f"{i}.png" for i in range(len(labels))), labels, views=0, seed=1)


def features_of(bank: FeatureBank) -> Features:
    """All that is in the bank."""
    (batch, _), = bank.in_order(len(bank.labels))
    return batch


def made_bank(clip: FrozenCLIP, classes: ClassText, labels: Tensor, *, text: float = 0.0, parts: float = 0.0,
              seed: int = 0) -> FeatureBank:
    """Noise, to which each image of `labels` (n,) adds its class in two ways.

    `text` times the features of its class's sentences in the pooled feature: zero-shot can read this. `parts` times a
    pattern of its class in some of the cells: only labels can tell what it means. The patterns are the same for all
    seeds.
    """
    draws, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    count, width, number = len(labels), clip.embed_dim, len(classes.names)
    prompts = ensemble(clip, classes)                                                      # (c, d)
    prompts = F.normalize(prompts - prompts.mean(dim=0), dim=-1)
    noise = F.normalize(torch.randn(count, width, generator=draws), dim=-1)                # (n, d)
    pooled = F.normalize(noise + text * prompts[labels], dim=-1)
    kinds = 3 * F.normalize(torch.randn(4, width, generator=fixed), dim=-1)                # what stands in the cells
    patterns = F.normalize(torch.randn(number, width, generator=fixed), dim=-1)            # (c, d)
    cells = kinds.repeat_interleave(CELLS // 4, dim=0)[None].repeat(count, 1, 1)           # (n, cells, d)
    cells[:, :CELLS // 4] += parts * patterns[labels][:, None]
    cells = cells + 0.3 * torch.randn(cells.shape, generator=draws)
    tokens = torch.cat([torch.full((count, 1, width), 50.0), cells], dim=1)    # a class token that stands far off
    return bank_of(Features(pooled, tokens), labels)


def prepared(kind: type[Method], clip: FrozenCLIP, support: FeatureBank | None = None, val: FeatureBank | None = None,
             *, classes: ClassText = CLASSES, **options: Any) -> Any:
    """A method of `kind` that has seen `support` and `val`, and is not trained."""
    method = kind(clip, classes, **options)
    method.prepare(clip, support, val=val)
    return method
