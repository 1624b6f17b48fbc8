"""The relation heads of XR-VLM (arXiv:2503.07075): from image parts (b, m, d) and class features (g, c, d) to logits.

`cross` is the paper's head; the others are its ablations. A relation is an inner product in a learned space of width
d // 2. A head has three steps: `of_prompts` computes what depends on the classes only, once for all images; `relate`
computes relations, and `score` logits from them, so that a logit can be attributed to its relations.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.distributed import active_group, all_sum

FEATURE_SCALE = 64.0                     # the authors scale each part and prompt feature to this length
HIDDEN_WIDTH = 1024


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics in a training step are those of the rows of all processes that share the batch.

    Otherwise equal to `nn.BatchNorm1d`. (torch's SyncBatchNorm refuses CPU tensors and processes without rows.)
    """

    def forward(self, input: Tensor) -> Tensor:      # noqa: A002 (torch's name)
        """(n, f) from (n, f)."""
        if not self.training or active_group().world == 1:
            return super().forward(input)
        # in double precision the sums do not depend on how the rows are sharded
        count = all_sum(torch.tensor(len(input), device=input.device))
        mean = all_sum(input.sum(dim=0, dtype=torch.float64)) / count                      # (f,)
        centred = input - mean.to(input)                                                   # (n, f)
        variance = all_sum(centred.square().sum(dim=0, dtype=torch.float64)) / count       # (f,)
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        return centred * torch.rsqrt(variance + self.eps).to(input) * self.weight + self.bias

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        self.num_batches_tracked += 1


