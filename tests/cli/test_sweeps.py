"""Sweeps as a user starts them: two at once over one cold cache, one that is killed, jobs by a launcher plugin."""

import importlib.metadata
import json
import re
import signal
import subprocess
import sys

import pytest
from photos import photo_folder
from slow import SLOW

from xrvlm.cli.main import main
from xrvlm.reporting.results import read_records
from xrvlm.reporting.tables import terminal_table

PROGRAM = "import sys, torch; torch.set_num_threads(1); from xrvlm.cli.main import main; sys.exit(main(sys.argv[1:]))"

GRID = ("method=linear_probe,tip_adapter", "shots=1,4", "backbone=tiny", "device=cpu", "workers=0")
INSTALLED = {package.metadata["Name"] for package in importlib.metadata.distributions()}
needs_launcher = pytest.mark.skipif("hydra-joblib-launcher" not in INSTALLED,
                                    reason="hydra-joblib-launcher is not installed: pip install xrvlm[launchers]")


@pytest.fixture(autouse=True)
def on_one_thread(at_home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "birds", images=9)


@pytest.fixture(scope="module")
def straight(photos, tmp_path_factory):
    """The table of the sweep, done in one go."""
    place = tmp_path_factory.mktemp("straight")
    assert main(["adapt", "-m", f"data.root={photos}", f"runs={place / 'runs'}", f"features.cache={place}", *GRID]) == 0
    return table(place / "runs")


def table(runs) -> str:
    """The results without the times."""
    records = read_records(runs)
    assert len(records) == 4
    return re.sub(r" +\d+\.\d +(?=[\d,]+$)", " ", terminal_table(records), flags=re.MULTILINE)


def start(photos, runs, *more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-u", "-c", PROGRAM, "adapt", "-m", f"data.root={photos}", f"runs={runs}",
                             *GRID, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def encoded(told: str) -> int:
    """How many images a sweep says that it ran the tower on."""
    return sum(map(int, re.findall(r"^(\d+) of \d+ images are encoded now$", told, re.MULTILINE)))


def images_of(runs) -> int:
    """How many different images the runs read."""
    return len({(record["path"]) for path in runs.rglob("split.json") for part in ("train", "test")
                for record in json.loads(path.read_text())[part]})


def test_two_sweeps_at_once_over_a_cold_cache_encode_every_image_once(photos, tmp_path, straight):
    sweeps = [start(photos, tmp_path / name) for name in ("one", "two")]
    told = [sweep.communicate(timeout=900)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], told
    assert sum(map(encoded, told)) == images_of(tmp_path / "one")
    assert table(tmp_path / "one") == table(tmp_path / "two") == straight
    assert not list((tmp_path / "cache").rglob("*.tmp*"))


def test_a_sweep_that_is_killed_half_way_ends_with_the_same_table(photos, tmp_path, straight):
    sweep = start(photos, tmp_path / "runs")
    assert sweep.stdout is not None
    for _ in range(2):
        for line in sweep.stdout:
            if ": top-1 " in line:           # printed when a run is finished
                break
    sweep.send_signal(signal.SIGKILL)
    first = sweep.communicate()[1]
    assert sweep.returncode == -signal.SIGKILL
    assert 2 <= len(list((tmp_path / "runs").glob("*/record.json"))) < 4
    again = start(photos, tmp_path / "runs")
    second = again.communicate(timeout=900)[1]
    assert again.returncode == 0, second
    assert table(tmp_path / "runs") == straight
    assert encoded(first) > 0
    assert encoded(first) + encoded(second) >= images_of(tmp_path / "runs")


HELD = """
import os, signal, sys
from xrvlm.features import bank
from xrvlm.cli.main import main
keep = bank._write
def killed(*arguments):
    print("about to write", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
bank._write = killed
main(sys.argv[1:])
"""


def test_the_lock_of_a_process_that_was_killed_while_it_encoded_does_not_block(photos, tmp_path):
    arguments = ["adapt", f"data.root={photos}", "method=linear_probe", "shots=2", "backbone=tiny", "device=cpu",
                 "workers=0"]
    killed = subprocess.run([sys.executable, "-c", HELD, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == "about to write\n"
    assert list((tmp_path / "cache").rglob(".lock-*"))
    assert main(arguments) == 0


@SLOW
@needs_launcher
def test_joblib_does_jobs_side_by_side_and_tells_a_mistake_of_one_in_one_line(photos, tmp_path, straight):
    # with processes that decode images, as is the default
    sweep = start(photos, tmp_path / "runs", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "workers=1",
                  "shots=0,1,4")
    out, told = sweep.communicate(timeout=900)
    assert sweep.returncode == 2, told
    assert table(tmp_path / "runs") == straight
    assert out.count("linear probe: top-1") == 2
    assert "error: shots must be a whole number of images a class, at least 1, or all; found 0" in told
    assert "Traceback" not in told


def test_slurm_is_a_launcher_too(photos, capsys):
    if "hydra-submitit-launcher" not in INSTALLED:
        pytest.skip("hydra-submitit-launcher is not installed: pip install xrvlm[launchers]")
    assert main(["adapt", f"data.root={photos}", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60",
                 "--cfg", "hydra"]) == 0
    assert "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher" in capsys.readouterr().out


def test_a_sweep_whose_folder_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    photo_folder(tmp_path / "birds", images=2)
    (tmp_path / "runs" / "multirun.yaml").mkdir(parents=True)
    arguments = ["adapt", "-m", f"data.root={tmp_path / 'birds'}", f"runs={tmp_path / 'runs'}", *GRID]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "error: cannot write " in error and "choose another folder with runs=" in error
    assert "Traceback" not in error
