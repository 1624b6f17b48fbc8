"""Made-up records, and the rows of the tables that they give."""

import re
from dataclasses import replace

from xrvlm.evaluation.text_tables import markdown_table
from xrvlm.experiments.record import RunRecord
from xrvlm.reporting.tables import tables


def record(run: str = "a", *, top1: float = 0.5, **changes) -> RunRecord:
    base = RunRecord(
        method="xr_vlm", label="XR-VLM", head="product", prompts="learned", recipe="xr_vlm", data="cub", world=None,
        backbone="ViT-B-16/openai", shots=4, seed=1, label_budget=800, transductive=False, selection="last",
        split="f00d", metrics={"top1": top1, "top5": 0.9, "mean_per_class": 0.52, "macro_f1": 0.47, "ece": 0.031},
        train_seconds=12.5, learned_parameters=123456, features="cached", versions={"torch": "2.13.0"}, run=run)
    return replace(base, **changes)


def table_rows(text: str) -> list[dict[str, str]]:
    """The rows of all Markdown tables in the text, by column."""
    rows, header = [], []
    for before, line in zip(["", *text.splitlines()], text.splitlines(), strict=False):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and not before.startswith("|"):
            header = cells
        elif cells and not set(line) <= set("|-: "):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def long_tables(records: list[RunRecord]) -> str:
    """The tables of all metrics, in Markdown."""
    return "\n\n".join(markdown_table(table) for table in tables(records))
