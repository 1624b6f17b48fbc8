"""A whole run in one call: split -> features -> method -> fit -> evaluate -> record. Knows no Hydra."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, Item, Split, sample_shots, with_test_part
from xrvlm.errors import UserError
from xrvlm.experiments.job import Job, Run, RunOptions
from xrvlm.experiments.protocols import Among, Protocol, base_half, check_among, check_protocol, new_classes
from xrvlm.experiments.record import write_scores
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.inference.classifier import Classifier, MethodFactory, class_order, describe
from xrvlm.methods import XRVLM, ZeroShot
from xrvlm.methods.base import Method, Recipe, probabilities
from xrvlm.randomness import seeded
from xrvlm.text.class_text import ClassText, class_text
from xrvlm.training.fit import check_selection

log = logging.getLogger(__name__)
TextMaker = Callable[[Sequence[str]], ClassText]     # `class_text`, or a partial of it with templates, descriptions ...


def adapt(clip: FrozenCLIP, dataset: Dataset, method: MethodFactory = XRVLM, *, shots: int | None = 16, seed: int = 1,
          val: bool = False, recipe: Recipe | None = None, text: TextMaker = class_text,
          protocol: Protocol = "few_shot", options: RunOptions | None = None) -> Run:
    """Adapt `clip` to `dataset` with `shots` images a class (None: all) and measure it on the test part.

    The run's folder ends in a hash of all that the result depends on: the same call resumes an unfinished run and
    returns a finished one. `val` sets validation images aside (`selection="val"` implies it); they are counted as
    labels. `recipe=None` takes the method's own.

    `protocol="base_to_new"` adapts to the first half of the classes alone, in the order of the labels and rounded up,
    and measures the other half too (protocols.py). The run's model and its files are those of the base classes; a
    method that is bound to its classes is refused before training. Under `distributed.joined` several processes do the
    run together, and the first writes it: see docs/distributed.md.
    """
    options = options or RunOptions()
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"seed must be a whole number, found {seed!r}")
    check_protocol(protocol, dataset.split.classes)
    val = val or options.selection == "val"
    whole = with_test_part(dataset.split)
    split = sample_shots(base_half(whole) if protocol == "base_to_new" else whole, shots, seed, val)
    if not split.test:
        raise UserError(f"{dataset.name} has no image left to test on: give a class two at least, or a test part")
    if options.selection == "val" and not split.val:
        raise UserError("selection=val needs validation images, and the shots take all there are: use fewer shots, or "
                        "selection=last")
    classes = text(split.classes)
    with seeded(seed, "initial weights"):
        adapted = method(clip, classes).to(clip.device)
    if protocol == "base_to_new":
        adapted.check_open()
    recipe = fitting_recipe(recipe or adapted.recipe, adapted)
    check_selection(recipe, options.selection)
    if not adapted.learns:
        split, shots = replace(split, train=(), val=()), 0
    new = new_classes(whole, split, text) if protocol == "base_to_new" else None
    about = describe(clip, method, classes) | {"split": split.fingerprint}
    job = Job(clip, dataset, split, adapted, recipe, "all" if shots is None else shots, seed, about, options, new)
    return job.done()


def fitting_recipe(recipe: Recipe, method: Method) -> Recipe:
    """`recipe`, or the method's own where nothing is trained by steps; UserError where it would leave it untrained."""
    if not method.recipe.epochs and recipe.epochs:
        log.warning("%s is not trained by steps: recipe= and recipe.* are not read", method.label)
        return method.recipe
    if method.recipe.epochs and not recipe.epochs:
        raise UserError(f"{method.label} is trained, and recipe {recipe.name!r} has no epochs: leave recipe= and "
                        f"recipe.epochs= out, or say recipe={method.recipe.name}")
    return recipe


def zero_shot(clip: FrozenCLIP, dataset: Dataset, *, text: TextMaker = class_text,
              options: RunOptions | None = None) -> Run:
    """Score `dataset` without a label: its test part where it brings one, else all of its images."""
    options = options or RunOptions()
    found = dataset.split
    split = Split(found.classes, train=(), test=found.test or (*found.train, *found.val))
    classes = text(split.classes)
    about = describe(clip, ZeroShot, classes) | {"split": split.fingerprint}
    method = ZeroShot(clip, classes).to(clip.device)
    job = Job(clip, dataset, split, method, method.recipe, 0, 0, about, options, whole=not found.test)
    return job.done()


def evaluate(classifier: Classifier, dataset: Dataset, items: Sequence[Item], folder: Path, *,
             features: FeatureSettings | None = None, workers: int = 0, among: Among = "run") -> dict[str, float]:
    """Score a model on `items` of `dataset`, whose classes it must know, and write the figures to `folder`.

    `among="data"` masks the classes that `dataset` does not have, of methods that are bound to theirs too.
    """
    check_among(among)
    order = class_order(dataset.split.classes, classifier.names)
    if not items:
        raise UserError(f"{dataset.name} has no images to evaluate on")
    mask, names = (order, dataset.split.classes) if among == "data" else (None, classifier.names)
    known = items if mask else [replace(item, label=order[item.label]) for item in items]
    clip, method = classifier.clip, classifier.method
    source = feature_source(clip, dataset.source, known, features or FeatureSettings(), needs=method.needs, views=0,
                            seed=0, workers=workers)
    return write_scores(folder, source.ids, source.labels, probabilities(method, clip, source, mask), names)
