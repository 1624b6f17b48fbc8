"""GalLoP (Lafon et al., ECCV 2024, arXiv:2407.01400): global prompts, and local prompts on the best positions.

Formulas, numbers of prompts, k, dropout and recipe are those of the authors' program (MarcLafon/gallop: gallop/vlprompt
and scripts). With n global prompts t and m local ones u, the pooled feature x and the positions z, all of unit norm:

    global_j = cos(x, t_j);  local_i = mean of the i * k largest cos(A z, u_i) over the positions
    logit = logit_scale * (mean_j global_j + mean_i local_i) / 2
    loss = CE(logit_scale * mean of the global_j that dropout keeps) + mean_i CE(logit_scale * local_i)

A is a linear layer, initialised with the identity, that aligns positions with text. A prompt is learned vectors and the
name, without a full stop. Prompt dropout keeps some of the
global prompts for each image of a batch. Two things differ, since positions here are the projected states of the last
block: the authors let each position of a ViT attend to itself only in that block, and they apply A before the
projection into the joint space. Scores for out-of-distribution detection are not implemented. All their scripts are for
16 shots (ImageNet: 50 epochs, batches of 128; EuroSAT: batches of 10); how long they train with fewer is not released.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.xr_vlm.parts import patches
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ContextPrompts


class GalLoP(Method):
    """Global prompts on the pooled feature; each local prompt on the positions most similar to it.

    Args:
        global_prompts: n.
        local_prompts: m.
        top_k: k; local prompt i of 1 to m reads i * k positions, or all where there are fewer.
        dropout: share of the global prompts dropped for a training image, rounded down; at least one is kept.
        context_words: all prompts are initialised with the token embeddings of these words.
        full_stop: a full stop ends each prompt, as in models of revision 1; the authors have none.
    """

    needs = frozenset({"pooled", "tokens"})
    recipe = Recipe("gallop", epochs=200, batch_size=32, learning_rate=2e-3, weight_decay=0.01, warmup_epochs=0)
    revision = 2                         # no full stop ends a prompt
    label = "GalLoP"
    prompts, open_classes = "learned", True

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, global_prompts: int = 4, local_prompts: int = 4,
                 top_k: int = 5, dropout: float = 0.75, context_words: str = "a photo of a",
                 full_stop: bool = False):
        super().__init__(clip, classes)
        if global_prompts < 1 or local_prompts < 1 or top_k < 1 or not 0 <= dropout < 1:
            raise UserError(f"{option('method.global_prompts')}, {option('method.local_prompts')} and "
                            f"{option('method.top_k')} must be at least 1 and {option('method.dropout')} in [0, 1), "
                            f"found {global_prompts}, {local_prompts}, {top_k} and {dropout}")
        self.global_prompts, self.top_k = global_prompts, top_k
        self.kept = max(1, global_prompts - int(dropout * global_prompts))
        self.context = ContextPrompts(clip, classes.names, text_parts=global_prompts + local_prompts,
                                      context="shared", words=context_words, full_stop=full_stop)
        self.align = nn.Linear(clip.embed_dim, clip.embed_dim, bias=False)
        nn.init.eye_(self.align.weight)
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    @classmethod
    def options_of(cls, revision: int, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"full_stop": revision == 1, **options}

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
        """Cosines of the pooled feature (b, n, c), and mean cosines of the best positions (b, m, c)."""
        assert x.tokens is not None
        whole = torch.einsum("bd,ncd->bnc", x.pooled, class_features[:self.global_prompts])
        positions = F.normalize(self.align(patches(x.tokens)), dim=-1)                     # (b, p, d)
        local = []
        for index, prompt in enumerate(class_features[self.global_prompts:]):              # (c, d)
            count = min((index + 1) * self.top_k, positions.shape[1])
            local.append((positions @ prompt.T).topk(count, dim=1).values.mean(dim=1))     # (b, c)
        return whole, torch.stack(local, dim=1)
