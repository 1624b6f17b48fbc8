"""Every benchmark runs, at its smallest size. They are found by their files: a new one without `--tiny` fails."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from slow import slow

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = ("common", "paper_cost", "paper_page")      # modules of others
LONG = ("cold_start", "paper", "photo_trunks", "start_up", "trust", "words")
BENCHMARKS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.stem not in LONG]
                         + slow(*(path for path in BENCHMARKS if path.stem in LONG)), ids=lambda path: path.stem)
def test_a_benchmark_runs(path, at_home, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(path), "--tiny", "--threads", "1"])
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip(), "it prints its figures"


def test_benchmarks_are_found():
    assert {"train_step", "cub_scale", "predict", "start_up"} <= {path.stem for path in BENCHMARKS}
