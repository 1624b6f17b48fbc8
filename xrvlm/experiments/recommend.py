"""Which of several cross-validated methods to take, with the reasons and the table of their scores."""

import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from xrvlm.errors import UserError, option
from xrvlm.evaluation.text_tables import markdown
from xrvlm.experiments.record import not_at_default
from xrvlm.inference.classifier import MethodFactory
from xrvlm.methods.base import Recipe
from xrvlm.methods.registry import find
from xrvlm.text.class_text import class_text, few

WORTH = 0.005                            # a cheaper method may be so much less accurate: half a point
SEPARATE = 1.96                          # standard errors of a paired difference that is clear: 95 %
ABOVE = 1.64                             # standard errors above chance from which text counts as saying something: 95 %
SIMILAR = 2.0                            # training times within this factor count as equal
INSTANT = 1.0                            # seconds; shorter times count as equal
NOT_OF_ADAPT = ("folds", "budget", "candidates")      # options of `compare` that `adapt` does not have
QUOTED_VALUE = r"^'([^'\\$]*)'$"        # a path, as the command line hands it over


@dataclass(frozen=True)
class Candidate:
    """A method as it would be adapted. `words` name it, as in `xrvlm adapt method=`: "xr_vlm recipe=fast"."""

    words: str
    method: MethodFactory
    recipe: Recipe | str | dict[str, Any] | None = None      # as `adapt` takes it; None: the method's own

    @classmethod
    def parse(cls, words: str) -> "Candidate":
        """From the name of a method and options of it or of its recipe: "xr_vlm recipe=fast method.image_parts=2"."""
        name, method, recipe = _options_in(words)
        return cls(" ".join(words.split()), find(name, **method), recipe or None)


