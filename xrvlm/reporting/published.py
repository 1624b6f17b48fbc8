"""What others report for a data set, a tower and a number of shots: published.json, to stand beside figures of ours."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from xrvlm.records import RunRecord
from xrvlm.settings import Setting

ZERO_SHOT = "CLIP zero-shot"


def source() -> str:
    """Where the figures are from, and how far to trust them."""
    return _figures()["source"]


def reported(run: RunRecord) -> dict[str, float]:
    """{method: top-1 in %} at 16 shots (zero-shot: without) for the run's data set and tower, the lowest first.

    Empty where nothing is known: the data set goes by its name alone, the tower is CLIP ViT-B/16 by OpenAI.
    """
    figures = _figures()
    name = re.sub(r"[^a-z0-9]", "", run.data.lower())
    places = [place for place, names in enumerate(figures["data"].values()) if name in names]
    if not places or run.backbone not in figures["backbones"] or run.protocol != "few_shot":
        return {}
    found = {method: row[places[0]] for method, row in figures["top1"].items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def reported_of(row: Setting) -> float | None:
    """What others report of the row's own method at its shots; None where nothing is known."""
    label, shots = row.first.label, row.first.shots
    comparable = row.first.prompts == "names" and shots == 0 if label == ZERO_SHOT else shots == _figures()["shots"]
    return reported(row.first).get(label) if comparable else None


@cache
def _figures() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
