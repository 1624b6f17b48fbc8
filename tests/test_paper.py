"""benchmarks/paper.py, rehearsed on small replicas of the data sets with the embedded tower."""

import importlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import replicas
import replicas_coop
from results import record, table_rows
from slow import SLOW

from xrvlm.cli.main import main
from xrvlm.reporting.results import read_records

FOLDER = Path(__file__).parents[1] / "benchmarks"
REHEARSED = ("--rehearsal", "--backbone", "tiny", "--device", "cpu", "--workers", "0", "--threads", "1", "--shots", "2",
             "--seeds", "1,2", "--set", "recipe.epochs=2")
AS_TOWER = ("--set", "backbone.resize_to=null", "--set", "backbone.interpolation=null")


def in_process(command, **options):
    """A run of the command line in this process: many times as fast as in one of its own."""
    with redirect_stdout(io.StringIO()) as out:
        code = main(command[3:])
    return subprocess.CompletedProcess(command, code, out.getvalue())


@pytest.fixture
def program(at_home, monkeypatch):
    """The module, with runs in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("paper")
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=in_process, PIPE=subprocess.PIPE))
    return module


@pytest.fixture
def paper(program, monkeypatch, capfd):
    """Calls the program with arguments; returns the exit code, what it said and what it complained of."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, arguments)])
        code, captured = program.main(), capfd.readouterr()
        return code, captured.out, captured.err

    return call


def cells(path: Path) -> list[list[str]]:
    """The text of the cells of each row of an HTML page."""
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", path.read_text())]


def test_the_page_holds_the_means_of_the_results_and_says_that_it_is_a_rehearsal(paper):
    data = replicas.cub(Path("CUB"), training=4, testing=3)
    code, out, _ = paper("--data", data, *REHEARSED, *AS_TOWER, "--methods", "xr_vlm:alignment,zero_shot")
    assert (code, out.splitlines()[-1]) == (0, "runs/paper/paper.html")
    records = read_records(Path("runs/paper"))
    assert len(records) == 3
    rows = table_rows(Path("runs/paper/paper.md").read_text())
    for label in ("XR-VLM", "CLIP zero-shot"):
        found = [100 * record.metrics["top1"] for record in records if record.label == label]
        (row,) = [row for row in rows if row.get("Method", "").startswith(label)]
        assert float(row["Top-1 %"]) == pytest.approx(fmean(found), abs=0.005)
        assert row["Seeds"] == str(len(found))
        assert row["Reported %"] == "-", "a rehearsal has no figure of others beside it"
        html = [line for line in cells(Path("runs/paper/paper.html")) if line[:1] == [row["Method"]]]
        assert html == [list(row.values())]
    page = Path("runs/paper/paper.html").read_text()
    assert "REHEARSAL" in page
    assert "the tower is tiny" in page
    assert "XR-VLM, head alignment 77.15, XR-VLM, head cross 80.93. It is NOT COMPARABLE" in page
    assert Path("runs/paper/report/report.html").exists()


@SLOW
def test_what_others_report_stands_beside_a_real_run(at_home, monkeypatch):
    """With the sizes, the tower and the recipe of the paper, and no change."""
    monkeypatch.syspath_prepend(FOLDER)
    cost, page = (importlib.import_module(name) for name in ("paper_cost", "paper_page"))
    asked = cost.Asked("cub", Path("CUB"), ())
    results = []
    for seed, top1 in ((1, 0.79), (2, 0.80), (3, 0.81)):
        folder = Path("runs") / f"cross-{seed}"
        folder.mkdir(parents=True)
        split = {"classes": ["x"] * 200, "train": [], "val": [], "test": [{"path": "a.jpg", "class": "x"}] * 5794}
        (folder / "split.json").write_text(json.dumps(split))
        made = record(folder.name, top1=top1, seed=seed, shots=16, head="cross", images=5794, classes=200,
                      backbone="ViT-B-16-quickgelu/openai (resize 256, bilinear)")
        results.append(page.Result(cost.Job(asked, "xr_vlm", "16", seed, ()), record=made))
    jobs = [*(result.job for result in results), cost.Job(asked, "coop", "16", 1, ())]
    page.write_page(results, jobs, Path("runs"), changes=[], machine={"Device": "x"}, command="make paper")
    written = Path("runs/paper.md").read_text()
    (row,) = [row for row in table_rows(written) if row.get("Method") == "XR-VLM, head cross"]
    assert (row["Top-1 %"], row["Reported %"], row["Above reported"]) == ("80.00", "80.93", "-0.93")
    assert row["95 % interval"] == "77.52 to 82.48", "4.303 x 1 / sqrt(3) to each side"
    assert "REHEARSAL" not in written
    assert "chose the epoch on the test set" in written
    assert "cub: coop, shots=16, seed=1: not run yet" in written


def test_incomplete_data_end_it_before_any_work(paper):
    code, _, err = paper("--data", replicas.cub(Path("CUB")))
    assert code == 2
    assert "CUB is not complete: the lists name 3 classes" in err
    assert "get it from https://www.vision.caltech.edu" in err
    code, _, err = paper()
    assert (code, "--data DIR is not given" in err) == (2, True)
    assert not Path("runs").exists()


