"""The heads of XR-VLM (arXiv:2503.07075): what relates image parts (b, m, d) and class features (g, c, d) to logits.

`cross` is the paper's; the others are its ablations. Relations are products in a learned space of half the width.
Each head has two halves, so that what a logit was made of can be told: `relate`, then `score`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURE_SCALE = 64.0                     # the length that the authors give each part and prompt feature
HIDDEN_WIDTH = 1024


class RelationSpace(nn.Module):
    """`BN_d -> Linear_{d -> d/2} -> BN_{d/2} -> ELU` on rows of one length; batch statistics over all rows."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.in_norm = nn.BatchNorm1d(embed_dim)
        self.project = nn.Linear(embed_dim, embed_dim // 2)
        self.out_norm = nn.BatchNorm1d(embed_dim // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(..., d // 2) from (..., d)."""
        rows = F.normalize(features, dim=-1, eps=1e-6) * FEATURE_SCALE     # a dead part (all zero) stays zero
        projected = self.project(self.in_norm(rows.flatten(0, -2)))                        # (rows, d // 2)
        return F.elu(self.out_norm(projected)).unflatten(0, features.shape[:-1])


class Relations(nn.Module):
    """Every image part with every prompt of every class; `diagonal` sets those of part i with prompt j != i to zero."""

    def __init__(self, embed_dim: int, *, diagonal: bool = False):
        super().__init__()
        self.image_space = RelationSpace(embed_dim)
        self.text_space = RelationSpace(embed_dim)
        self.diagonal = diagonal

    def forward(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, g, m, c)"""
        related = torch.einsum("bmr,gcr->bgmc", self.image_space(image_parts), self.text_space(class_features))
        if self.diagonal:
            related = related * torch.eye(*related.shape[1:3], device=related.device)[..., None]
        return related


class Perceptron(nn.Module):
    """`BN -> Linear -> ELU -> BN -> Linear` on rows; `bias` is that of the last map."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, bias: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.classifier = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, outputs) from (n, inputs)."""
        return self.classifier(self.hidden_norm(F.elu(self.hidden(self.norm(rows)))))


class RelationHead(nn.Module, ABC):
    """Image parts and class features to relations, relations to logits. `linear`: each logit is a weighted sum of
    relations, without a constant.
    """

    linear: ClassVar[bool] = False

    @abstractmethod
    def relate(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, g, m, c); g is 1 where a part meets one prompt of a class or none."""

    @abstractmethod
    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits from (b, g, m, c)."""

    def baseline(self) -> Tensor:
        """What relations count from, to be broadcast to (b, g, m, c): zero unless a head says otherwise."""
        return torch.zeros(())

    def forward(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, c) logits."""
        return self.score(self.relate(image_parts, class_features))


class CrossRelations(RelationHead):
    """`cross` and `diagonal`: one perceptron over the relations of all classes together; bound to its classes."""

    def __init__(self, embed_dim: int, image_parts: int, text_parts: int, classes: int, *, diagonal: bool = False,
                 hidden: int = HIDDEN_WIDTH):
        super().__init__()
        self.relations = Relations(embed_dim, diagonal=diagonal)
        self.perceptron = Perceptron(text_parts * image_parts * classes, hidden, classes)
        self.sizes = text_parts, image_parts, classes

    def relate(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, g, m, c)"""
        return self.relations(image_parts, class_features)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        if self.relations.diagonal:
            relations = relations.permute(0, 3, 1, 2)    # (b, c, g, m): the order in which the authors flatten here
        return self.perceptron(relations.flatten(1))

    def baseline(self) -> Tensor:
        """(g, m, c) running mean of the relations: there the perceptron's first normalisation gives zero."""
        mean, (text_parts, image_parts, classes) = self.perceptron.norm.running_mean, self.sizes
        assert mean is not None
        if self.relations.diagonal:
            return mean.view(classes, text_parts, image_parts).permute(1, 2, 0)
        return mean.view(self.sizes)


class PerClassRelations(RelationHead):
    """`per_class` and `per_class_diagonal`: one perceptron, shared by the classes, over the relations of each."""

    def __init__(self, embed_dim: int, image_parts: int, text_parts: int, *, diagonal: bool = False):
        super().__init__()
        self.relations = Relations(embed_dim, diagonal=diagonal)
        self.perceptron = Perceptron(text_parts * image_parts, max(1, text_parts * image_parts // 2), 1)
        self.sizes = text_parts, image_parts

    def relate(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, g, m, c)"""
        return self.relations(image_parts, class_features)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        by_class = relations.permute(0, 3, 1, 2)                                           # (b, c, g, m)
        rows = by_class.flatten(2).flatten(0, 1)                                           # (b * c, g * m)
        return self.perceptron(rows).view(by_class.shape[:2])

    def baseline(self) -> Tensor:
        """(g, m, 1) running mean of the relations: there the perceptron's first normalisation gives zero."""
        mean = self.perceptron.norm.running_mean
        assert mean is not None
        return mean.view(*self.sizes, 1)


class Alignment(RelationHead):
    """`alignment`: part i with prompt i, by cosine, as CLIP does with its one feature. Learns nothing of its own."""

    linear = True

    def __init__(self, logit_scale: Tensor):
        super().__init__()
        self.logit_scale = logit_scale

    def relate(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, 1, m, c) cosines of part i with prompt i."""
        v, t = (x / (x.norm(dim=-1, keepdim=True) + 1e-6) for x in (image_parts, class_features))
        return torch.einsum("bmd,mcd->bmc", v, t)[:, None]

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return self.logit_scale * relations.mean(dim=(1, 2))


class VisualParts(RelationHead):
    """`visual`: a perceptron for each image part, logits averaged; the text has no say."""

    linear = True

    def __init__(self, embed_dim: int, image_parts: int, classes: int, *, hidden: int = HIDDEN_WIDTH):
        super().__init__()
        self.perceptrons = nn.ModuleList(Perceptron(embed_dim, hidden, classes, bias=True) for _ in range(image_parts))

    def relate(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, 1, m, c) logits of each part alone; `class_features` is not read."""
        rows = FEATURE_SCALE * image_parts                                                 # (b, m, d)
        logits = [perceptron(rows[:, part]) for part, perceptron in enumerate(self.perceptrons)]
        return torch.stack(logits, dim=1)[:, None]

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return relations.mean(dim=(1, 2))
