"""An explanation in words, and as the picture of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from PIL import Image

from xrvlm.inference.explain import STEPS
from xrvlm.inference.explanation import Attribution, Explanation
from xrvlm.reporting.plots import explain as plots_explain

BARS = 8                                 # strongest terms in a picture


@dataclass(frozen=True)
class Names:
    """The names of the m parts or words, the g prompts and the c classes."""

    parts: Sequence[str]
    prompts: Sequence[str]
    classes: Sequence[str]
    what: str = "part"                   # or "word": what the m are


def picture(explanation: Explanation, called: Names, name: str, true: str | None,
             nearest: Sequence[tuple[Image.Image, str]]) -> Any:
    parts = [f"{part} (dead)" if dead else part
             for part, dead in zip(called.parts, explanation.dead.tolist(), strict=True)]
    panels = [_panel(explanation.logit, called, f"for {explanation.predicted}", explanation.predicted, "others")]
    if explanation.margin is not None and explanation.against is not None:
        panels.append(_panel(explanation.margin, called, f"{explanation.predicted} against {explanation.against}",
                             explanation.predicted, explanation.against))
    overlap = overlap_in_words(explanation.overlap)
    how = ("the terms of the logit, exact" if explanation.logit.exact else
           f"integrated gradients from the mean relations of training, {STEPS} steps")
    return plots_explain.explanation(
        explanation.photo, explanation.maps, panels, parts=parts, prompts=called.prompts, nearest=nearest,
        windows=[] if explanation.windows is None else explanation.windows.tolist(),
        title=f"{name if len(name) <= 40 else '…' + name[-39:]}: {verdict(explanation, called, true)}",
        note=f"contributions: {how}  ·  overlap of the {called.what} maps {overlap}  ·  "
             "each map stretched to its own range")


def _panel(attribution: Attribution, called: Names, what: str, more: str, less: str) -> plots_explain.Panel:
    added = f"  +  prior {attribution.added:+.2f}" if attribution.added else ""
    words, total = called.what == "word", f"{attribution.contributions.sum().item():+.2f}"
    terms = f"words {total}" if words else f"relations {total}  +  baseline {attribution.baseline:+.2f}"
    return plots_explain.Panel(
        f"{what}: {attribution.value:+.2f}  =  {terms}{added}", attribution.by_part, named(attribution, called, BARS),
        attribution.by_part.numel() if words else attribution.contributions.numel(), more, less, words=words)


def named(attribution: Attribution, called: Names, count: int) -> list[tuple[str, float]]:
    return [(f"{called.parts[strong.part]} x {called.prompts[strong.prompt]}, {called.classes[strong.label]}",
             strong.contribution) for strong in attribution.strongest(count)]


def verdict(explanation: Explanation, called: Names, true: str | None) -> str:
    """`wren 80.1%, then jay 12.0% (true: jay)`."""
    count = min(2, len(called.classes))
    first = zip(*(each.tolist() for each in explanation.probabilities.topk(count)), strict=True)
    best = ", then ".join(f"{called.classes[label]} {share:.1%}" for share, label in first)
    return best + (f" (true: {true})" if true else "")


def overlap_in_words(overlap: float | None) -> str:
    return "undefined" if overlap is None or isnan(overlap) else f"{overlap:.2f}"