class RelationSpace(nn.Module):
    """`BN_d -> Linear_{d -> d/2} -> BN_{d/2} -> ELU` on rows scaled to one length; batch statistics over all rows.

    Args:
        embed_dim: d.
        norm: `BatchNorm` for rows of images, which are sharded over processes; `nn.BatchNorm1d` for rows of classes,
            which every process has in full.
    """

    def __init__(self, embed_dim: int, norm: type[nn.BatchNorm1d]):
        super().__init__()
        self.in_norm = norm(embed_dim)
        self.project = nn.Linear(embed_dim, embed_dim // 2)
        self.out_norm = norm(embed_dim // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(..., d // 2) from (..., d)."""
        rows = F.normalize(features, dim=-1, eps=1e-6) * FEATURE_SCALE     # a dead part (all zeros) stays zero
        projected = self.project(self.in_norm(rows.flatten(0, -2)))                        # (rows, d // 2)
        return F.elu(self.out_norm(projected)).unflatten(0, features.shape[:-1])


class Relations(nn.Module):
    """Relations of every image part with every prompt; `diagonal` sets those of part i with prompt j != i to zero."""

    def __init__(self, embed_dim: int, *, diagonal: bool = False):
        super().__init__()
        self.image_space = RelationSpace(embed_dim, BatchNorm)
        self.text_space = RelationSpace(embed_dim, nn.BatchNorm1d)
        self.diagonal = diagonal

    def forward(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, g, m, c) from parts (b, m, d) and prompts (g, c, d // 2), the output of `text_space`."""
        related = torch.einsum("bmr,gcr->bgmc", self.image_space(image_parts), prompts)
        if self.diagonal:
            related = related * torch.eye(*related.shape[1:3], device=related.device)[..., None]
        return related


class Perceptron(nn.Module):
    """`BN -> Linear -> ELU -> BN -> Linear` on rows; `bias` is that of the last layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, bias: bool = False):
        super().__init__()
        self.norm = BatchNorm(inputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.hidden_norm = BatchNorm(hidden)
        self.classifier = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, outputs) from (n, inputs)."""
        return self.classifier(self.hidden_norm(F.elu(self.hidden(self.norm(rows)))))


class RelationHead(nn.Module, ABC):
    """From image parts and class features to relations, from relations to logits."""

    linear: ClassVar[bool] = False       # each logit is a weighted sum of relations, without a constant

    @abstractmethod
    def of_prompts(self, class_features: Tensor) -> Tensor:
        """The input of `relate` on the side of the classes, (..., c, r), from class features (g, c, d)."""

    @abstractmethod
    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """Relations (b, g, m, c) from parts and the output of `of_prompts`; g is 1 where no pairs are related."""

    @abstractmethod
    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits from (b, g, m, c)."""

    def baseline(self) -> Tensor:
        """The reference that relations are attributed from, broadcastable to (b, g, m, c); zero by default."""
        return torch.zeros(())

    def forward(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, c) logits."""
        return self.score(self.relate(image_parts, prompts))


class CrossRelations(RelationHead):
    """`cross` and `diagonal`: one perceptron over the relations of all classes; its weights are class-specific."""

    def __init__(self, embed_dim: int, image_parts: int, text_parts: int, classes: int, *, diagonal: bool = False,
                 hidden: int = HIDDEN_WIDTH):
        super().__init__()
        self.relations = Relations(embed_dim, diagonal=diagonal)
        self.perceptron = Perceptron(text_parts * image_parts * classes, hidden, classes)
        self.sizes = text_parts, image_parts, classes

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """(g, c, d // 2)"""
        return self.relations.text_space(class_features)

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, g, m, c)"""
        return self.relations(image_parts, prompts)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        if self.relations.diagonal:
            relations = relations.permute(0, 3, 1, 2)    # (b, c, g, m): the authors' order for this head
        return self.perceptron(relations.flatten(1))

    def baseline(self) -> Tensor:
        """(g, m, c) running mean of the relations, where the perceptron's first normalisation is zero."""
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

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """(g, c, d // 2)"""
        return self.relations.text_space(class_features)

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, g, m, c)"""
        return self.relations(image_parts, prompts)

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        by_class = relations.permute(0, 3, 1, 2)                                           # (b, c, g, m)
        rows = by_class.flatten(2).flatten(0, 1)                                           # (b * c, g * m)
        return self.perceptron(rows).view(by_class.shape[:2])

    def baseline(self) -> Tensor:
        """(g, m, 1) running mean of the relations, where the perceptron's first normalisation is zero."""
        mean = self.perceptron.norm.running_mean
        assert mean is not None
        return mean.view(*self.sizes, 1)


class Alignment(RelationHead):
    """`alignment`: the cosine of part i with prompt i, as CLIP's with one feature. It has no parameters."""

    linear = True

    def __init__(self, logit_scale: Tensor):
        super().__init__()
        self.logit_scale = logit_scale

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """(m, c, d)"""
        return _unit(class_features)

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, 1, m, c) cosines of part i with prompt i."""
        return torch.einsum("bmd,mcd->bmc", _unit(image_parts), prompts)[:, None]

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return self.logit_scale * relations.mean(dim=(1, 2))


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=-1, keepdim=True) + 1e-6)


class VisualParts(RelationHead):
    """`visual`: a perceptron for each image part, logits averaged; the text is not read."""

    linear = True

    def __init__(self, embed_dim: int, image_parts: int, classes: int, *, hidden: int = HIDDEN_WIDTH):
        super().__init__()
        self.perceptrons = nn.ModuleList(Perceptron(embed_dim, hidden, classes, bias=True) for _ in range(image_parts))

    def of_prompts(self, class_features: Tensor) -> Tensor:
        """The class features unchanged; `relate` does not read them."""
        return class_features

    def relate(self, image_parts: Tensor, prompts: Tensor) -> Tensor:
        """(b, 1, m, c) logits of each part; `prompts` are not read."""
        rows = FEATURE_SCALE * image_parts                                                 # (b, m, d)
        logits = [perceptron(rows[:, part]) for part, perceptron in enumerate(self.perceptrons)]
        return torch.stack(logits, dim=1)[:, None]

    def score(self, relations: Tensor) -> Tensor:
        """(b, c) logits."""
        return relations.mean(dim=(1, 2))
