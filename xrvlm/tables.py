"""Tables of results: a row a setting, with the mean and the sample standard deviation over its seeds.

A *setting* is everything about a run but its seed; each data set, world, protocol and backbone has its own table.
"""

import math
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest

from xrvlm.records import BASE_TO_NEW, RunRecord

# what may tell two rows of one table apart, beside the method's name and the shots; a column each where it does
VARIANTS = {"head": "Head", "prompts": "Prompts", "recipe": "Recipe", "features": "Features", "selection": "Selection"}
SETTING = ("data", "world", "protocol", "backbone", "method", "label", "transductive", *VARIANTS, "shots", "setting")


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one setting, by seed: one row of a table."""

    runs: tuple[RunRecord, ...]
    mark: str = ""                       # tells the row from another that is alike in every column

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def place(self) -> str:
        world = "" if self.first.world is None else f" · world {self.first.world}"
        protocol = "" if self.first.protocol == "few_shot" else f" · {self.first.protocol.replace('_', ' ')}"
        return f"{self.first.data}{world} · {self.first.backbone}{protocol}"

    @property
    def headline(self) -> str:
        """The metric that rows are ordered by."""
        return "harmonic_mean" if self.first.protocol == "base_to_new" else "top1"

    def percent(self, metric: str) -> tuple[float, float | None]:
        """The mean and the sample standard deviation over the runs; one run has no deviation."""
        values = [100 * run.metrics[metric] for run in self.runs]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def cells(self, variants: Sequence[str]) -> list[str]:
        seeds = len({run.seed for run in self.runs})
        return [
            self.first.label + " †" * self.first.transductive + self.mark,
            *(_variant(self.first, name) for name in variants),
            str(self.first.shots), _span(run.label_budget for run in self.runs),
            str(seeds) if seeds == len(self.runs) else f"{seeds} ({len(self.runs)} runs)",
            *(self._score(name) for name in self.first.shown),
            f"{statistics.fmean(run.train_seconds for run in self.runs):.1f}",
            _span(run.learned_parameters for run in self.runs),
        ]

    def _score(self, metric: str) -> str:
        mean, deviation = self.percent(metric)
        spread = f" ± {'-' if deviation is None else f'{deviation:.1f}'}" if metric in BASE_TO_NEW else ""
        return f"{mean:.1f}{spread}"


@dataclass(frozen=True)
class Table:
    """The settings of one data set, world, protocol and backbone; what all rows share stands in the caption."""

    caption: str
    header: list[str]
    numbers: int                         # how many columns, the last ones, hold no words
    rows: list[Setting]
    cells: list[list[str]]


def tables(records: Sequence[RunRecord]) -> list[Table]:
    """A table to each data set, world, protocol and backbone, its rows by shots, then by the headline metric."""
    # a copied run folder is no further seed: what differs in nothing but place, time and versions counts once
    once = {repr(replace(record, run="", train_seconds=0, versions={})): record for record in reversed(records)}
    settings: dict[tuple, list[RunRecord]] = {}
    for record in sorted(once.values(), key=lambda record: (record.seed, record.run)):
        settings.setdefault(tuple(getattr(record, name) for name in SETTING), []).append(record)
    alike = Counter(key[:-1] for key in settings)
    told = {key: _options(runs[0]) if alike[key[:-1]] > 1 else "" for key, runs in settings.items()}
    same = Counter((key[:-1], told[key]) for key in settings)
    rows = [Setting(tuple(runs), told[key] + (f" [{key[-1][:6]}]" if same[key[:-1], told[key]] > 1 else ""))
            for key, runs in settings.items()]
    rows.sort(key=_order)
    return [_table(list(group)) for _, group in groupby(rows, key=lambda row: row.place)]


def _options(record: RunRecord) -> str:
    """The method's options that no column shows: "(image_parts=1)"."""
    told = {name: value for name, value in record.options.items() if name not in ("head", "part_prompts")}
    return f" ({', '.join(f'{name}={value}' for name, value in told.items())})" if told else ""


