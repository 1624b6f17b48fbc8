"""A search with Optuna as a user starts it: by the validation images alone, each trial a run of its own."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
import yaml
from command_line import told
from photos import photo_folder
from slow import SLOW

from xrvlm.cli.main import main, quote
from xrvlm.cli.search import prepared
from xrvlm.reporting.results import read_records

PROGRAM = "import sys, torch; torch.set_num_threads(1); from xrvlm.cli.main import main; sys.exit(main(sys.argv[1:]))"
TINY = ("backbone=tiny", "device=cpu", "workers=0", "shots=2", "data.root=birds", "runs=runs")
SEARCH = ("adapt", "-m", "hydra/sweeper=optuna", *TINY)
INSTALLED = {package.metadata["Name"] for package in importlib.metadata.distributions()}
needs_optuna = pytest.mark.skipif("hydra-optuna-sweeper" not in INSTALLED,
                                  reason="hydra-optuna-sweeper is not installed: pip install xrvlm[sweep]")


@pytest.fixture(autouse=True)
def birds(at_home, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    photo_folder(tmp_path / "birds", images=9)


def search(*arguments) -> subprocess.CompletedProcess:
    """In a process of its own: Optuna 2 warns on import of what SQLAlchemy has moved."""
    return subprocess.run([sys.executable, "-c", PROGRAM, *SEARCH, *arguments], capture_output=True, text=True)


@needs_optuna
def test_trials_go_by_the_validation_images_and_are_not_done_twice(tmp_path):
    words = ("selection=val", "method=tip_adapter", "method.beta=interval(1,10)", "method.alpha=choice(0.5,1,2)",
             "hydra.sweeper.n_trials=2")
    done = search(*words)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "runs")
    assert len(records) == 2
    assert {record.selection for record in records} == {"val"}
    found = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
    assert found["best_value"] == max(record.metrics["val_top1"] for record in records)
    best = [record for record in records if record.options.get("beta") == found["best_params"]["method.beta"]]
    assert [record.metrics["val_top1"] for record in best] == [found["best_value"]]

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/model.safetensors")}
    again = search(*words)                   # the same trials, each of which is finished
    assert again.stderr.count("already finished: ") == 2
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text()) == found

    # the honest test figure of the best: the same command with its values, which trains nothing
    values = [f"{name}={value}" for name, value in found["best_params"].items()]
    last = subprocess.run([sys.executable, "-c", PROGRAM, "adapt", *TINY, *words[:2], *values], capture_output=True,
                          text=True)
    assert "already finished: " in last.stderr
    assert f"top-1 {best[0].metrics['top1']:.1%} of " in last.stdout
    assert f"validation images: top-1 {found['best_value']:.1%}" in last.stdout


@SLOW
@needs_optuna
def test_a_method_with_epochs_and_a_failed_trial(tmp_path):
    done = search("selection=val", "method=task_res", "recipe.epochs=2", "recipe.learning_rate=choice(0.001,-1)",
                  "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=4")
    assert done.returncode == 2
    assert 1 <= len(re.findall("^error: .*recipe.learning_rate must be above 0", done.stderr, re.MULTILINE)) <= 3
    record, = read_records(tmp_path / "runs")
    losses = (tmp_path / "runs" / record.run / "losses.csv").read_text().splitlines()
    column = losses[0].split(",").index("val_top1")
    found = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(max(float(line.split(",")[column]) for line in losses[1:]))
    assert found["best_params"] == {"recipe.learning_rate": 0.001}


def test_a_grid_is_a_plain_sweep(capsys):
    assert main([*SEARCH, "selection=val", "shots=choice(1,2)", "hydra/sweeper/sampler=grid"]) == 2
    assert "error: a grid needs no search: leave hydra/sweeper=optuna out" in capsys.readouterr().err


@needs_optuna
def test_a_method_without_validation_images_has_no_objective():
    done = search("selection=val", "method=zero_shot", "seed=choice(1,2)", "hydra.sweeper.n_trials=1")
    assert done.returncode == 2
    assert "error: CLIP zero-shot learns nothing and has no validation images to search by" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: no trial of the search was finished, for the reasons above"


@pytest.mark.parametrize("selection", [(), ("selection=last",), ("selection=last,val",)])
def test_a_search_on_the_test_images_is_refused(capsys, tmp_path, selection):
    line = told(capsys, *SEARCH, *selection, "method=tip_adapter", "method.beta=interval(1,10)")
    assert line == ("error: a search on the test images is no honest result, and without selection=val there are no "
                    "validation images to search by: add it")
    assert not (tmp_path / "runs").exists()


def test_what_a_search_does_not_go_with_is_told(capsys, monkeypatch):
    assert "alone: leave it out of report" in told(capsys, "report", "runs=runs", "hydra/sweeper=optuna")
    assert told(capsys, "adapt", "hydra/sweeper=optuna", "selection=val").endswith("searches in a sweep: add -m")
    monkeypatch.setattr("xrvlm.cli.search.find_spec", lambda name: None)
    assert "pip install 'xrvlm[sweep]'" in told(capsys, *SEARCH, "selection=val")


def test_a_run_that_was_finished_before_has_no_objective_to_invent(tmp_path):
    from xrvlm.cli.search import objective
    from xrvlm.errors import UserError

    words = ("adapt", *TINY, "method=tip_adapter")
    assert main([*words, "selection=val"]) == 0
    record, = read_records(tmp_path / "runs")
    record.metrics.pop("val_top1")
    config = type("Config", (), {"selection": "val"})
    with pytest.raises(UserError, match="was finished before a run kept its top-1 on the validation images: add"):
        objective("adapt", config, lambda _: type("Run", (), {"record": record}))


def test_the_defaults_give_way_to_what_is_given():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    base = ["-m", "hydra/sweeper=optuna", "selection=val"]
    assert "hydra.sweeper.sampler.seed=1" in prepared("adapt", base)
    given = prepared("adapt", [*base, "hydra.sweeper.sampler.seed=7", "hydra.sweeper.n_jobs=2"])
    assert [each for each in given if each.startswith(("hydra.sweeper.sampler.seed", "hydra.sweeper.n_jobs"))] == [
        "hydra.sweeper.sampler.seed=7", "hydra.sweeper.n_jobs=2"]
    assert prepared("adapt", ["-m", "hydra/sweeper=basic"]) == ["-m", "hydra/sweeper=basic"]


def test_a_choice_of_names_is_no_name():
    assert quote("text.templates=choice(photo,birds)", sweep=True) == "text.templates=choice(photo,birds)"


def test_the_record_keeps_the_figure_it_was_chosen_by(tmp_path):
    assert main(["adapt", *TINY, "method=linear_probe", "selection=val"]) == 0
    assert main(["adapt", *TINY, "method=linear_probe", "val=true"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert ["val_top1" in line["metrics"] for line in lines] == [True, False]
