"""XR-VLM+ (ours): zero-shot logits plus linear relations of image parts and prompts, regularised by cross-validation.

The parts of an image are the whole of it, clusters of positions by k-means, the pairs of channels of an earlier block,
and the feature of a second tower where there is one. Every part is related to every prompt of every class by a bilinear
form with an L2 penalty. Cross-validation on the training images chooses which parts are related, and the strength of
the penalty. The problem is convex: it is solved by L-BFGS, not trained by gradient steps. `docs/results/plus.md` tells
how the method was developed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option, unknown
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.inputs import Inputs, Scaling
from xrvlm.methods.linear_probe import FOLDS, PATIENCE, stratified
from xrvlm.methods.xr_vlm.linear_relations import LinearRelations
from xrvlm.methods.xr_vlm.parts import FoundParts
from xrvlm.methods.zero_shot import ZeroShot, fitted_weight, minimise, zero_shot_logits
from xrvlm.text.class_text import ClassText
from xrvlm.text.fixed_prompts import ClassSentences, PartDescriptions
from xrvlm.text.learned_prompts import ClassPrompts

RelateTo = Literal["text_and_classes", "text", "classes"]
Weights = tuple[float, ...]              # of the whole image, the clusters, the pairs and the second tower
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-2, -17, -1))   # of the penalty, from 0.1 to 0.00000001
OWN_SHARE = 0.1                          # weight of the class-specific vectors relative to the text
TEXT_FROM = 0.97                         # the text is left out where held-out loss is below this share without it
CLUSTERS, PAIRS, SECOND = 0.25, 1.0, 1.0    # weight of these parts relative to the whole image, where they are related
BELIEVED = 1.92                          # nats that zero-shot must add on the training images: likelihood ratio at 5 %
LONE_STRENGTHS = 0.006, 0.0006           # with one image a class: prior right on at least half, or not
CHOOSING = 2000                          # images at most that choose
ROUGH, EXACT = 40, 100                   # steps of L-BFGS, of the solutions that only choose and of the last


class XRVLMPlus(Method):
    """`logits = w * zero-shot + sum over image parts i and prompts j of <V_i, A_ij T_jc> + <V_i, o_ic>`.

    A_ij = W_i S_j: each part and each prompt has one matrix (`LinearRelations`).

    w is fitted to the training images first, 0 where zero-shot explains them no better than chance would; A and o then
    minimise the cross-entropy plus a penalty on their squared norm. Held-out images choose: o alone, where the text
    only disturbs; then the whole image alone, or with clusters, pairs, the second tower. Where nothing beats zero-shot
    on  them, the prediction is that of zero-shot. With one image a class nothing can be held out: the whole image, and
    the  second tower, is related, by o alone where zero-shot is wrong on more than half, and the strength is fixed. The
    prompts are the part  descriptions where there are any, else the sentences of the classes. New classes can be
    scored: their text is  related by the same A, without o.

    Args:
        image_parts: m, clusters of positions; 0: none.
        pairs: k, the directions of the earlier block whose pairs are related; 0: none. See `FoundParts`.
        inputs, scaling: of the whole image's feature; see `ImageInputs`.
        relate_to: `text`: A only, `classes`: o only, or `text_and_classes`.
    """

    needs = frozenset({"pooled", "tokens", "mid_tokens"})
    recipe, open_classes = TRAINING_FREE, True
    label = "XR-VLM+"
    revision = 3                         # 2: the unprojected feature, pairs, a choice of parts; 3: as of `ImageInputs`

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, image_parts: int = 16, pairs: int = 64,
                 inputs: Inputs = "auto", scaling: Scaling = "auto", relate_to: RelateTo = "text_and_classes"):
        super().__init__(clip, classes)
        if relate_to not in get_args(RelateTo):
            raise unknown(option("method.relate_to"), relate_to, get_args(RelateTo))
        self.settled: tuple[tuple[bool, Weights, float] | None, ...] = ()    # the result of `_choose`, if it is given
        for name, value in (("image_parts", image_parts), ("pairs", pairs)):
            if value < 0:
                raise UserError(f"{option(f'method.{name}')} must be at least 0, found {value}")
        self.relate_to: RelateTo = relate_to
        self.zero_shot = ZeroShot(clip, classes)
        self.prior_weight: Tensor
        self.register_buffer("prior_weight", torch.ones(()))
        self.pooling = FoundParts(clip, image_parts, inputs=inputs, scaling=scaling, pairs=pairs)
        self.needs = self.pooling.needs
        self.class_prompts: ClassPrompts = (PartDescriptions if classes.parts else ClassSentences)(clip, classes)
        self.prompts = self._prompts_label(classes)
        self.relations = LinearRelations(clip.embed_dim, self.pooling.widths, self.class_prompts.text_parts,
                                         len(classes.names))

    @classmethod
    def options_of(cls, revision: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Revision 1 related the pooled feature, each number standardised, and clusters."""
        own = {"inputs": "pooled", "scaling": "none", "pairs": 0} if revision == 1 else {}
        return own | dict(options)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        self.zero_shot.prepare(clip, None)
        self.class_prompts.prepare(clip)
        rows = self.pooling.fit(support, clip.device)                                      # (n, f)
        prior, labels = zero_shot_logits(self.zero_shot, support, clip.device)             # (n, c), (n,)
        weight = fitted_weight(prior, labels)
        gain = F.cross_entropy(0 * prior, labels, reduction="sum") - F.cross_entropy(weight * prior, labels,
                                                                                     reduction="sum")
        self.prior_weight.copy_(weight * (gain > BELIEVED))
        train = _Examples(rows, self.prior_weight * prior, labels)
        given = None if val is None else self._examples(clip, val)
        self.chosen = self.settled or (self._choose(train, given, self.class_prompts(clip)),)
        chosen, = self.chosen
        if chosen is None:
            self.prior_weight.copy_(weight)
            self._codes(self.class_prompts(clip), True)
            return
        with_text, weights, strength = chosen
        codes = self._codes(self.class_prompts(clip), with_text)                           # (c, r)
        train.rows *= self.pooling.weigh(weights)
        span, back = _span(train.rows @ train.rows.T, len(rows))
        start = span.new_zeros(1, span.shape[1], codes.shape[1])
        solved = _solve(train, span, codes, torch.ones_like(labels)[None], strength, start, steps=EXACT)
        self.relations.image_space.data = train.rows.T @ (back @ solved[0])                # (f, r)

    def settle(self, trained: Any) -> None:
        self.settled = trained.chosen

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
    def _examples(self, clip: FrozenCLIP, source: FeatureSource) -> "_Examples":
        prior, labels = zero_shot_logits(self.zero_shot, source, clip.device)
        rows = torch.cat([self.pooling.of(x.to(clip.device)) for x, _ in source.in_order()])
        return _Examples(rows, self.prior_weight * prior, labels)

    def _codes(self, class_features: Tensor, with_text: bool) -> Tensor:
        """(c, r) the codes of the classes, from (g, c, d); `with_text`: where `relate_to` has both, both."""
        text, own = "text" in self.relate_to, "classes" in self.relate_to
        return self.relations.start(class_features, float(text and (with_text or not own)), OWN_SHARE * own)

    def _choose(self, train: "_Examples", val: "_Examples | None",
                class_features: Tensor) -> tuple[bool, Weights, float] | None:
        """Whether the text is related, the weights of the parts and the strength of lowest held-out loss.

        None where zero-shot alone has it.
        """
        given, fit = _splits(train, val)
        if fit is None:
            right = (train.prior.argmax(dim=1) == train.labels).float().mean() >= 0.5 and bool(train.prior.any())
            whole = (1.0, 0.0, 0.0, *[1.0] * len(self.pooling.groups[3:]))
            return bool(right), whole, LONE_STRENGTHS[0] if right else LONE_STRENGTHS[1]
        grams = [given.rows[:, some] @ given.rows[:, some].T for some in self.pooling.blocks()]
        held_out = ~fit.all(dim=0)
        best, lowest = None, F.cross_entropy(given.prior, given.labels, reduction="none")[held_out].sum().item()

        def tried(weights: Weights, codes: Tensor) -> tuple[float, float]:
            gram = torch.stack([weight * gram for weight, gram in zip(weights, grams, strict=True) if weight])
            span, _ = _span(gram.sum(dim=0), int(fit.any(dim=0).sum()))
            return _best_strength(given, span, codes, fit)

        whole: Weights = (1.0, *[0.0] * len(self.pooling.groups[1:]))
        both = tried(whole, codes := self._codes(class_features, True))
        with_text = True
        found: dict[Weights, tuple[float, float]] = {whole: both}
        if self.relate_to == "text_and_classes":
            alone = tried(whole, own := self._codes(class_features, False))
            if alone[1] < TEXT_FROM * both[1]:
                with_text, codes, found[whole] = False, own, alone
        there = zip((CLUSTERS, PAIRS, SECOND), self.pooling.groups[1:], strict=False)
        for weights in product((1.0,), *((0.0, weight)[:1 + bool(count)] for weight, count in there)):
            strength, loss = found.get(weights) or tried(weights, codes)
            if loss < lowest:
                best, lowest = (with_text, weights, strength), loss
        return best