def _order(row: Setting) -> tuple:
    first = row.first
    place = (first.data, -1 if first.world is None else first.world, first.backbone,
             first.protocol != "few_shot", first.protocol)
    shots = math.inf if isinstance(first.shots, str) else first.shots
    return (*place, shots, row.percent(row.headline)[0], first.label)


def _variant(record: RunRecord, name: str) -> str:
    # a recipe is worth a column only where one is not the method's own
    if name == "recipe" and record.recipe in (None, "none", record.method):
        return "own"
    return getattr(record, name) or "-"


def varying(records: Sequence[RunRecord]) -> list[str]:
    return [name for name in VARIANTS if len({_variant(record, name) for record in records}) > 1]


def _table(rows: list[Setting]) -> Table:
    variants = varying([row.first for row in rows])
    shared = [f"{VARIANTS[name].lower()}: {value}" for name in VARIANTS
              if name not in variants and (value := _variant(rows[0].first, name)) != "-"]
    caption = [rows[0].place, *shared, "values in %, mean ± sample standard deviation over the seeds"]
    if rows[0].first.protocol == "base_to_new":
        caption.append("top-1 of the base classes, which were trained on, and of the new ones, each among its own "
                       "half, the harmonic mean of the two, and top-1 of all images among all classes")
    if any(row.first.transductive for row in rows):
        caption.append("† transductive: saw the test images, without labels")
    if any("[" in row.mark for row in rows):
        caption.append("[...] tells rows apart that differ in options which no column shows: compare their config.yaml")
    if any(len({run.seed for run in row.runs}) < len(row.runs) for row in rows):
        caption.append("a row of more runs than seeds mixes runs that differ in what no column shows")
    numbers = ["Shots", "Labels", "Seeds", *rows[0].first.shown.values(), "Time s", "Learned"]
    header = ["Method", *(VARIANTS[name] for name in variants), *numbers]
    return Table("; ".join(caption) + ".", header, len(numbers), rows, [row.cells(variants) for row in rows])


def markdown_table(records: Sequence[RunRecord]) -> str:
    """The tables in Markdown, each below a line of what its rows share."""
    text = []
    for table in tables(records):
        text.append(f"{escape(table.caption)}\n\n{markdown(table.header, table.cells, numbers=table.numbers)}")
    return "\n".join(text)


def terminal_table(records: Sequence[RunRecord], *, width: int = 120) -> str:
    """The tables as aligned text; words that would make a line longer than `width` wrap within their column."""
    text = []
    for table in tables(records):
        words = len(table.header) - table.numbers
        header = [{"Per class": "Class", "Macro-F1": "F1"}.get(name, name) for name in table.header]
        widths = [max(map(len, column)) for column in zip(header, *table.cells, strict=True)]
        while sum(widths) + 2 * len(widths) - 2 > width and max(widths[:words]) > 6:
            widths[widths.index(max(widths[:words]))] -= 1
        lines = [header, ["-" * size for size in widths], *table.cells]
        text.append("\n".join([textwrap.fill(table.caption, width), "",
                               *(_aligned(line, widths, words) for line in lines)]))
    return "\n\n".join(text) + "\n"


def _aligned(cells: Sequence[str], widths: Sequence[int], words: int) -> str:
    wrapped = [textwrap.wrap(cell, size) for cell, size in zip(cells, widths, strict=True)]
    lines = []
    for line in zip_longest(*wrapped, fillvalue=""):
        padded = [cell.ljust(size) if i < words else cell.rjust(size)
                  for i, (cell, size) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,}-{ordered[-1]:,}"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, within a table's cell too."""
    return re.sub(r"([\\|<*`\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))


def markdown(header: list[str], rows: list[list[str]], *, numbers: int) -> str:
    """A table whose last `numbers` columns are set to the right."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    lines = [header, rule, *([escape(cell) for cell in cells] for cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
