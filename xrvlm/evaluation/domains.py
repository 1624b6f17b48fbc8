"""A joint model by its domains: how good it is within each of the data sets that it joins, and among all classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, tensor

from xrvlm.evaluation.hierarchy import Hierarchy
from xrvlm.evaluation.metrics import predicted

Figures = dict[str, dict[str, float | int]]


def domains_of(classes: Sequence[str], parents: Mapping[str, str]) -> dict[str, str]:
    """{class: its domain}, the topmost node above it; in the order of the classes."""
    tree = Hierarchy(tuple(classes), parents)
    return {name: tree.path(name)[-1] for name in classes}


def by_domain(chances: Tensor, labels: Tensor, classes: Sequence[str],
              parents: Mapping[str, str] | None) -> dict[str, Figures]:
    """{"domains": {domain: its figures}} of a joint model's probabilities (n, c) for images of the classes `labels`.

    `top1`: among all classes; `top1_within`: the classes of the other domains masked; `images`, `classes`: how many. A
    domain without an image is left out. Empty where the model has no tree.
    """
    if parents is None:
        return {}
    chances, labels = chances.cpu(), labels.cpu()
    domain_of, found = domains_of(classes, parents), {}
    right = predicted(chances) == labels                                                   # (n,)
    for domain in dict.fromkeys(domain_of.values()):
        own = tensor([index for index, name in enumerate(classes) if domain_of[name] == domain])
        rows = (labels[:, None] == own).any(1).nonzero().flatten()                         # (m,)
        if len(rows):
            within = own[predicted(chances[rows][:, own])] == labels[rows]
            found[domain] = {"top1": right[rows].double().mean().item(), "top1_within": within.double().mean().item(),
                             "images": len(rows), "classes": len(own)}
    return {"domains": found}


def in_words(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a domain for people."""
    return [f"  {name}: top-1 {of['top1']:.1%} among all classes, {of['top1_within']:.1%} among its own "
            f"{of['classes']:,} ({of['images']:,} test images)" for name, of in found.items()]
