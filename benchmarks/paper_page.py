"""The page of paper.py: a table for each data set, what the authors report beside it, and how the protocols differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path
from statistics import fmean, stdev

from paper_cost import Job
from scipy.stats import t

import xrvlm
from xrvlm.errors import UserError
from xrvlm.evaluation.text_tables import escape as escaped
from xrvlm.evaluation.text_tables import markdown
from xrvlm.experiments.record import RunRecord
from xrvlm.files import write_text
from xrvlm.reporting.published import Published, published, reported
from xrvlm.reporting.results import Row

COVERAGE = 0.95
HERE = ("Here the last epoch is kept, and the test set is read once, at the end. Each figure is the mean over the "
        "seeds, with a 95 % interval of the mean by Student's t. It covers the draw of the shots, the initial weights "
        "and the order of images.",
        "Here the shots are drawn by the seed and the paths of the photos alone, and each method has one recipe for "
        "all data sets.")
PROTOCOLS = {                            # how those differ who report figures, by the suite
    "cub": ("The authors of XR-VLM chose the epoch on the test set.", "They report one run.",
            "They drew the shots without a seed.", "They trained on two devices with 64 images each, here on one.",
            "Here all methods see test images as the paper does: shorter side 256, centre 224, bilinear."),
    "eleven": ("The splits are CoOp's, but the shots are not those that CoOp drew.",
               "Some of those who report figures chose options for each data set, or chose them on the test set.",
               "Here images are resized as the checkpoint wants, and crops are drawn anew in every epoch."),
}
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:84rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top}td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}.banner{background:#8f1d14;color:#fff;padding:1rem 1.2rem;border-radius:6px}
.banner strong{font-size:1.3rem}.note{color:#555}code{background:#f3f3f3;padding:0 .2rem;overflow-wrap:anywhere}"""


@dataclass(frozen=True)
class Result:
    """What came of a run: a record, or the reason why there is none."""

    job: Job
    record: RunRecord | None = None
    failure: str = ""


@dataclass(frozen=True)
class Grid:
    header: list[str]
    rows: list[list[str]]
    words: int = 1                       # columns of words, the first ones


@dataclass(frozen=True)
class Block:
    """A heading with sentences and a table; `points` is a list."""

    heading: str
    sentences: Sequence[str] = ()
    grid: Grid | None = None
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """The runs of one method with one number of shots on one data set."""

    name: str
    shots: str
    row: Row
    reported: float | None

    def values(self, metric: str = "top1") -> list[float]:
        return self.row.values(metric)


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half of the width of its 95 % interval by Student's t; None for a single value."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), float(t.ppf((1 + COVERAGE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def write_page(results: Sequence[Result], jobs: Sequence[Job], runs: Path, *, changes: Sequence[str],
               machine: dict[str, str], command: str) -> Path:
    """Write runs/paper.html, the same as paper.md, and the report of all runs; returns the path of the first."""
    lines, others = _read(results, runs)
    if changes:                          # then no published figure is comparable
        lines = {name: [Line(line.name, line.shots, line.row, None) for line in found] for name, found in lines.items()}
    blocks = [*([_over_all(lines, others, shown=not changes)] if len(lines) > 1 else []),
              *(_of_data(name, found, others[name], shown=not changes) for name, found in lines.items()),
              Block("How the protocols differ", points=[*HERE, *PROTOCOLS["cub" if "cub" in lines else "eleven"]]),
              _not_there(results, jobs), _settings(results, machine, command), _report(runs)]
    title = "XR-VLM's experiments" + " on CUB-200-2011" * (list(lines) == ["cub"])
    blocks = [block for block in blocks if block]
    write_text(runs / "paper.md", _markdown(title, changes, blocks))
    write_text(runs / "paper.html", _html(title, changes, blocks))
    return runs / "paper.html"


def _read(results: Sequence[Result], runs: Path) -> tuple[dict[str, list[Line]], dict[str, Published]]:
    """The lines of each data set in the order of the plan, and what others report there."""
    rows: dict[str, dict[tuple[str, str], list[RunRecord]]] = {}
    for result in results:
        if result.record is not None:
            of_data = rows.setdefault(result.job.asked.name, {})
            of_data.setdefault((result.job.method, result.job.shots), []).append(result.record)
    lines, others = {}, {}
    for name, found in rows.items():
        made = {key: Row(tuple(records)) for key, records in found.items()}
        others[name] = published(list(made.values()), runs)
        lines[name] = [Line(_name(row.first), shots, row, others[name].of(row)) for (_, shots), row in made.items()]
    return lines, others


def _name(record: RunRecord) -> str:
    return f"{record.label}, head {record.head}" if record.head else record.label


def _of_data(name: str, lines: Sequence[Line], others: Published, *, shown: bool) -> Block:
    """The table of one data set."""
    first = lines[0].row.first
    rows = []
    for line in lines:
        mean, half = mean_and_half(line.values())
        beside = [f"{line.reported:.2f}", f"{mean - line.reported:+.2f}"] if line.reported is not None else ["-", "-"]
        rows.append([line.name, line.shots, str(line.row.seeds), f"{mean:.2f}",
                     "-" if half is None else f"{max(mean - half, 0):.2f} to {min(mean + half, 100):.2f}",
                     f"{fmean(line.values('mean_per_class')):.2f}", *beside])
    header = ["Method", "Shots", "Seeds", "Top-1 %", "95 % interval", "Mean per class %", "Reported %",
              "Above reported"]
    sentences = [f"{first.images:,} test images of {first.classes:,} classes; {first.backbone}."]
    comparable = shown and bool(others.top1)
    told = others if comparable else reported(name)
    if told.top1:
        how = "" if comparable else (" It is NOT COMPARABLE with the runs of this page, whose data, tower or options "
                                     "differ.")
        scores = ", ".join(f"{method} {score:.2f}" for method, score in told.top1.items())
        sentences.append(f"Reported with {told.shots} shots (zero-shot with 0): {scores}.{how} Source: {told.source}.")
    return Block(name, [*sentences, *filter(None, [others.mismatch])], Grid(header, rows))


