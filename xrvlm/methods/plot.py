"""PLOT (Chen et al., ICLR 2023, arXiv:2210.01253): optimal transport between positions and several prompts a class.

Formula, regularisation, steps and tolerance are those of the authors' program (CHENGY12/PLOT,
plot-coop/trainers/plot.py). The distance is that of optimal transport between the p positions v of an image and the g
prompts t of a class, all of unit norm and equal weight:

    cost C_ij = 1 - cos(v_i, t_j);  plan T = diag(r) exp(-C / 0.1) diag(s), rows summing to 1 / p, columns to 1 / g
    logit = logit_scale * (1 - sum_ij T_ij C_ij)

Sinkhorn's iterations find r and s: the paper's inner loop, without gradients. Each pair of image and class stops when
the mean change of r is below 0.01, or after 100 iterations. (The authors take the mean over the batch, with which the
logits of an image would depend on the others.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP, NamePosition
from xrvlm.methods.base import Method, Recipe
from xrvlm.methods.xr_vlm.parts import patches
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import OWN_PROMPTS, ContextKind, ContextPrompts

SOFTNESS, STEPS, TOLERANCE = 0.1, 100, 0.01
EXPORTED_STEPS = 30                      # an exported graph cannot stop early; real towers need 3 to 8
CLASSES_AT_ONCE = 64                     # bounds the memory of (b, c, p, g)


class PLOT(Method):
    """`logit_scale * (1 - transport distance)` between the positions of an image and the prompts of a class.

    The positions are the projected grid of the last block, without a class token. The authors' PLOT is for ResNets
    only: they query the attention pool once for each position, where here a position is projected alone. For ViTs they
    have PLOT++, which also learns prompts in the image tower. On ImageNet they add CoOp's logit, which is not done
    here.

    4 prompts and the shared context of 16 vectors are the authors'. The recipe is CoOp's, for comparison with it; the
    authors' (configs/trainers/PLOT/rn50.yaml) has 50 epochs with batches of 128.

    Args:
        text_parts: g, learned prompts of a class.
        context_length: number of learned vectors in a prompt. Ignored with `context_words`.
        context: one for all classes (`shared`, the paper's), one for each (`specific`), or the first vectors shared and
            the rest specific (`shared_then_specific`).
        shared_length: with `shared_then_specific`, the number of shared vectors; None: half.
        context_words: initialise all prompts with the token embeddings of these words instead of noise.
        name_position: of the class name in the prompt: `end`, `front` or `middle`.
    """

    needs = frozenset({"pooled", "tokens"})
    recipe = Recipe("plot", epochs=200, batch_size=32, learning_rate=2e-3, weight_decay=5e-4, warmup_epochs=1,
                    warmup_rate=1e-5, full_cosine=True)
    revision = 2                         # the schedule of CoOp's authors
    label = "PLOT"
    prompts = "learned"
    splits_batches, opens_with = True, "a shared context"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, text_parts: int = 4, context_length: int = 16,
                 context: ContextKind = "shared", shared_length: int | None = None, context_words: str | None = None,
                 name_position: NamePosition = "end"):
        super().__init__(clip, classes)
        self.context = ContextPrompts(clip, classes.names, text_parts=text_parts, length=context_length,
                                      context=context, shared_length=shared_length, words=context_words,
                                      position=name_position)
        self.open_classes, self.bound_by = self.context.open_classes, OWN_PROMPTS
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.context = self.context.for_classes(clip, classes)

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.context(clip)                                                          # (g, c, d)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        assert x.tokens is not None
        positions = F.normalize(patches(x.tokens), dim=-1)                                 # (b, p, d)
        parts = class_features.split(CLASSES_AT_ONCE, dim=1)
        moved = torch.cat([transported_cosine(positions, part) for part in parts], dim=1)  # (b, c)
        return self.logit_scale * moved + self.logit_bias


def transported_cosine(positions: Tensor, prompts: Tensor) -> Tensor:
    """(b, c) 1 - transport distance of `positions` (b, p, d) and `prompts` (g, c, d)."""
    cosine = torch.einsum("bpd,gcd->bcpg", positions, prompts)                             # (b, c, p, g)
    return (plan(1 - cosine) * cosine).sum(dim=(2, 3))    # a plan sums to 1


@torch.no_grad()
def plan(cost: Tensor) -> Tensor:
    """(..., p, g) the transport plan of `cost` (..., p, g), by Sinkhorn's iterations."""
    kernel = torch.exp(-cost / SOFTNESS)                                                   # (..., p, g)
    rows, columns = torch.ones_like(cost[..., 0]), torch.ones_like(cost[..., 0, :])        # (..., p), (..., g)
    moving = torch.ones_like(rows[..., :1], dtype=torch.bool)                              # (..., 1)
    exported = torch.compiler.is_compiling()
    for _ in range(EXPORTED_STEPS if exported else STEPS):
        new = 1 / rows.shape[-1] / torch.einsum("...pg,...g->...p", kernel, columns)
        moves = (new - rows).abs().mean(dim=-1, keepdim=True) >= TOLERANCE                 # (..., 1)
        rows = torch.where(moving, new, rows)
        new = 1 / columns.shape[-1] / torch.einsum("...pg,...p->...g", kernel, rows)
        columns, moving = torch.where(moving, new, columns), moving & moves
        if not exported and not moving.any():    # further steps would change nothing
            break
    return rows[..., None] * kernel * columns[..., None, :]
