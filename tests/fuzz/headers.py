"""Hostile files of a run: the header of its model, split.json, record.json, results.jsonl and metrics.json."""

import json
import re
from pathlib import Path
from random import Random
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

import xrvlm
from fuzz.bench import METHODS, Bench
from fuzz.oracle import REFUSED, USED, answer, command_line, plain, require, watched
from fuzz.values import as_file_text, broken_bytes, broken_json, broken_text
from xrvlm.experiments.saved import read_split
from xrvlm.files import leads_out
from xrvlm.reporting.results import read_records

FILES = ("model.safetensors", "model.safetensors", "split.json", "record.json", "results.jsonl", "metrics.json")
FIELDS = ("backbone", "method", "classes", "metrics", "split", "precision", "format")


def header(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """One file of a finished run, changed; then what reads it."""
    method, file = METHODS[draw.randrange(2)], FILES[number % len(FILES)]
    run = bench.copied(method, place)
    path = run.parent / file if file == "results.jsonl" else run / file
    if file == "model.safetensors":
        _change_header(path, draw)
    elif file == "results.jsonl":
        line = path.read_text().strip()
        lines = [broken_json(json.loads(line), draw), *([line] if draw.random() < 0.3 else [])]
        path.write_bytes(as_file_text("\n".join(lines) + "\n"))
    else:
        path.write_bytes(as_file_text(broken_json(json.loads(path.read_text()), draw)))
    if draw.random() < 0.1:
        path.write_bytes(broken_bytes(path.read_bytes(), draw))
    beside = [run.parent / name for name in ("report", "results.jsonl", ".results.jsonl")]
    with watched([run, *beside, place / "out", bench.root / "cache", bench.scratch]):
        return READERS[file](bench, draw, run, method)


def _change_header(path: Path, draw: Random) -> None:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["xrvlm"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}    # noqa: SIM118 (not a dict)
    how = draw.random()
    if how < 0.6:                            # a field of each kind as often as the long list of texts
        part = draw.choice(FIELDS)
        text = broken_json({part: about[part]}, draw)
        changed = json.dumps(about)
        try:
            changed = json.dumps(about | json.loads(text))
        except (ValueError, TypeError, RecursionError):
            changed = text
    else:
        changed = broken_json(about, draw) if how < 0.9 else broken_text(json.dumps(about), draw)
    # a header of safetensors holds UTF-8
    save_file(tensors, path, {"xrvlm": changed.encode("utf-8", "replace").decode()})


def _model(bench: Bench, draw: Random, run: Path, method: str) -> str:
    """The model is loaded with the right numbers, or refused."""
    if draw.random() < 0.2:
        code, _ = command_line("predict", f"run={run}", f"images={bench.photo}", "device=cpu", "workers=0")
        return code
    clip = bench.clip if draw.random() < 0.7 else None
    made, _ = answer(lambda: xrvlm.load(run, clip) if clip else xrvlm.load(run, device="cpu"))
    if made is None:
        return REFUSED
    best, _ = answer(lambda: made.predict(bench.photo, topk=100))
    if best is None:
        return REFUSED
    chances = [chance for _, chance in best]
    require(len(best) == len(made.names), f"{len(best)} classes of {len(made.names)}")
    require(all(0 <= chance <= 1 for chance in chances) and abs(sum(chances) - 1) < 1e-3, f"probabilities {chances}")
    whole = bench.runs[method].classifier
    if method == "linear_probe" and (made.names, made.header.method) == (whole.names, whole.header.method):
        usual = whole.predict(bench.photo, topk=100)
        require(best == usual, f"{best}, not {usual}")
    for name in made.names:
        plain(name, "a class")
    evaluated, _ = answer(lambda: xrvlm.evaluate(run, clip=bench.clip))
    if evaluated is not None:
        require(all(0 <= value <= 1 for name, value in evaluated.metrics.items() if name != "images"),
                f"metrics {evaluated.metrics}")
    return USED


def _split(bench: Bench, draw: Random, run: Path, method: str) -> str:
    """The split is read as it was written, or refused."""
    split, _ = answer(lambda: read_split(run / "split.json"))
    if split is not None:
        ids = [item.id for items in (split.train, split.val, split.test) for item in items]
        require(not any(map(leads_out, ids)), f"images outside: {ids}")
        for name in (*ids, *split.classes):
            plain(name, "a name")
    if draw.random() < 0.2:
        code, _ = command_line("eval", f"run={run}", "device=cpu", "workers=0")
        return code
    found, _ = answer(lambda: xrvlm.evaluate(run, clip=bench.clip))
    if found is None:
        return REFUSED
    require(split is not None, "a split that read_split refuses was used")
    usual = bench.runs[method].record.metrics
    require({name: value for name, value in found.metrics.items() if name != "images"} == usual,
            f"{found.metrics}, not {usual}")
    return USED


def _record(bench: Bench, draw: Random, run: Path, method: str) -> str:
    """The same command again: the run is finished, with the figures in its record, or the record is refused."""
    place = bench.root / "made"

    def again() -> Any:
        options = xrvlm.RunOptions(runs=run.parent, features=xrvlm.FeatureSettings(views=0, cache=place / "cache"))
        return bench.adapt(method, place, options=options)

    found, _ = answer(again)
    if found is None:
        return REFUSED
    require(all(0 <= found.record.metrics[name] <= 1 for name in bench.runs[method].record.metrics),
            f"metrics {found.record.metrics}")
    records, _ = answer(lambda: read_records(run.parent))
    require(records is not None, "the line that was written cannot be read")
    plain(" ".join(map(str, vars(found.record).values())), "the record")
    return USED


def _results(bench: Bench, draw: Random, run: Path, method: str) -> str:
    """The lines are read with figures between 0 and 1, or refused; a report of them is made or refused."""
    records, _ = answer(lambda: read_records(run.parent))
    for record in records or ():
        require(all(0 <= record.metrics[name] <= 1 for name in ("top1", "top5", "mean_per_class", "macro_f1", "ece")),
                f"metrics {record.metrics}")
        require(not leads_out(record.run), f"the folder of the run is {record.run}")
    code = _report(bench, draw, run, method)
    require(code == REFUSED or records is not None, "a report of lines that read_records refuses")
    return code


def _report(bench: Bench, draw: Random, run: Path, method: str) -> str:
    if draw.random() < 0.2:
        code, _ = command_line("report", f"runs={run.parent}")
        return code
    found, _ = answer(lambda: xrvlm.report(run.parent, photos=False))
    if found is None:
        return REFUSED
    for text in (found.table, found.markdown.read_text(encoding="utf-8")):
        require(not (shown := re.search(r"[^\n]*\b(nan|inf)\b[^\n]*", text)), f"the report shows {shown}")
    for line in found.table.splitlines():
        plain(line, "the table")
    return USED


def _metrics(bench: Bench, draw: Random, run: Path, method: str) -> str:
    """metrics.json is read by the report, which says so where it cannot be."""
    code = _report(bench, draw, run, method)
    require(code == USED, "a damaged metrics.json stopped the report")
    return code


READERS = {"model.safetensors": _model, "split.json": _split, "record.json": _record, "results.jsonl": _results,
           "metrics.json": _metrics}