def _over_all(lines: dict[str, list[Line]], others: dict[str, Published], *, shown: bool) -> Block:
    """A row for each method, a column for each data set, and the average of those that all have."""
    table: dict[tuple[str, str], dict[str, Line]] = {}
    for name, found in lines.items():
        for line in found:
            table.setdefault((line.name, line.shots), {})[name] = line
    rows = [[method, shots, *(f"{fmean(each[name].values()):.1f}" if name in each else "-" for name in lines),
             _average(list(each.values()), len(lines))] for (method, shots), each in table.items()]
    for method in dict.fromkeys(method for other in others.values() for method in other.top1) if shown else ():
        scores = [other.top1.get(method) for other in others.values()]
        known = [score for score in scores if score is not None]
        rows.append([f"{method}, reported", "", *("-" if score is None else f"{score:.1f}" for score in scores),
                     f"{fmean(known):.1f}" if len(known) == len(lines) else "-"])
    note = ["Top-1 %, mean over the seeds. The average is over the data sets above, with the half width of its 95 % "
            "interval over the seeds; a method that lacks a data set has none.",
            "Reported: figures of others where tower, classes and test images are equal."]
    return Block(f"All {len(lines)} data sets", note[:1 + shown], Grid(["Method", "Shots", *lines, "Average"], rows))


def _average(lines: Sequence[Line], wanted: int) -> str:
    """The mean over the data sets; each seed gives one, where all data sets have it."""
    by_seed = [{run.seed: 100 * run.metrics["top1"] for run in line.row.runs} for line in lines]
    seeds = set.intersection(*(set(each) for each in by_seed))
    if len(lines) < wanted or not seeds:
        return "-"
    mean, half = mean_and_half([fmean(each[seed] for each in by_seed) for seed in sorted(seeds)])
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def _not_there(results: Sequence[Result], jobs: Sequence[Job]) -> Block | None:
    failed = [f"{result.job.title}: {result.failure}" for result in results if result.failure]
    left = [f"{job.title}: not run yet" for job in jobs[len(results):]]
    again = ["The same command does what is left; a finished run is not done again."]
    return Block("Runs that are missing", again, points=[*failed, *left]) if failed or left else None


def _settings(results: Sequence[Result], machine: dict[str, str], command: str) -> Block:
    records = [result.record for result in results if result.record is not None]
    versions = {f"{name} {number}" for record in records for name, number in record.versions.items()}
    rows = [["Command", command], ["Date", date.today().isoformat()], *map(list, machine.items()),
            ["Versions", ", ".join(sorted(versions))],
            ["Towers", ", ".join(sorted({record.backbone for record in records}))],
            ["Training", f"{sum(record.train_seconds for record in records):,.0f} s over {len(records)} runs"]]
    return Block("Settings", grid=Grid(["", ""], rows, words=2))


def _report(runs: Path) -> Block:
    try:
        made = xrvlm.report(runs, runs / "report")
    except UserError as error:
        return Block("Report", [f"The report of all runs could not be written: {error}"])
    where = made.html.relative_to(runs).as_posix()
    return Block("Report", [f"Confusions, curves, calibration and differences of all runs in this folder: {where}"])


def _banner(changes: Sequence[str]) -> tuple[str, str]:
    """Loud words, and why."""
    words = "; ".join(changes)
    return "REHEARSAL: these figures say nothing about XR-VLM's results.", words[:1].upper() + words[1:]


def _markdown(title: str, changes: Sequence[str], blocks: Sequence[Block]) -> str:
    parts = [f"# {title}"]
    if changes:
        loud, why = _banner(changes)
        parts.append(f"> **{loud}** {escaped(why)}.")
    for block in blocks:
        parts += [f"## {escaped(block.heading)}", *map(escaped, block.sentences)]
        if block.grid:
            parts.append(markdown(block.grid.header, block.grid.rows,
                                  numbers=len(block.grid.header) - block.grid.words).strip())
        if block.points:
            parts.append("\n".join(f"- {escaped(point)}" for point in block.points))
    return "\n\n".join(parts) + "\n"


def _html(title: str, changes: Sequence[str], blocks: Sequence[Block]) -> str:
    body = [f"<h1>{escape(title)}</h1>"]
    if changes:
        loud, why = _banner(changes)
        body.append(f'<p class="banner"><strong>{escape(loud)}</strong><br>{escape(why)}.</p>')
    for block in blocks:
        body += [f"<h2>{escape(block.heading)}</h2>", *(f'<p class="note">{_linked(each)}</p>'
                                                        for each in block.sentences)]
        if block.grid:
            body.append(_table(block.grid))
        if block.points:
            body.append(f"<ul>{''.join(f'<li>{escape(point)}</li>' for point in block.points)}</ul>")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n")


def _linked(sentence: str) -> str:
    *words, last = sentence.split(" ")
    link = f'<a href="{escape(last)}">{escape(last)}</a>' if last.endswith(".html") else escape(last)
    return f"{escape(' '.join(words))} {link}"


def _table(grid: Grid) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag}{"" if index < grid.words else " class=number"}>{escape(cell)}</{tag}>'
                                for index, cell in enumerate(cells)) + "</tr>"
    head = f"<thead>{row(grid.header, 'th')}</thead>" if any(grid.header) else ""
    body = "".join(row(each, "td") for each in grid.rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
