"""Which of several cross-validated methods to take, why, and the table that shows it."""

import math
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from xrvlm.reporting.tables import markdown

ALIKE = 2.0                              # times within this factor count as equal
OWN_OPTIONS = ("folds", "budget", "candidates")      # of `compare`, which `adapt` does not have
LITERAL_VALUE = r"^'([^'\\$]*)'$"       # as the command line quotes a path for Hydra
INSTANT = 1.0                            # seconds; below it no time counts


@dataclass(frozen=True)
class Score:
    """A method on every held-out image, each of which it did not learn from."""

    words: str                           # as `xrvlm adapt method=` takes it: "xr_vlm recipe=adamw"
    label: str
    hits: tuple[bool, ...]               # an image each, in the order that all scores share
    seconds: float                       # training, the mean over the folds
    learned_parameters: int

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.hits)


@dataclass(frozen=True)
class Recommendation:
    chosen: Score
    reasons: tuple[str, ...]


def gap(best: Score, other: Score) -> tuple[float, float]:
    """By how much the accuracy of `best` is higher, and the standard error of that, paired over the images."""
    differences = [int(one) - int(two) for one, two in zip(best.hits, other.hits, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def standard_error(score: Score) -> float:
    return statistics.stdev(map(int, score.hits)) / math.sqrt(len(score.hits))


def recommend(scores: Sequence[Score]) -> Recommendation:
    """The cheapest of the methods within one standard error of the best.

    The cheapest: of those that take at most twice the time of the fastest to train (below a second no time counts)
    the one with the fewest learned parameters; the first of equals.
    """
    best = max(scores, key=lambda score: score.accuracy)
    close = [score for score in scores if _within(best, score)]
    fastest = max(INSTANT, min(score.seconds for score in close))
    fast = [score for score in close if score.seconds <= ALIKE * fastest]
    chosen = min(fast, key=lambda score: score.learned_parameters)
    return Recommendation(chosen, _reasons(scores, best, close, fast, chosen))


def _within(best: Score, other: Score) -> bool:
    mean, error = gap(best, other)
    return mean <= error


def _reasons(scores: Sequence[Score], best: Score, close: Sequence[Score], fast: Sequence[Score],
             chosen: Score) -> tuple[str, ...]:
    reasons = [f"{best.words} is the most accurate of {len(scores)} on held-out images: {best.accuracy:.1%}."]
    if len(close) == 1:
        reasons.append("No other is within one standard error of it.")
    else:
        others = ", ".join(score.words for score in close if score is not best)
        reasons.append(f"Within one standard error of it, over the same images: {others}.")
    if chosen is not best:
        reasons.append(f"Of these {chosen.words} is the cheapest: {chosen.accuracy:.1%} with {_cost(chosen)}, "
                       f"against {_cost(best)}.")
    elif len(close) > 1:
        reasons.append(f"It is also the cheapest of them, with {_cost(chosen)}.")
    if len(fast) > 1:
        reasons.append("Where the time is about the same, fewer learned parameters decide.")
    return tuple(reasons)


def _cost(score: Score) -> str:
    return f"{score.seconds:.1f} s of training and {score.learned_parameters:,} learned parameters"


def adapt_command(words: str, given: Sequence[str], config_dir: str | None = None) -> str:
    """What trains the method `words` on all labels, with the options that the comparison was `given`."""
    options = {}
    for override in given:               # the last of a name wins, as the command line has it
        name, _, value = override.partition("=")
        options[name] = "=".join([name, re.sub(LITERAL_VALUE, r"\1", value)])
    kept = [option for name, option in options.items() if name not in OWN_OPTIONS]
    own = ["--config-dir", config_dir] if config_dir else []
    return shlex.join(["xrvlm", "adapt", *own, *kept, *f"method={words}".split()])


HEADER = ["Method", "method=", "Accuracy", "Behind the best", "Time s", "Learned"]


def cells(scores: Sequence[Score]) -> list[list[str]]:
    """Rows of the table below HEADER, the best first, in %, with one standard error each."""
    ordered = sorted(scores, key=lambda score: -score.accuracy)
    rows = []
    for score in ordered:
        mean, error = gap(ordered[0], score)
        behind = "-" if score is ordered[0] else f"{100 * mean:.1f} ± {100 * error:.1f}"
        own = f"{100 * score.accuracy:.1f} ± {100 * standard_error(score):.1f}"
        rows.append([score.label, score.words, own, behind, f"{score.seconds:.1f}", f"{score.learned_parameters:,}"])
    return rows


def caption(images: int, folds: int, scored: int) -> str:
    """What the numbers are, and what they are not."""
    return (f"Cross-validated top-1 in % over {images} labelled images, {folds} folds; ± one standard error over the "
            "images, in the fourth column that of the difference to the best, image by image. The best of "
            f"{scored} is picked by these very numbers, so its own is a little too high: measure it on the test part, "
            "which was not looked at.")


def markdown_report(scores: Sequence[Score], left_out: dict[str, str], about: str, advice: Sequence[str]) -> str:
    parts = ["# Which method?", *advice] if advice else ["# Which method? (not finished)"]
    if scores:
        parts += [about, markdown(HEADER, cells(scores), numbers=4).rstrip()]
    if left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- {words}: {reason}" for words, reason in left_out.items()))
    return "\n\n".join(parts) + "\n"
