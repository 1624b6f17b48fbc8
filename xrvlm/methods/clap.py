"""CLAP (Silva-Rodriguez et al., CVPR 2024, arXiv:2312.12730): a linear probe held near the zero-shot prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import tower_length


class CLAP(Method):
    """Class prototypes w that start as zero-shot's t, each held near its start as far as zero-shot is right there.

    The logits are cosines with w (c, d), times the tower's scale. The loss is
    `cross-entropy + mean over c of lambda_c * ||w_c - t_c||^2`, where lambda_c is the mean probability that zero-shot
    gives to class c over the training images of c: the start of the multipliers in the paper's augmented Lagrangian,
    which it then leaves as they are. A class without a training image has lambda_c = 1. There is no validation and
    nothing to choose.

    Sources are the authors' program and settings (jusiro/CLAP, trainers/adapters.py, configs/trainers) and the loss as
    their course writes it (jusiro/PEFT-MedVLMs). Where that loss has sums over images and classes, the program has the
    means that stand here; the distance is taken of w as it is, the cosine of w of unit norm. The recipe is theirs: SGD
    with momentum, 0.1, batches of 256, 300 epochs, cosine, no weight decay; the first epoch at 1e-5 is left out. They
    train on 20 augmented views and take lambda over them; here lambda is that of the evaluation view. As in the
    program, t is as long as the tower makes it. With t of unit norm the penalty holds next to nothing at this learning
    rate: on drawn birds, one shot on top of descriptions then costs 8 to 17 points of accuracy (worlds 0 and 3, three
    seeds) in place of -4 to 3.
    """

    recipe = Recipe("clap", epochs=300, batch_size=256, learning_rate=0.1, weight_decay=0.0, warmup_epochs=1)
    label = "CLAP"
    splits_batches = True

    start: Tensor                        # (c, d) t
    multipliers: Tensor                  # (c,) lambda

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__(clip, classes)
        self.zero_shot, self.prompts = ZeroShot(clip, classes), classes.kind
        self.prototypes = nn.Parameter(torch.zeros(len(classes.names), clip.embed_dim))    # (c, d) w
        self.register_buffer("start", torch.zeros(len(classes.names), clip.embed_dim))
        self.register_buffer("multipliers", torch.ones(len(classes.names)))

    @torch.no_grad()
    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        self.zero_shot.prepare(clip, None)
        self.start.copy_(tower_length(clip, self.classes))
        self.prototypes.copy_(self.start)
        features, labels = pooled_features(support, clip.device)                           # (n, d), (n,)
        right = self.zero_shot.logits(Features(features), self.zero_shot.weights).softmax(dim=1)
        right = right.gather(1, labels[:, None]).squeeze(1)                                # (n,)
        counts = labels.bincount(minlength=len(self.multipliers))                          # (c,)
        sums = torch.zeros_like(self.multipliers).index_add_(0, labels, right)
        self.multipliers.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), 1.0))

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return F.normalize(self.prototypes, dim=-1)                                        # (c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return self.zero_shot.logits(x, class_features)                                    # (b, c)

    def penalty(self) -> Tensor:
        """() the mean over classes of lambda_c * ||w_c - t_c||^2."""
        return (self.multipliers * (self.prototypes - self.start).square().sum(dim=1)).mean()

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        return super().loss(x, y, clip, label_smoothing=label_smoothing) + self.penalty()
