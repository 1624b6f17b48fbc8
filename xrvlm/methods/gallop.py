"""GalLoP (Lafon et al., ECCV 2024, arXiv:2407.01400): prompts for the whole image, and prompts for its best positions.

Formulas, numbers of prompts, k, dropout and recipe are those of the authors' program (MarcLafon/gallop: gallop/vlprompt
and scripts). With n global prompts t and m local ones u, the pooled feature x and the positions z, all of unit norm:

    global_j = cos(x, t_j);  local_i = mean of the i * k largest cos(A z, u_i) over the positions
    logit = logit_scale * (mean_j global_j + mean_i local_i) / 2
    loss = CE(logit_scale * mean of the global_j that dropout leaves) + mean_i CE(logit_scale * local_i)

A is a linear layer, the identity at first, that brings positions closer to text. Prompt dropout leaves each image of a
batch some of the global prompts. Two things differ, since a bank holds the last block's states, projected: the authors
let the positions of a ViT attend to nothing but themselves in that block, and their A stands before the projection into
the joint space. Scores for images of no known class are not made. All their scripts are for 16 shots (ImageNet: 50
epochs, batches of 128; EuroSAT: batches of 10); how long they train with fewer is not released.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.xr_vlm.parts import check_positions, patches
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ContextPrompts


class GalLoP(Method):
    """Global prompts on the pooled feature, local ones each on the positions that it likes best.

    Args:
        global_prompts: n.
        local_prompts: m.
        top_k: k; local prompt i of 1 to m reads i * k positions, or all where there are fewer.
        dropout: share of the global prompts that a training image does not see, rounded down; one stays in any case.
        context_words: what all prompts start from.
    """

    needs = frozenset({"pooled", "tokens"})
    recipe = Recipe("gallop", epochs=200, batch_size=32, learning_rate=2e-3, weight_decay=0.01, warmup_epochs=0)
    label = "GalLoP"
    prompts, open_classes = "learned", True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, global_prompts: int = 4, local_prompts: int = 4,
                 top_k: int = 5, dropout: float = 0.75, context_words: str = "a photo of a"):
        super().__init__(clip, classes)
        if global_prompts < 1 or local_prompts < 1 or top_k < 1 or not 0 <= dropout < 1:
            raise UserError("method.global_prompts, local_prompts and top_k must be at least 1 and dropout in [0, 1), "
                            f"found {global_prompts}, {local_prompts}, {top_k} and {dropout}")
        check_positions(clip, "gallop", "to choose from")
        self.global_prompts, self.top_k = global_prompts, top_k
        self.kept = max(1, global_prompts - int(dropout * global_prompts))
        self.context = ContextPrompts(clip, classes.names, text_parts=global_prompts + local_prompts,
                                      context="shared", words=context_words)
        self.align = nn.Linear(clip.embed_dim, clip.embed_dim, bias=False)
        nn.init.eye_(self.align.weight)
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.context = self.context.for_classes(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.context(clip)                                                          # (n + m, c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        whole, local = self.cosines(x, class_features)                                     # (b, n, c), (b, m, c)
        return self.logit_scale * (whole.mean(dim=1) + local.mean(dim=1)) / 2 + self.logit_bias

    def loss(self, x: Features, y: Tensor, clip: FrozenCLIP, *, label_smoothing: float = 0.0) -> Tensor:
        whole, local = self.cosines(x, self.class_features(clip))                          # (b, n, c), (b, m, c)
        kept = torch.rand(whole.shape[:2]).topk(self.kept, dim=1).indices.to(y.device)     # (b, k)
        seen = whole.gather(1, kept[..., None].expand(-1, -1, whole.shape[2])).mean(dim=1, keepdim=True)
        losses = [F.cross_entropy((self.logit_scale * cosine + self.logit_bias).flatten(0, 1),
                                  y.repeat_interleave(cosine.shape[1]), label_smoothing=label_smoothing)
                  for cosine in (seen, local)]
        return losses[0] + losses[1]

    def cosines(self, x: Features, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, c) of the whole image and (b, m, c) of its best positions."""
        assert x.tokens is not None
        whole = torch.einsum("bd,ncd->bnc", x.pooled, class_features[:self.global_prompts])
        positions = F.normalize(self.align(patches(x.tokens)), dim=-1)                     # (b, p, d)
        local = []
        for index, prompt in enumerate(class_features[self.global_prompts:]):              # (c, d)
            count = min((index + 1) * self.top_k, positions.shape[1])
            local.append((positions @ prompt.T).topk(count, dim=1).values.mean(dim=1))     # (b, c)
        return whole, torch.stack(local, dim=1)
