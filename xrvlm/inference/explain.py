"""What a decision is made of: the relations of image parts and prompts, or the words that were found in the photo."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from xrvlm.backbones.base import Features, ImageTransform
from xrvlm.errors import UserError, option, unknown
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.explanation import Attribution, Explanation
from xrvlm.methods.base import Method
from xrvlm.methods.filip import FILIP, class_words
from xrvlm.methods.xr_vlm.linear_relations import LinearRelations
from xrvlm.methods.xr_vlm.parts import ImageParts, grid
from xrvlm.methods.xr_vlm.relations import RelationHead
from xrvlm.text.class_text import readable
from xrvlm.text.fixed_prompts import LearnedDescriptions
from xrvlm.text.learned_prompts import ContextPrompts
from xrvlm.views import evaluation_view, read_image

STEPS = 128                              # midpoints between the baseline and the relations of an image
IMAGES_AT_ONCE = 64
WORD_TERMS = "its best place", "best word of places"      # the two directions of late interaction

Photo = Image.Image | str | Path
Words = list[list[list[tuple[str, float]]]]    # for each prompt and each learned vector: words and their distances


def explain(classifier: Classifier, images: Sequence[Photo], against: str | None = None) -> list[Explanation]:
    """Explain what `classifier` says of `images` (PIL images or files), and why not `against`.

    Where `against` itself is predicted, the runner-up takes its place: `Explanation.against` names it.

    Raises:
        UserError: the method has neither image parts nor words, a file cannot be read, or no class is called `against`.
    """
    return list(explained(classifier, images, against))


def explained(classifier: Classifier, images: Iterable[Photo], against: str | None = None) -> Iterator[Explanation]:
    """As `explain`, a few images at a time."""
    check_explainable(classifier.method)
    words = isinstance(classifier.method, FILIP)
    explain_some = _explained_words if words else partial(_explained, *parts_and_relations(classifier.method))
    rival = None if against is None else class_index(against, classifier.names)
    left = iter(images)
    while photos := [read_image(image) for image in islice(left, IMAGES_AT_ONCE)]:
        yield from explain_some(classifier, photos, rival)


def check_explainable(method: Method) -> None:
    """UserError for a method that `explain` does not take."""
    if not isinstance(method, FILIP):
        parts_and_relations(method)


def parts_and_relations(method: Method) -> tuple[ImageParts, RelationHead]:
    """The two modules that can be explained; UserError for a method without them."""
    pooling, head = getattr(method, "pooling", None), getattr(method, "relations", None)
    if not isinstance(pooling, ImageParts) or not isinstance(head, RelationHead):
        raise UserError(f"{method.label} has no image parts to explain; explain takes runs of methods with part "
                        f"pooling and a relation head, such as {option('method', 'xr_vlm_plus')}, and of "
                        f"{option('method', 'filip')}")
    return pooling, head


def class_index(name: str, names: Sequence[str]) -> int:
    """The index of the class `name`; UserError that lists the known ones."""
    known = {readable(each): index for index, each in enumerate(names)}
    if readable(name) not in known:
        raise unknown("class", name, names)
    return known[readable(name)]


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
    if explanation.words:
        return list(WORD_TERMS)
    if classifier.method.prompts == "none":
        return ["no text"]
    if isinstance(parts_and_relations(classifier.method)[1], LinearRelations):
        return [*_prompt_names(classifier, prompts - 1), "the class's own vector"]
    if prompts < len(classifier.class_features):
        return ["the part's own prompt"]
    return _prompt_names(classifier, prompts)


def part_names(classifier: Classifier, explanation: Explanation) -> list[str]:
    """What to call each of the m parts, or words."""
    if explanation.words:
        return list(explanation.words)
    return list(islice(parts_and_relations(classifier.method)[0].names(), len(explanation.maps)))


def _prompt_names(classifier: Classifier, prompts: int) -> list[str]:
    named = classifier.header.classes.part_names
    described = classifier.method.prompts.endswith(("part_descriptions", "learned_from_descriptions"))
    if described and named is not None and len(named) == prompts:
        return list(named)
    return [f"prompt {prompt + 1}" for prompt in range(prompts)]


def _explained(pooling: ImageParts, head: RelationHead, classifier: Classifier, photos: list[Image.Image],
               rival: int | None) -> Iterator[Explanation]:
    method, class_features = classifier.method, classifier.class_features
    seen, x = _encoded(classifier, photos)
    with torch.no_grad():
        maps = pooling.part_maps(x)                                                        # (b, m, p)
        relations = head.relate(pooling.of(x), class_features)                             # (b, g, m, c)
        logits = method.logits(x, class_features)                                          # (b, c)
        probabilities = classifier.from_features(x)                                        # (b, c)
        added = logits - head.score(relations)                                             # (b, c)
    _check_finite(method, maps, relations, logits, added)
    for i, values in enumerate(logits):                                                    # (c,)
        best, against = _compared(values, rival)
        towards = F.one_hot(values.argmax(), len(values)).to(values.dtype)                 # (c,)
        margin = None
        if against is not None:
            away = F.one_hot(torch.tensor(against, device=values.device), len(values)).to(values.dtype)
            margin = attribute(head, relations[i], towards - away, values, added[i])
        yield Explanation(
            **seen[i], **_laid(maps[i]), probabilities=probabilities[i], predicted=classifier.names[best],
            relations=relations[i].cpu(),
            logit=attribute(head, relations[i], towards, values, added[i]), pooled=x.pooled[i].cpu(),
            against=None if against is None else classifier.names[against], margin=margin)


def _explained_words(classifier: Classifier, photos: list[Image.Image], rival: int | None) -> Iterator[Explanation]:
    method, class_features, names = classifier.method, classifier.class_features, classifier.names
    assert isinstance(method, FILIP)
    seen, x = _encoded(classifier, photos)
    with torch.no_grad():
        logits, added = method.logits(x, class_features), method.zero_shot.logits(x, class_features)    # (b, c)
        probabilities = classifier.from_features(x)                                        # (b, c)
        _check_finite(method, logits, added)
        for i, values in enumerate(logits):                                                # (c,)
            best, against = _compared(values, rival)
            labels = [best] if against is None else [best, against]
            found = [method.terms(x.map(lambda value, i=i: value[i:i + 1]), label) for label in labels]
            cosines = torch.cat([cosine for cosine, _ in found], dim=1).T                  # (m, p)
            own, relations, first = len(found[0][1][0]), values.new_zeros(2, len(cosines), len(names)), 0
            for label, (_, terms) in zip(labels, found, strict=True):
                relations[:, first:first + terms.shape[1], label] = terms
                first += terms.shape[1]
            relations = relations.cpu()                                                    # (2, m, c)
            logit = Attribution(relations * (torch.arange(len(cosines)) < own)[:, None], values[best].item(), 0.0,
                                added[i, best].item(), exact=True)
            explanation = Explanation(
                **seen[i], **_laid(cosines - cosines.amin(dim=1, keepdim=True)), probabilities=probabilities[i],
                predicted=names[best], relations=relations, logit=logit, pooled=x.pooled[i].cpu(),
                words=tuple(word for label in labels
                            for word in class_words(classifier.clip, method.classes, label).spelt[0]))
            if against is not None:
                signs = 1 - 2 * F.one_hot(torch.tensor(against), len(names))               # (c,)
                margin = Attribution(relations * signs, (values[best] - values[against]).item(), 0.0,
                                     (added[i, best] - added[i, against]).item(), exact=True)
                explanation = replace(explanation, against=names[against], margin=margin)
            yield explanation


def _encoded(classifier: Classifier, photos: list[Image.Image]) -> tuple[list[dict[str, Any]], Features]:
    """The photos as the tower saw them, with the windows that it looked at again, and what it made of them."""
    transform = classifier.clip.transform
    views = torch.stack([evaluation_view(photo, transform) for photo in photos])           # (b, 3, s, s)
    x = classifier.clip.encode_image(views.to(classifier.clip.device), classifier.method.needs)
    windows = classifier.clip.windows(views)
    return [{"photo": _seen(view, transform), "windows": None if windows is None else windows[i].cpu()}
            for i, view in enumerate(views)], x


def _check_finite(method: Method, *tensors: Tensor) -> None:
    if not all(values.isfinite().all() for values in tensors):
        raise UserError(f"{method.label} gives numbers that are not finite: adapt again with {option('force', True)}")


def _compared(logits: Tensor, rival: int | None) -> tuple[int, int | None]:
    """The class that `logits` (c,) predict, and the one to hold it against: where that is predicted, the runner-up."""
    best = int(logits.argmax())
    return best, int(logits.index_fill(0, logits.argmax(), -torch.inf).argmax()) if rival == best else rival


def _laid(maps: Tensor) -> dict[str, Any]:
    """What an `Explanation` says of the maps (m, p)."""
    weight, on_grid = maps.sum(dim=-1), grid(maps)                                         # (m,), (m, h, w)
    share = (1 - on_grid.sum(dim=(1, 2)) / weight.clamp(min=1e-12)).mul(weight > 0).clamp(0, 1)
    return {"maps": on_grid.cpu(), "dead": (weight == 0).cpu(), "class_token": share.cpu()}


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
