"""The cross-relationship head of XR-VLM (arXiv:2503.07075): every image part with every prompt of every class."""

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


class CrossRelations(nn.Module):
    """An MLP over all relations of all classes: it sees how every other class relates, and is bound to its classes."""

    def __init__(self, embed_dim: int, image_parts: int, text_parts: int, classes: int, *, hidden: int = HIDDEN_WIDTH):
        super().__init__()
        relations = text_parts * image_parts * classes
        self.image_space = RelationSpace(embed_dim)
        self.text_space = RelationSpace(embed_dim)
        self.relation_norm = nn.BatchNorm1d(relations)
        self.hidden = nn.Linear(relations, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.classifier = nn.Linear(hidden, classes, bias=False)

    def relations(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, g, m, c) from `image_parts` (b, m, d) and `class_features` (g, c, d)."""
        return torch.einsum("bmr,gcr->bgmc", self.image_space(image_parts), self.text_space(class_features))

    def forward(self, image_parts: Tensor, class_features: Tensor) -> Tensor:
        """(b, c) logits."""
        relations = self.relations(image_parts, class_features).flatten(1)                 # (b, g * m * c)
        hidden = F.elu(self.hidden(self.relation_norm(relations)))                         # (b, hidden)
        return self.classifier(self.hidden_norm(hidden))                                   # (b, c)