@dataclass
class _Examples:
    """The data of the convex problem."""

    rows: Tensor                         # (n, f) the features of all parts in a row
    prior: Tensor                        # (n, c) weighted zero-shot logits
    labels: Tensor                       # (n,)

    def some(self) -> "_Examples":
        """At most `CHOOSING` images, of each class as large a share."""
        kept = stratified(self.labels, -(-len(self.labels) // CHOOSING)) == 0
        return _Examples(self.rows[kept], self.prior[kept], self.labels[kept])


def _splits(train: _Examples, val: _Examples | None) -> tuple[_Examples, Tensor | None]:
    """The images that choose, those to fit on first, and (s, n) whether image n is one to fit on in split s.

    The split is that of training and validation images, or folds stratified by class; None with one image a class.
    """
    train = train.some()
    if val is None:
        fold = stratified(train.labels, FOLDS)                                             # (n,)
        numbers = torch.arange(int(fold.max()) + 1, device=fold.device)
        return train, fold != numbers[:, None] if len(numbers) > 1 else None
    val = val.some()
    both = _Examples(*(torch.cat(pair) for pair in zip(vars(train).values(), vars(val).values(), strict=True)))
    return both, (torch.arange(len(both.labels), device=both.labels.device) < len(train.labels))[None]


def _span(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n, k) the images in the space that the first `count` of them span, of the same products; (count, k) the axes.

    Args:
        gram: (n, n) products of the images. n images span at most n dimensions, where the problem is smaller and has
            the same solution: the weights in the space of the features are those in this one, times the axes, times
            the features of the first images.
    """
    values, vectors = torch.linalg.eigh(gram[:count, :count].double())
    kept = values > 1e-6 * values[-1]
    axes = vectors[:, kept] / values[kept].sqrt()                                          # (count, k)
    return (gram[:, :count].double() @ axes).to(gram), axes.to(gram)


def _losses(given: _Examples, span: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """(s, n) cross-entropies of all images with each of the relations `weight` (s, k, r)."""
    logits = given.prior + (span @ weight) @ codes.T                                       # (s, n, c)
    return F.cross_entropy(logits.mT, given.labels.expand(len(weight), -1), reduction="none")


def _solve(given: _Examples, span: Tensor, codes: Tensor, fit: Tensor, strength: float, start: Tensor, *,
           steps: int) -> Tensor:
    """(s, k, r) the relations of each split for a `strength` of the penalty: all splits at once, as they are apart."""
    weight, counts = start.clone().requires_grad_(), fit.sum(dim=1)

    def loss() -> Tensor:
        means = (_losses(given, span, codes, weight) * fit).sum(dim=1) / counts            # (s,)
        return (means + strength / counts.sqrt() * weight.square().sum(dim=(1, 2))).sum()

    minimise(weight, loss, steps=steps)
    return weight.detach()


def _best_strength(given: _Examples, span: Tensor, codes: Tensor, fit: Tensor) -> tuple[float, float]:
    """The strength of lowest loss on the images that are held out, and this loss."""
    weight = span.new_zeros(len(fit), span.shape[1], codes.shape[1])
    best, lowest, worse = STRENGTHS[0], float("inf"), 0
    for strength in STRENGTHS:
        weight = _solve(given, span, codes, fit, strength, weight, steps=ROUGH)
        with torch.no_grad():
            loss = (_losses(given, span, codes, weight) * ~fit).sum().item()
        best, lowest, worse = (strength, loss, 0) if loss < lowest else (best, lowest, worse + 1)
        if worse == PATIENCE:
            break
    return best, lowest
