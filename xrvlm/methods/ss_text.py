"""SS-Text (Silva-Rodríguez et al., MICCAI 2025, arXiv:2506.17500): prototypes of text and photos, by their number."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText


class SSText(ZeroShot):
    """Cosine with a prototype of each class: its text and the sum of its training images, of unit length.

    `w_k ~ text_weight * t'_k + sum of the images of class k`: the text counts as `text_weight` images, so that a class
    with few of them stays near its text, and one without any is its text. This is the direction of the minimum of
    `- sum over the images of w_y . x + text_weight / 2 * sum_k |w_k - t'_k|^2`, the part of the cross-entropy that
    pulls a class to its images, with a penalty for leaving the text. No gradient, no validation image.

    `t'_k = t_k + (m - t)`, of unit length: m the mean of the class means of the images, t the mean of the text of the
    same classes. CLIP's photos and sentences lie far apart, and a prototype that is all text would lose against any
    that has an image in it. A class that `for_classes` adds is its text, moved likewise; one of the same name keeps its
    images.

    Built from the paper, as its program has no licence. The move of the text is ours, and so is the constant weight: we
    are not sure how the paper's depends on the number of all images. `close_gap=False` leaves the text where it is.

    Args:
        text_weight: how many images the text of a class counts for; ours, set on a drawn world.
        close_gap: move the text to where the images are.
    """

    learns, label = True, "SS-Text"
    sums: Tensor                         # (c, d) the sum of the images of each class
    gap: Tensor                          # (d,) m - t; zeros where it is left

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, text_weight: float = 1.0, close_gap: bool = True):
        super().__init__(clip, classes)
        if not 0 < text_weight < math.inf:
            raise UserError(f"{option('method.text_weight')} must be above 0, as a class without images has its text "
                            f"alone, found {text_weight}")
        self.text_weight, self.close_gap = text_weight, close_gap
        self.register_buffer("sums", torch.zeros_like(self.weights))
        self.register_buffer("gap", torch.zeros(clip.embed_dim))

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        pooled, labels = pooled_features(support, torch.device("cpu"))                     # (n, d), (n,)
        members = F.one_hot(labels, len(self.sums)).double()                               # (n, c)
        sums, counts = members.T @ pooled.double(), members.sum(dim=0)                     # (c, d), (c,)
        self.sums.copy_(sums)
        if self.close_gap:
            shown = counts > 0
            means = sums[shown] / counts[shown, None]
            self.gap.copy_((means - self.weights.cpu()[shown]).mean(dim=0))

    @property
    def learned_parameters(self) -> int:
        return self.sums.numel() + (self.gap.numel() if self.close_gap else 0)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        text = F.normalize(self.weights + self.gap, dim=1)                                 # (c, d)
        return F.normalize(self.text_weight * text + self.sums, dim=1)

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        rows = dict(zip(self.classes.names, self.sums, strict=True))
        none = torch.zeros_like(self.gap)
        self.sums = torch.stack([rows.get(name, none) for name in classes.names])          # (c, d)
        super().turn(clip, classes)