def _options_in(words: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of a method, and the options of it and of its recipe."""
    name, *options = words.split() or [""]
    pairs = [re.fullmatch(r"(method\.\w+|recipe(?:\.\w+)?)=(.*)", each) for each in options]
    if not name or "=" in name or not all(pairs):
        raise UserError("a candidate is the name of a method and options of it or of its recipe, such as "
                        f"\"xr_vlm recipe=fast\"; found {words!r}")
    try:
        given = {pair[1]: yaml.safe_load(pair[2]) for pair in pairs if pair}
    except yaml.YAMLError as error:
        raise UserError(f"the candidate {words!r} has a value that cannot be read: write it as on the command line of "
                        "`xrvlm adapt`") from error
    method = {key.removeprefix("method."): value for key, value in given.items() if key.startswith("method.")}
    recipe = {key.removeprefix("recipe.").replace("recipe", "name"): value for key, value in given.items()
              if key.startswith("recipe")}
    return name, method, recipe


@dataclass(frozen=True)
class Score:
    """The cross-validated score of a method: each image was predicted by a model of a fold that holds it out."""

    words: str                           # the value of `xrvlm adapt method=`: "xr_vlm recipe=adamw"
    label: str
    hits: tuple[bool, ...]               # for each image, in the same order in all scores
    seconds: float                       # of training, the mean over the folds
    learned_parameters: int

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.hits)


@dataclass(frozen=True)
class Recommendation:
    chosen: Score
    reasons: tuple[str, ...]


def gap(best: Score, other: Score) -> tuple[float, float]:
    """The difference in accuracy of `best` and `other`, and its standard error, paired over the images."""
    differences = [int(one) - int(two) for one, two in zip(best.hits, other.hits, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def standard_error(score: Score) -> float:
    """Of the accuracy, over the images. Where all are right or all are wrong, as if one of one more were not."""
    hits = [*map(int, score.hits)]
    more = [1 - hits[0]] if len(set(hits)) == 1 else []
    return statistics.stdev([*hits, *more]) / math.sqrt(len(hits))


def recommend(scores: Sequence[Score], classes: int | None = None) -> Recommendation:
    """The most accurate of the methods, or the cheapest of those that are at most half a point less accurate.

    The cheapest is, of the methods that train in at most twice the time of the fastest, the one with the fewest learned
    parameters, and the first of equal ones. Times below a second count as a second. The reasons name the methods that
    the images cannot tell from the recommended one; of `classes`, how many there are, they also say where zero-shot is
    not above chance.
    """
    best = max(scores, key=lambda score: score.accuracy)
    close = [score for score in scores if best.accuracy - score.accuracy <= WORTH + 1e-9]
    fastest = max(INSTANT, min(score.seconds for score in close))
    fast = [score for score in close if score.seconds <= SIMILAR * fastest]
    chosen = min(fast, key=lambda score: score.learned_parameters)
    reasons = _reasons(scores, best, close, fast, chosen)
    return Recommendation(chosen, (*reasons, *(_empty_names(scores, classes) if classes else ())))


def _reasons(scores: Sequence[Score], best: Score, close: Sequence[Score], fast: Sequence[Score],
             chosen: Score) -> tuple[str, ...]:
    if len(scores) == 1:
        return (f"{best.words} is the only one that was scored ({best.accuracy:.1%} on held-out images), so nothing "
                "says that it is the best: compare more candidates, or give more time.",)
    reasons = [f"{best.words} is the most accurate of {len(scores)} on held-out images: {best.accuracy:.1%}."]
    if chosen is not best:
        reasons.append(f"{chosen.words} is at most half a point behind it and cheaper: {chosen.accuracy:.1%} with "
                       f"{_cost(chosen)}, against {_cost(best)}.")
    alike = [score for score in scores if score is not chosen and not _separate(chosen, score)]
    others = ", ".join(f"{score.words} ({_points(score, chosen)})" for score in alike)
    reasons.append(f"{len(chosen.hits)} images cannot tell it from: {others}." if alike else
                   f"The difference to every other is clear on {len(chosen.hits)} images.")
    if chosen is not best and len(fast) > 1:
        reasons.append("Where the time is about the same, fewer learned parameters decide.")
    return tuple(reasons)


def _empty_names(scores: Sequence[Score], classes: int) -> list[str]:
    """A warning where zero-shot, by names or other text, is not above chance."""
    chance = 1 / classes
    told = []
    for score in scores:
        limit = chance + ABOVE * math.sqrt(chance * (1 - chance) / len(score.hits))
        if score.words.split()[0] == "zero_shot" and score.accuracy <= limit:
            told.append(f"The text says nothing of these photos: {score.words} is at {score.accuracy:.1%} and chance "
                        f"at {chance:.1%}. Methods that add to zero-shot gain nothing from it; check "
                        f"{option('data.class_names')}, describe the classes by {option('text.descriptions')}, or "
                        "choose another backbone.")
    return told


def _separate(one: Score, other: Score) -> bool:
    mean, error = gap(one, other)
    return abs(mean) > SEPARATE * error


def _points(score: Score, chosen: Score) -> str:
    """`+1.2 +- 2.3`: the points that `score` is ahead of `chosen`, and the 95 % margin of that."""
    mean, error = gap(score, chosen)
    return f"{100 * mean:+.1f} ± {100 * SEPARATE * error:.1f}"


def _cost(score: Score) -> str:
    return f"{score.seconds:.1f} s of training and {score.learned_parameters:,} learned parameters"


def adapt_call(options: Any, text: Any, words: str) -> str:
    """The call in Python that adapts the method `words` to all labels, with `options` and `text` of the comparison."""
    name, method, recipe = _options_in(words)
    given = "".join(f", {key}={value!r}" for key, value in method.items())
    factory = f'xrvlm.methods.registry.find("{name}"{given})' if method else f'"{name}"'
    features = ", ".join(f"{name}={value!r}" for name, value in not_at_default(options.features).items())
    where = [*([f"runs={str(options.runs)!r}"] if str(options.runs) != "runs" else []),
             *([f"features=xrvlm.FeatureSettings({features})"] if features else [])]
    arguments = [f"shots={options.shots}", f"seed={options.seed}", *([f"recipe={recipe}"] if recipe else []),
                 *([f"text={dict(text)}" if isinstance(text, Mapping) else "text=text"] if text != class_text else []),
                 *([f"options=xrvlm.RunOptions({', '.join(where)})"] if where else [])]
    return f"xrvlm.adapt(clip, dataset, {factory}, {', '.join(arguments)})"


def adapt_command(words: str, given: Sequence[str], config_dir: str | None = None) -> str:
    """The command that trains the method `words` on all labels, with the options that the comparison was `given`."""
    options = {}
    for override in given:               # the last one of a name wins, as on the command line
        name, _, value = override.partition("=")
        options[name] = "=".join([name, re.sub(QUOTED_VALUE, r"\1", value)])
    kept = [override for name, override in options.items() if name not in NOT_OF_ADAPT]
    own = ["--config-dir", config_dir] if config_dir else []
    return shlex.join(["xrvlm", "adapt", *own, *kept, *f"method={words}".split()])


HEADER = ["Method", "method=", "Accuracy", "Behind the best", "Time s", "Learned"]


def cells(scores: Sequence[Score]) -> list[list[str]]:
    """The rows of the table, the best first; accuracies in % with their standard errors."""
    ordered = sorted(scores, key=lambda score: -score.accuracy)
    rows = []
    for score in ordered:
        mean, error = gap(ordered[0], score)
        behind = "-" if score is ordered[0] else f"{100 * mean:.1f} ± {100 * error:.1f}"
        own = f"{100 * score.accuracy:.1f} ± {100 * standard_error(score):.1f}"
        rows.append([score.label, score.words, own, behind, f"{score.seconds:.1f}", f"{score.learned_parameters:,}"])
    return rows


def caption(images: int, folds: int, single: Sequence[str], scored: int) -> str:
    """How the numbers of the table were measured, and how far to trust them; `single`: classes of one image."""
    return (f"Cross-validated top-1 in % over {images} labelled images, {folds} folds; ± one standard error over the "
            "images, in the fourth column that of the difference to the best, image by image, and in the advice "
            f"{SEPARATE} of them, which is 95 %. The best of "
            f"{scored} is picked by these very numbers, so its accuracy is a little too high: measure it on the "
            "test set, which was not used." + bool(single) * f" {never_scored(single)}")


def never_scored(single: Sequence[str]) -> str:
    """What a user must know of the classes of one labelled image."""
    return f"Classes of one labelled image are trained on and never scored: {few(single)}."


def markdown_report(scores: Sequence[Score], left_out: dict[str, str], about: str, advice: Sequence[str]) -> str:
    parts = ["# Which method?", *advice] if advice else ["# Which method? (not finished)"]
    if scores:
        parts += [about, markdown(HEADER, cells(scores), numbers=4).rstrip()]
    if left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- {words}: {reason}" for words, reason in left_out.items()))
    return "\n\n".join(parts) + "\n"