def test_a_dry_run_tells_the_cost_and_does_nothing(paper):
    data = replicas.cub(Path("CUB"), training=4, testing=3)
    code, out, _ = paper("--data", data, *REHEARSED, *AS_TOWER, "--methods", "xr_vlm,zero_shot", "--dry-run")
    assert code == 0
    # 2 seeds of 2 epochs over 2 shots of 3 classes, and 9 test images in each of 3 runs
    assert "In all 3 runs, 51 images through the tower" in out
    assert "xr_vlm: 2 runs, 42 images through the tower, 2 epochs, 4 steps" in out
    assert "This is an estimate" in out
    assert "Weights to download: none." in out
    assert not Path("runs").exists()


@SLOW
def test_published_weights_are_told_and_not_fetched(paper):
    """The speed of a tower does not depend on its weights: it is timed with random ones."""
    data = replicas.cub(Path("CUB"), training=4, testing=3)
    code, out, _ = paper("--data", data, "--rehearsal", "--device", "cpu", "--workers", "0", "--threads", "1",
                         "--backbone", "vit_b32_openai", "--methods", "zero_shot", "--dry-run")
    assert code == 0
    assert "Weights to download: about 0.6 GB" in out


@SLOW
def test_a_run_that_fails_leaves_the_others(paper, program, monkeypatch):
    data = replicas.cub(Path("CUB"), training=4, testing=3)

    def failing(command, **options):
        return subprocess.CompletedProcess(command, 3) if "seed=1" in command else in_process(command, **options)

    monkeypatch.setattr(program.subprocess, "run", failing)
    code, out, _ = paper("--data", data, *REHEARSED, *AS_TOWER, "--methods", "linear_probe")
    assert code == 1
    failure = "cub: linear_probe, shots=2, seed=1: exit code 3, said above: xrvlm adapt experiment=cub_vit_b16"
    assert f"failed: {failure}" in out
    page = Path("runs/paper/paper.md").read_text()
    assert "shots=2, seed=1: exit code 3" in page
    (row,) = [row for row in table_rows(page) if row.get("Method") == "linear probe"]
    assert (row["Seeds"], row["95 % interval"]) == ("1", "-")


def test_an_option_that_a_method_has_not_ends_it_before_any_work(paper):
    data = replicas.cub(Path("CUB"), training=4, testing=3)
    code, _, err = paper("--data", data, *REHEARSED, *AS_TOWER, "--methods", "coop:cross")
    assert code == 2
    assert "head" in err
    assert not Path("runs").exists()


@SLOW
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_a_stopped_program_goes_on(paper):
    """The run in progress ends with the program, and goes on in the epoch that it was in."""
    words = ("--data", replicas.cub(Path("CUB"), training=4, testing=3), *REHEARSED[:-2], "--methods", "xr_vlm",
             *AS_TOWER, "--set", "recipe.epochs=25", "--seeds", "1")
    first = subprocess.Popen([sys.executable, FOLDER / "paper.py", *words], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not (states := list(Path("runs").rglob("last.safetensors"))) and time.monotonic() < until:
        time.sleep(0.05)
    assert states, "an epoch was finished"
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130
    assert states[0].exists(), "it was stopped within the run"
    code, out, err = paper(*words)
    assert (code, out.splitlines()[-1]) == (0, "runs/paper/paper.html")
    assert "resuming after epoch" in err
    assert not states[0].exists()


def eleven(root: Path) -> Path:
    """Three of the eleven: one on CoOp's split, two on the official one."""
    dtd = replicas_coop.dtd(root / "dtd")
    names = {name: name for name in ("banded", "blotchy", "polka-dotted")}
    replicas_coop.coop_split(dtd / "split_zhou_DescribableTextures.json", dtd / "images", names)
    replicas_coop.imagenet(root / "imagenet" / "images")
    replicas.aircraft(root / "fgvc_aircraft")
    return root


@SLOW
def test_the_eleven_with_those_that_are_there(paper):
    data = eleven(Path("coop"))
    code, out, err = paper("--suite", "eleven", "--data", data, *REHEARSED)
    assert code == 2
    assert out.count("not complete: ") == 8
    assert "not complete: ucf101 in coop/ucf101: there is no such folder" in out
    assert "8 of 11 data sets are not complete: caltech101, oxford_pets" in err
    assert "--skip-missing" in err
    code, out, _ = paper("--suite", "eleven", "--data", data, *REHEARSED, "--methods", "linear_probe", "--skip-missing")
    assert code == 0
    records = read_records(Path("runs/paper_eleven"))
    assert {record.data for record in records} == {"imagenet", "aircraft", "dtd"}
    rows = table_rows(Path("runs/paper_eleven/paper.md").read_text())
    (row,) = [row for row in rows if "Average" in row]
    means = {name: fmean(100 * record.metrics["top1"] for record in records if record.data == name)
             for name in ("imagenet", "aircraft", "dtd")}
    for name, mean in means.items():
        assert float(row[name]) == pytest.approx(mean, abs=0.05)
    assert float(row["Average"].split()[0]) == pytest.approx(fmean(means.values()), abs=0.05)
