"""CLIP-Adapter (Gao et al., IJCV 2024, arXiv:2110.04544): a bottleneck network after the frozen image tower."""

import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.methods.base import Recipe
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText


class ClipAdapter(OnZeroShot):
    """Zero-shot on a blend of the image feature with the output of a small network.

    `f* = alpha * A(f) + (1 - alpha) * f` with `A(f) = ReLU(f W1) W2`, W1 (d, d / reduction), W2 (d / reduction, d), no
    biases; the logits are those of zero-shot for f* of unit norm. Without biases A(s f) = s A(f), so the length of f
    does not matter. This is the paper's visual adapter, its default; its text adapter is not implemented. The authors'
    program (gaopengcuhk/CLIP-Adapter) has a second ReLU after W2; the paper's formula (section 3.2), used here, has
    none.

    alpha = 0.2 is the program's, and the paper's best on ImageNet and Caltech-101 (section 4.2); the paper searches
    alpha on each data set and found 0.6 to 0.8 on EuroSAT and DTD. The hidden width of d / 4, batches of 32 and the
    rest of CoOp's recipe (SGD, 200 epochs, cosine) are the paper's (section 4.1). Its learning rate of 1e-5 is not
    used: with SGD the weights then hardly change. The program runs inside CoOp's, at 2e-3.

    Args:
        alpha: weight of the adapted feature, 0 to 1.
        reduction: d over the width of the bottleneck.
    """

    recipe = Recipe("clip_adapter", epochs=200, batch_size=32, learning_rate=2e-3, weight_decay=5e-4, warmup_epochs=1,
                    warmup_rate=1e-5, full_cosine=True)
    revision = 2                         # the schedule of CoOp's authors
    label = "CLIP-Adapter"
    splits_batches, open_classes = True, True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, alpha: float = 0.2, reduction: int = 4):
        super().__init__(clip, classes)
        if not 0 <= alpha <= 1 or not 1 <= reduction <= clip.embed_dim:
            raise UserError(f"{option('method.alpha')} must be in [0, 1] and {option('method.reduction')} from 1 to "
                            f"the feature dimension {clip.embed_dim}, found {alpha} and {reduction}")
        self.alpha, width = alpha, clip.embed_dim // reduction
        self.down = nn.Linear(clip.embed_dim, width, bias=False)
        self.up = nn.Linear(width, clip.embed_dim, bias=False)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        adapted = self.up(F.relu(self.down(x.pooled)))                                     # (b, d)
        blended = self.alpha * adapted + (1 - self.alpha) * x.pooled                       # (b, d)
        return self.zero_shot.logits(Features(F.normalize(blended, dim=-1)), class_features)    # (b, c)
