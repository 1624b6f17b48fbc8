"""What a method with image parts looks at, and which relations of parts and prompts its decision is made of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from xrvlm.backbones.base import ImageTransform
from xrvlm.errors import UserError, option, unknown
from xrvlm.inference.classifier import Classifier
from xrvlm.methods.base import Method
from xrvlm.methods.xr_vlm.linear_relations import LinearRelations
from xrvlm.methods.xr_vlm.parts import ImageParts, grid
from xrvlm.methods.xr_vlm.relations import RelationHead
from xrvlm.text.class_text import readable
from xrvlm.text.fixed_prompts import LearnedDescriptions
from xrvlm.text.learned_prompts import ContextPrompts
from xrvlm.views import evaluation_view, read_image

STEPS = 128                              # midpoints between the baseline and the relations of an image
IMAGES_AT_ONCE = 64

Photo = Image.Image | str | Path
Words = list[list[list[tuple[str, float]]]]    # for each prompt and each learned vector: words and their distances


class Strong(NamedTuple):
    """One relation and what it adds to a logit; indices from 0."""

    prompt: int
    part: int
    label: int
    contribution: float


@dataclass(frozen=True)
class Attribution:
    """What a logit, or a difference of two, is made of: `value = baseline + contributions + added`, up to `gap`.

    Exact where the head is linear in its relations; else integrated gradients (Sundararajan et al., ICML 2017,
    arXiv:1703.01365) along the straight line from the head's baseline. For the perceptron heads that is where the
    perceptron's first normalisation gives zero: the mean relations of the training images.
    """

    contributions: Tensor                # (g, m, c) of each relation
    value: float
    baseline: float                      # what the head says where every relation is at its baseline
    added: float                         # what the method adds to the head's logits: a prior; 0 for most
    exact: bool

    @property
    def method(self) -> str:
        return "exact" if self.exact else "integrated gradients"

    @property
    def gap(self) -> float:
        """How far the terms are from `value`: rounding where exact, else the steps of the integral too."""
        return abs(self.contributions.sum().item() + self.baseline + self.added - self.value)

    @property
    def by_part(self) -> Tensor:
        """(g, m): of the relations of each part and prompt with all classes together."""
        return self.contributions.sum(dim=-1)

    def strongest(self, count: int) -> list[Strong]:
        """The relations that move the value most, in either direction."""
        order = self.contributions.flatten().abs().topk(min(count, self.contributions.numel())).indices
        prompts, parts, labels = (index.tolist() for index in torch.unravel_index(order, self.contributions.shape))
        return [Strong(prompt, part, label, self.contributions[prompt, part, label].item())
                for prompt, part, label in zip(prompts, parts, labels, strict=True)]


@dataclass(frozen=True)
class Explanation:
    """One image; tensors on the CPU."""

    photo: Image.Image                   # what the tower saw
    maps: Tensor                         # (m, h, w) weights of the patches or cells, without the class token
    class_token: Tensor                  # (m,) share of a map's weight that lies on the class token, 0..1
    dead: Tensor                         # (m,) bool: the map is zero everywhere
    probabilities: Tensor                # (c,)
    predicted: str
    relations: Tensor                    # (g, m, c) as the head has them
    logit: Attribution                   # of the predicted class
    pooled: Tensor                       # (d,) the tower's, of unit norm: see inference/nearest.py
    against: str | None = None
    margin: Attribution | None = None    # of logit[predicted] - logit[against]

    @property
    def overlap(self) -> float:
        return overlap(self.maps).item()


def explain(classifier: Classifier, images: Sequence[Photo], against: str | None = None) -> list[Explanation]:
    """Explain what `classifier` says of `images` (PIL images or files), and why not `against`.

    Where `against` itself is predicted, the runner-up takes its place: `Explanation.against` names it.

    Raises:
        UserError: the method has no image parts, a file cannot be read, or no class is called `against`.
    """
    return list(explained(classifier, images, against))


def explained(classifier: Classifier, images: Iterable[Photo], against: str | None = None) -> Iterator[Explanation]:
    """As `explain`, a few images at a time."""
    pooling, head = parts_and_relations(classifier.method)
    rival = None if against is None else class_index(against, classifier.names)
    left = iter(images)
    while photos := [read_image(image) for image in islice(left, IMAGES_AT_ONCE)]:
        yield from _explained(classifier, pooling, head, photos, rival)


def parts_and_relations(method: Method) -> tuple[ImageParts, RelationHead]:
    """The two modules that can be explained; UserError for a method without them."""
    pooling, head = getattr(method, "pooling", None), getattr(method, "relations", None)
    if not isinstance(pooling, ImageParts) or not isinstance(head, RelationHead):
        raise UserError(f"{method.label} has no image parts to explain; explain takes runs of methods with part "
                        f"pooling and a relation head, such as {option('method', 'xr_vlm_plus')}")
    return pooling, head


def class_index(name: str, names: Sequence[str]) -> int:
    """The index of the class `name`; UserError that lists the known ones."""
    known = {readable(each): index for index, each in enumerate(names)}
    if readable(name) not in known:
        raise unknown("class", name, names)
    return known[readable(name)]


def overlap(maps: Tensor) -> Tensor:
    """(...) how much the parts of an image look at the same places: the mean cosine similarity of the maps
    (..., m, h, w), over all pairs of parts that are not dead. 1 where all are alike, 0 where no two touch, nan where
    fewer than two live.
    """
    rows = F.normalize(maps.float().flatten(-2), dim=-1)                                   # (..., m, h * w)
    pairs = (rows @ rows.mT).triu(1).sum(dim=(-2, -1))                                     # (...)
    live = (rows != 0).any(dim=-1).sum(dim=-1)                                             # (...)
    return torch.where(live > 1, pairs / (live * (live - 1) / 2), torch.nan)


def prompt_words(classifier: Classifier, name: str, count: int = 3) -> Words | None:
    """The words nearest to the learned vectors of the class `name`; None where no prompt is learned.

    Learned vectors need not lie near any word: a distance says more than the word beside it.
    """
    learned = (ContextPrompts, LearnedDescriptions)
    prompts = [module for module in classifier.method.modules() if isinstance(module, learned)]
    if not prompts:
        return None
    context = prompts[0].vectors.detach()                                                  # (g, c or 1, l, w)
    vectors = context[:, class_index(name, classifier.names) if context.shape[1] > 1 else 0]    # (g, l, w)
    words = classifier.clip.nearest_words(vectors.flatten(0, 1), count)
    return [words[start:start + vectors.shape[1]] for start in range(0, len(words), vectors.shape[1])]


def prompt_names(classifier: Classifier, explanation: Explanation) -> list[str]:
    """What to call each of the g prompts of `explanation.relations`."""
    prompts = len(explanation.relations)
    if classifier.method.prompts == "none":
        return ["no text"]
    if isinstance(parts_and_relations(classifier.method)[1], LinearRelations):
        return [*_prompt_names(classifier, prompts - 1), "the class's own vector"]
    if prompts < len(classifier.class_features):
        return ["the part's own prompt"]
    return _prompt_names(classifier, prompts)


def part_names(classifier: Classifier, parts: int) -> list[str]:
    """What to call each of the m parts."""
    return list(islice(parts_and_relations(classifier.method)[0].names(), parts))


def _prompt_names(classifier: Classifier, prompts: int) -> list[str]:
    named = classifier.header.classes.part_names
    described = classifier.method.prompts.endswith(("part_descriptions", "learned_from_descriptions"))
    if described and named is not None and len(named) == prompts:
        return list(named)
    return [f"prompt {prompt + 1}" for prompt in range(prompts)]


def _explained(classifier: Classifier, pooling: ImageParts, head: RelationHead, photos: list[Image.Image],
               rival: int | None) -> Iterator[Explanation]:
    clip, method, class_features = classifier.clip, classifier.method, classifier.class_features
    views = torch.stack([evaluation_view(photo, clip.transform) for photo in photos])      # (b, 3, s, s)
    with torch.no_grad():
        x = clip.encode_image(views.to(clip.device), method.needs)
        maps = pooling.part_maps(x)                                                        # (b, m, p)
        relations = head.relate(pooling.of(x), class_features)                             # (b, g, m, c)
        logits = method.logits(x, class_features)                                          # (b, c)
        probabilities = classifier.from_features(x)                                        # (b, c)
        added = logits - head.score(relations)                                             # (b, c)
    if not all(values.isfinite().all() for values in (maps, relations, logits, added)):
        raise UserError(f"{method.label} gives numbers that are not finite: adapt again with {option('force', True)}")
    for i, values in enumerate(logits):                                                    # (c,)
        best, against = int(values.argmax()), rival
        if rival == best:                # why not the runner-up
            against = int(values.index_fill(0, values.argmax(), -torch.inf).argmax())
        towards = F.one_hot(values.argmax(), len(values)).to(values.dtype)                 # (c,)
        margin = None
        if against is not None:
            away = F.one_hot(torch.tensor(against, device=values.device), len(values)).to(values.dtype)
            margin = attribute(head, relations[i], towards - away, values, added[i])
        weight, on_grid = maps[i].sum(dim=-1), grid(maps[i])                               # (m,), (m, h, w)
        yield Explanation(
            photo=_seen(views[i], clip.transform), maps=on_grid.cpu(), dead=(weight == 0).cpu(),
            class_token=(1 - on_grid.sum(dim=(1, 2)) / weight.clamp(min=1e-12)).mul(weight > 0).clamp(0, 1).cpu(),
            probabilities=probabilities[i], predicted=classifier.names[best], relations=relations[i].cpu(),
            logit=attribute(head, relations[i], towards, values, added[i]), pooled=x.pooled[i].cpu(),
            against=None if against is None else classifier.names[against], margin=margin)


def attribute(head: RelationHead, relations: Tensor, direction: Tensor, logits: Tensor, added: Tensor, *,
              steps: int = STEPS) -> Attribution:
    """The terms of `direction` (c,) times `logits` (c,), which are the head's for `relations` (g, m, c) plus `added`.

    A linear head has the same slope everywhere: one step is exact.
    """
    baseline = head.baseline().to(relations).expand_as(relations)                          # (g, m, c)
    way = relations - baseline                                                             # (g, m, c)
    shares = (torch.arange(1 if head.linear else steps, device=way.device) + 0.5) / (1 if head.linear else steps)
    path = (baseline + shares[:, None, None, None] * way).requires_grad_()                 # (steps, g, m, c)
    (slopes,) = torch.autograd.grad((head.score(path) @ direction).sum(), path)            # (steps, g, m, c)
    with torch.no_grad():
        start = (head.score(baseline[None])[0] @ direction).item()
    return Attribution((slopes.mean(dim=0) * way).cpu(), (logits @ direction).item(), start,
                       (added @ direction).item(), head.linear)


def _seen(view: Tensor, transform: ImageTransform) -> Image.Image:
    """The photo (3, s, s) before it was normalised."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    return TF.to_pil_image((view * std + mean).clamp(0, 1))
