"""XR-VLM+ (ours): zero-shot logits plus linear relations of image parts and prompts, regularised by cross-validation.

Parts are clusters, by k-means over the positions of the training images. Every part is related to every prompt of every
class by a bilinear form with an L2 penalty, whose strength is chosen by cross-validation on the training images. The
problem is convex: it is solved by L-BFGS, not trained by gradient steps.
`docs/results/plus.md` tells how the method was developed.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.distributed import generator
from xrvlm.errors import UserError, option, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.linear_probe import stratified
from xrvlm.methods.xr_vlm.linear_relations import LinearRelations
from xrvlm.methods.xr_vlm.parts import FoundParts, patches
from xrvlm.methods.zero_shot import ZeroShot, fitted_weight, minimise
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ClassSentences, PartDescriptions
from xrvlm.text.learned_prompts import ClassPrompts

RelateTo = Literal["text_and_classes", "text", "classes"]
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(0, -11, -1))    # of the penalty, from 1 to 0.00001
OWN_SHARE = 0.1                          # weight of the class-specific vectors relative to the text
POSITIONS = 20_000                       # that k-means clusters
FOLDS = 8
LONE_STRENGTHS = 0.03, 0.003             # with one image a class: prior right on at least half, or not
PATIENCE = 3                             # stop after this many strengths in a row without an improvement


class XRVLMPlus(Method):
    """`logits = w * zero-shot + sum over image parts i and prompts j of <V_i, A_ij T_jc> + <V_i, o_ic>`.

    The whole image is one of the parts. w is fitted to the training images first; A and o then minimise the
    cross-entropy plus a penalty on their squared norm. Where no strength of the penalty beats zero-shot in
    cross-validation, the prediction is that of zero-shot. With one image a class nothing can be held out, and the
    strength is fixed. The prompts are the part descriptions where there are any, else the sentences of the classes. New
    classes can be scored: their text is related by the same A, without o.

    Args:
        image_parts: m, clusters of positions, not counting the whole image.
        relate_to: `text`: A only, `classes`: o only, or `text_and_classes`.
    """

    needs = frozenset({"pooled", "tokens"})
    recipe, open_classes = TRAINING_FREE, True
    label = "XR-VLM+"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, image_parts: int = 16,
                 relate_to: RelateTo = "text_and_classes"):
        super().__init__(clip, classes)
        if relate_to not in get_args(RelateTo):
            raise unknown(option("method.relate_to"), relate_to, get_args(RelateTo))
        if image_parts < 1:
            raise UserError(f"{option('method.image_parts')} must be at least 1, found {image_parts}")
        self.relate_to: RelateTo = relate_to
        self.zero_shot = ZeroShot(clip, classes)
        self.prior_weight: Tensor
        self.register_buffer("prior_weight", torch.ones(()))
        self.pooling = FoundParts(clip.embed_dim, image_parts)
        self.class_prompts: ClassPrompts = (PartDescriptions if classes.parts else ClassSentences)(clip, classes)
        self.prompts = self._prompts_label(classes)
        self.relations = LinearRelations(clip.embed_dim, image_parts + 1, self.class_prompts.text_parts,
                                         len(classes.names))

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        self.zero_shot.prepare(clip, None)
        self.class_prompts.prepare(clip)
        self._find_parts(clip, support)
        shares = (float("text" in self.relate_to), OWN_SHARE * ("classes" in self.relate_to))
        codes = self.relations.start(self.class_prompts(clip), *shares)                    # (c, r)
        prior, parts, y = self._read(clip, support)                          # (n, c), (n, (m + 1) * d), (n,)
        self.prior_weight.copy_(fitted_weight(prior, y))
        train = _Examples(self.prior_weight * prior, parts, y)
        if val is None:
            splits = train.folds()
        else:
            val_prior, val_parts, val_y = self._read(clip, val)
            splits = [(train, _Examples(self.prior_weight * val_prior, val_parts, val_y))]
        strength = _best_strength(splits, codes) if splits else _lone_strength(train)
        if strength is not None:
            solution = train.solve(torch.zeros(parts.shape[1], codes.shape[1]).to(parts), codes, strength)
            self.relations.image_space.data = solution.view_as(self.relations.image_space)

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        self.zero_shot = self.zero_shot.for_classes(clip, classes)
        self.class_prompts = self.class_prompts.for_classes(clip, classes)
        self.prompts = self._prompts_label(classes)
        before = {name: index for index, name in enumerate(self.classes.names)}
        self.relations = self.relations.for_classes([before.get(name) for name in classes.names])

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.relations.of_prompts(self.class_prompts(clip))                         # (g + 1, c, r)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        prior = self.zero_shot.logits(x, self.zero_shot.weights)                           # (b, c)
        return self.prior_weight * prior + self.relations(self.pooling.of(x), class_features)

    def _prompts_label(self, classes: ClassText) -> str:
        return f"{self.zero_shot.prompts} + {self.class_prompts.label}" if classes.parts else self.zero_shot.prompts

    @torch.no_grad()
    def _find_parts(self, clip: FrozenCLIP, support: FeatureSource) -> None:
        from sklearn.cluster import KMeans

        share = POSITIONS / len(support.labels)
        draws, chosen, parts = generator(0, "positions"), [], []
        for x, _ in support.in_order():
            assert x.tokens is not None
            rows = patches(x.tokens).flatten(0, 1).cpu()                                   # (b * h * w, d)
            some = torch.randperm(len(rows), generator=draws)[:max(1, round(share * len(x)))]
            chosen.append(rows[some])
        positions = self.pooling.start(torch.cat(chosen).to(clip.device))                  # (n, d)
        if len(positions) < (wanted := len(self.pooling.centres)):
            raise UserError(f"{option('method.image_parts', wanted)} is more than the {len(positions)} positions of "
                            "all training images: use fewer parts, or more shots")
        found = KMeans(len(self.pooling.centres), n_init="auto", random_state=0).fit(positions.cpu().numpy())
        self.pooling.centres.copy_(torch.from_numpy(found.cluster_centers_))
        for x, _ in support.in_order():
            parts.append(self.pooling.of(x.to(clip.device)))                               # (b, m, d)
        self.pooling.standardise(torch.cat(parts))

    @torch.no_grad()
    def _read(self, clip: FrozenCLIP, source: FeatureSource) -> tuple[Tensor, Tensor, Tensor]:
        """Zero-shot logits (n, c), part features (n, m * d) and labels (n,)."""
        prior, parts = [], []
        for batch, _ in source.in_order():
            x = batch.to(clip.device)
            prior.append(self.zero_shot.logits(x, self.zero_shot.weights))
            parts.append(self.pooling.of(x).flatten(1))
        return torch.cat(prior), torch.cat(parts), source.labels.to(clip.device)


@dataclass
class _Examples:
    """The data of the convex problem."""

    prior: Tensor                        # (n, c) weighted zero-shot logits
    parts: Tensor                        # (n, f) the features of all parts, concatenated
    labels: Tensor                       # (n,)

    def folds(self) -> list[tuple["_Examples", "_Examples"]]:
        """(training, held out) pairs, stratified by class; none where there is one image a class."""
        # n images span at most n dimensions: a rotation into these reduces the size and changes nothing else
        left, lengths, _ = torch.linalg.svd(self.parts, full_matrices=False)
        turned = replace(self, parts=left * lengths)
        fold = stratified(self.labels, FOLDS)                                              # (n,)
        count = int(fold.max()) + 1
        return [(turned._only(fold != index), turned._only(fold == index)) for index in range(count)] * (count > 1)

    def loss(self, weight: Tensor, codes: Tensor, reduction: str = "mean") -> Tensor:
        """() cross-entropy with relations `weight` (f, r) and `codes` (c, r)."""
        return F.cross_entropy(self.prior + self.parts @ weight @ codes.T, self.labels, reduction=reduction)

    def solve(self, start: Tensor, codes: Tensor, strength: float) -> Tensor:
        """(f, r) the relations for a `strength` of the penalty; `start` is the initial value."""
        weight, penalty = start.requires_grad_(), strength / len(self.labels) ** 0.5
        minimise(weight, lambda: self.loss(weight, codes) + penalty * weight.square().sum(), steps=60)
        return weight.detach()

    def _only(self, rows: Tensor) -> "_Examples":
        return _Examples(self.prior[rows], self.parts[rows], self.labels[rows])


def _best_strength(splits: list[tuple[_Examples, _Examples]], codes: Tensor) -> float | None:
    """The strength with the lowest held-out loss, or None where none has a lower one than the prior alone."""
    weights = [train.parts.new_zeros(train.parts.shape[1], codes.shape[1]) for train, _ in splits]

    def held_out_loss() -> float:
        return sum(rest.loss(weight, codes, "sum").item() for weight, (_, rest) in zip(weights, splits, strict=True))

    best, lowest, worse = None, held_out_loss(), 0
    for strength in STRENGTHS:
        weights = [train.solve(weight, codes, strength) for weight, (train, _) in zip(weights, splits, strict=True)]
        loss = held_out_loss()
        best, lowest, worse = (strength, loss, 0) if loss < lowest else (best, lowest, worse + 1)
        if worse == PATIENCE:
            break
    return best


def _lone_strength(train: _Examples) -> float:
    """The strength with one image a class, where none can be held out."""
    right = (train.prior.argmax(dim=1) == train.labels).float().mean()
    return LONE_STRENGTHS[0] if right >= 0.5 else LONE_STRENGTHS[1]
