"""A data source, a method and a tower that are just large enough to be fitted."""

import torch
from torch import nn

from xrvlm.backbones.base import Features
from xrvlm.distributed import generator


class Source:
    """40 points in two classes; every epoch adds its own noise."""

    def __init__(self):
        self.ids = tuple(str(i) for i in range(40))
        self.labels = torch.arange(40) % 2
        self.points = torch.randn(40, 4, generator=generator("points")) + self.labels[:, None]

    def batches(self, order, epoch):
        for rows in order:
            yield Features(self.points[rows] + epoch / 100), self.labels[rows]

    def in_order(self, batch_size=256):
        yield Features(self.points), self.labels


class Probe(nn.Module):
    label, splits_batches = "probe", False

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2)
        nn.init.zeros_(self.linear.weight)
        self.dropout = nn.Dropout(0.2)

    def class_features(self, clip):
        return self.linear.weight

    def logits(self, x, class_features):
        return self.norm(self.dropout(x.pooled) @ class_features.T)

    def class_probabilities(self, x, class_features, among=None):
        return self.logits(x, class_features).softmax(dim=1)

    def loss(self, x, y, clip, *, label_smoothing=0.0):
        return nn.functional.cross_entropy(self.logits(x, self.linear.weight), y, label_smoothing=label_smoothing)


class Tower:
    device = torch.device("cpu")
