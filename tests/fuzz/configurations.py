"""Hostile configurations: the config.yaml of a finished run, and overrides of the command line."""

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

import xrvlm
from fuzz.bench import METHODS, Bench
from fuzz.oracle import REFUSED, USED, answer, command_line, require, watched
from fuzz.values import NASTY_TEXTS, TARGETS, as_file_text, broken_text, broken_tree

TAGS = ("!!python/object/apply:os.system ['touch escaped']", "!!python/name:fuzz.bait.spring",
        "!!python/object/new:fuzz.bait.Mine {}", "!!python/module:fuzz.bait ''", "!unknown x", "!!binary aGVsbG8=",
        "!!set {a, b}", "!!timestamp 2020-01-01", "!!float .nan", "&a [*a]", "&b {x: *b}", "*nowhere", "${oc.env:HOME}",
        "${oc.env:NOWHERE}", "${.}", "${data}", "${", "${oc.decode:x}", "${hydra:runtime.cwd}", "???", "~", "0x10",
        "1e400", "0o17", "1_000", "12:30:45", "yes", "[", "{a: b: c}", "|\n  x", "? x", "\t- x", "%YAML 9.9")
KEYS = ("shots", "seed", "val", "selection", "force", "protocol", "runs", "device", "precision", "data", "data.root",
        "data.name", "data.class_names", "data.skip_damaged", "method", "recipe", "recipe.epochs",
        "recipe.learning_rate", "recipe.batch_size", "features.views", "features.mode", "features.crop_scale",
        "features.dtype", "features.flip", "features.budget_gb", "features.cache", "text.templates",
        "text.descriptions", "text.parts", "text", "backbone", "method.image_parts", "method.text_parts",
        "method.context_length", "method.hidden", "method.head", "method.part_prompts", "method.context",
        "method.prior_weight", "experiment", "features", "+more", "+data.more", "+method.more", "+backbone.more",
        "~shots", "~data.root", "++shots", "workers", "+hydra.more")
VALUES = (*NASTY_TEXTS, "null", "true", "[]", "{}", "[1,2]", "{a:1}", "-1", "0", "1", "2", "0.5", "nan", "inf",
          "-inf", "1e-9", "all", "x", "linear_probe", "zero_shot", "tiny", "table", "val", "[x", "'x",
          "${oc.env:NOWHERE}", "${shots}", "${oc.decode:'{}'}", "fast", "cached", "online", "a photo of {}", "{} {}",
          "{x}", "float32", "cross", "first,second")
NESTED = ("{_target_: fuzz.trap.spring}", "[{_target_: fuzz.trap.spring}]", "{a: {b: {_target_: fuzz.trap.spring}}}",
          "{_target_: fuzz.trap.spring, _partial_: true}")
SMALL = ("backbone=tiny", "device=cpu", "workers=0", "shots=1", "recipe.epochs=1", "method.image_parts=2",
         "method.text_parts=2", "method.context_length=2", "method.hidden=8", "features.views=0")


def configuration(bench: Bench, draw: Random, place: Path, number: int) -> str:
    return _overrides(bench, draw, place) if number % 2 else _saved(bench, draw, place)


def _saved(bench: Bench, draw: Random, place: Path) -> str:
    """The config.yaml of a run is changed; the run is scored again, or labels an image."""
    method = METHODS[draw.randrange(2)]
    run = bench.copied(method, place)
    path = run / "config.yaml"
    path.write_bytes(_changed(yaml.safe_load(path.read_text()), draw))
    with watched([run, run.parent / "report", place / "out", bench.root / "cache", bench.scratch]):
        command = draw.choice(("eval", "eval", "eval", "predict", "report", "explain"))
        if command == "eval" and draw.random() < 0.6:
            found, _ = answer(lambda: xrvlm.evaluate(run, clip=bench.clip))
            if found is not None:
                _figures(found.metrics)
            return REFUSED if found is None else USED
        words = {"eval": (f"run={run}",), "report": (f"runs={run.parent}",), "explain": (f"run={run}",),
                 "predict": (f"run={run}", f"images={bench.photo}", "classes=[a,b]")}[command]
        code, _ = command_line(command, *words, *(() if command == "report" else ("device=cpu",)),
                               *(("workers=0",) if command in ("eval", "predict") else ()))
        for metrics in run.rglob("eval/**/metrics.json"):
            _figures(json.loads(metrics.read_text())["summary"])
        return code


def _figures(metrics: dict[str, float]) -> None:
    most = {"images": float("inf"), "nll": float("inf"), "brier": 2}     # of the others 1
    require(all(0 <= value <= most.get(name, 1) for name, value in metrics.items()), f"metrics {metrics}")


def _changed(config: dict[str, Any], draw: Random) -> bytes:
    how = draw.randrange(6)
    if how == 0:
        return as_file_text(broken_text(yaml.safe_dump(config), draw))
    if how == 1:                             # a tag, an alias or an interpolation in place of a value
        lines = yaml.safe_dump(config, sort_keys=False).splitlines()
        at = draw.choice([index for index, line in enumerate(lines) if ": " in line])
        lines[at] = f"{lines[at].partition(': ')[0]}: {draw.choice(TAGS)}"
        return as_file_text("\n".join(lines))
    if how == 2:                             # aliases of aliases: small on disk, huge when they are followed
        laughs = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
        under = draw.choice(("more", "text", "data"))
        others = {key: value for key, value in config.items() if key != under}
        return as_file_text("\n".join([*laughs, yaml.safe_dump(others), f"{under}: *a11"]))
    if how == 3:                             # code, by any key
        above = draw.choice([config, config["data"], config["data"]["loader"], config["data"]["loader"]["options"],
                             config["text"], config["method"], config["backbone"], config["features"]])
        above[draw.choice(sorted(above))] = draw.choice(TARGETS)
        return as_file_text(yaml.safe_dump(config))
    part = draw.choice(("data", "text", "features", "method", ""))
    try:
        changed = broken_tree(config[part], draw) if part else broken_tree(config, draw, 2)
        return as_file_text(yaml.safe_dump(config | {part: changed} if part else changed, allow_unicode=True))
    except (yaml.YAMLError, UnicodeError):
        return b"data: \xff\xfe"


def _overrides(bench: Bench, draw: Random, place: Path) -> str:
    """A short run by the command line with hostile overrides: it ends with figures, or with one line of error."""
    given: dict[str, str] = {key: value for key, _, value in (word.partition("=") for word in SMALL)}
    given |= {"data.root": str(bench.photos), "runs": str(place / "runs"), "features.cache": str(place / "cache")}
    for _ in range(draw.choice((1, 1, 2))):
        key = draw.choice(KEYS)
        value = draw.choice(NESTED if draw.random() < 0.15 else VALUES)
        if key == "workers" and value.isdigit():
            continue                         # as many processes as it says
        given.pop(key, None)
        given[key] = value
    if "\x00" in "".join(given.values()):
        return REFUSED                       # no argument of a process holds one
    words = [key if key.startswith("~") else f"{key}={value}" for key, value in given.items()]
    if given.get("method") in ("linear_probe", "zero_shot"):
        words = [word for word in words if not word.startswith("method.")]
    with watched([place / "runs", place / "cache", place / "work", bench.scratch, bench.root / "home"],
                 own_code=True):
        code, _ = command_line("adapt", *words)
        records = list((place / "runs").rglob("record.json"))
        for record in records:
            _figures(json.loads(record.read_text())["metrics"])
    return code
