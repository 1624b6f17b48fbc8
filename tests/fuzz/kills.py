"""Runs that are killed: the same command again ends with the numbers of a run that nobody disturbed."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.bench import METHODS, Bench
from fuzz.cache import same_run
from fuzz.oracle import USED, require, watched
from xrvlm import files
from xrvlm.experiments import run as run_module
from xrvlm.experiments.run import Run
from xrvlm.files import RESULTS
from xrvlm.reporting.results import read_records

# the names that a run calls between the end of the training and the end, in this order
CONCLUSION = ("write_scores", "write_losses", "Classifier", "write_json", "append_record")
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.chmod")


@cache
def undisturbed(bench: Bench) -> dict[str, tuple[Run, int, int]]:
    """Each run, how many files it moves, and how often it writes or changes one."""
    return {method: _counted(bench, method) for method in METHODS}


def _counted(bench: Bench, method: str) -> tuple[Run, int, int]:
    place, moved, events = bench.root / f"undisturbed-{method}", [0], [0]
    read, write = os.pipe()
    pid = _forked(lambda: (_on_event(events, 0), _on_replace(moved, 0, after=False), _run(bench, method, place),
                           os.write(write, json.dumps([moved[0], events[0]]).encode())))
    os.close(write)
    _, status = os.waitpid(pid, 0)
    require(status == 0, f"a run that nobody disturbed ended with {status}")
    with os.fdopen(read) as file:
        counts = json.load(file)
    return (_run(bench, method, place), *counts)


def kill(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """A process is killed, once or twice, at a moment that the number decides; then the run is done in this one."""
    method = METHODS[number // len(MOMENTS) % 2 - 1]
    expected, moves, events = undisturbed(bench)[method]
    for time in range(draw.choice((1, 1, 1, 2))):
        arm = MOMENTS[number % len(MOMENTS)](draw, moves, events)
        pid = _forked(lambda arm=arm: (arm(), _run(bench, method, place)))
        _, status = os.waitpid(pid, 0)
        require(os.WIFSIGNALED(status) or status == 0, f"the process ended with {status} by itself")
        require(time or number >= len(MOMENTS) or os.WIFSIGNALED(status), "nothing was killed")
    with watched([place, bench.scratch]):
        same_run(_run(bench, method, place), expected)
    lines = (place / "runs" / RESULTS).read_text().splitlines()
    require(len(lines) == 1 and len(read_records(place / "runs")) == 1, f"the lines {lines}")
    names = [sorted(path.name for path in folder.iterdir() if path.name[0] != ".") for folder in (
        place / "runs" / expected.folder.name, expected.folder)]
    require(names[0] == names[1], f"the files {names[0]}, not {names[1]}")
    return USED


def _run(bench: Bench, method: str, place: Path) -> Run:
    return bench.adapt(method, place, views=2 if method == "xr_vlm" else 0)


def _forked(act: Callable[[], Any]) -> int:
    """The id of a process that does `act` and ends with 0, or 1 where it raises."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # of threads, of which none runs now
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(60)
        act()
        code = 0
    finally:
        os._exit(code)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- moments; each returns what arms the process that will be killed

def _on_replace(count: list[int], at: int, *, after: bool) -> None:
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] == at and not after:
            _die()
        original(source, target)
        if count[0] == at:
            _die()

    files.os.replace = replace


def _on_event(count: list[int], at: int) -> None:
    def hook(event: str, args: tuple) -> None:
        written = event == "open" and (set(args[1] or "") & set("wax+") or (args[2] or 0) & os.O_CREAT)
        if written or event in CHANGES:
            count[0] += 1
            if count[0] == at:
                _die()

    sys.addaudithook(hook)


def _before_a_move(draw: Random, moves: int, events: int) -> Callable[[], None]:
    at = draw.randrange(1, moves + 1)
    return lambda: _on_replace([0], at, after=False)


def _after_a_move(draw: Random, moves: int, events: int) -> Callable[[], None]:
    at = draw.randrange(1, moves + 1)
    return lambda: _on_replace([0], at, after=True)


def _at_an_event(draw: Random, moves: int, events: int) -> Callable[[], None]:
    at = draw.randrange(1, events + 1)
    return lambda: _on_event([0], at)


def _in_the_conclusion(draw: Random, moves: int, events: int) -> Callable[[], None]:
    """After the training, before one of the files of the run is written."""
    name = draw.choice([name for name in CONCLUSION if name != "write_losses"])
    return lambda: setattr(run_module, name, _die)


def _before_the_record(draw: Random, moves: int, events: int) -> Callable[[], None]:
    """All is written but record.json, or but the line in results.jsonl."""
    name = draw.choice(("write_json", "append_record"))
    return lambda: setattr(run_module, name, _die)


def _half_a_file(draw: Random, moves: int, events: int) -> Callable[[], None]:
    """Half of a text is on the disk."""
    at, count, original = draw.randrange(1, 5), [0], Path.write_text

    def write(self: Path, text: str, *args: Any, **more: Any) -> int:
        count[0] += 1
        if count[0] == at:
            original(self, text[:len(text) // 2], *args, **more)
            _die()
        return original(self, text, *args, **more)

    return lambda: setattr(Path, "write_text", write)


def _after_the_line(draw: Random, moves: int, events: int) -> Callable[[], None]:
    """All is written, and the checkpoint is still there."""
    original = run_module.append_record

    def append(*args: Any) -> None:
        original(*args)
        _die()

    return lambda: setattr(run_module, "append_record", append)


MOMENTS = (_before_the_record, _before_a_move, _in_the_conclusion, _half_a_file, _after_a_move, _at_an_event,
           _after_the_line)
