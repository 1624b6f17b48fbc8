"""Whole runs that are followed: by an object, in TensorBoard, in trackio, and through the calls of wandb."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import told
from photos import photo_folder
from slow import SLOW
from small_fit import Probe, Source, Tower

from xrvlm.cli.main import main
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features.source import FeatureSettings
from xrvlm.methods.base import Recipe
from xrvlm.methods.linear_probe import LinearProbe
from xrvlm.methods.residual_probe import ResidualProbe
from xrvlm.training import fit as fit_module
from xrvlm.training.fit import fit
from xrvlm.training.following import Follower, Tracker

pytestmark = pytest.mark.usefixtures("at_home")
SHORT = Recipe("short", epochs=3, batch_size=8)
TRACKERS = {"tensorboard", "trackio", "wandb", "optuna", "sqlalchemy"}


class Notes(Follower):
    """Writes down what it is told, and fails at what `failing` names."""

    def __init__(self, failing: str = ""):
        self.told, self.failing = [], failing

    def _note(self, *event):
        self.told.append(event)
        if event[0] == self.failing:
            raise OSError("no space left on the disk")

    def begin(self, folder, options, resumed):
        self._note("begin", folder, options, resumed)

    def epoch(self, entry):
        self._note("epoch", dict(entry))

    def finish(self, metrics):
        self._note("finish", dict(metrics))

    @property
    def events(self) -> list[str]:
        return [event[0] for event in self.told]


@pytest.fixture
def dataset(tmp_path):
    return image_folder(photo_folder(tmp_path / "birds", images=6))


def short_run(clip, dataset, method=ResidualProbe, *, recipe=SHORT, **options):
    return adapt(clip, dataset, method, shots=2, recipe=recipe,
                 options=RunOptions(features=FeatureSettings(views=1), **options))


@pytest.fixture
def stopped(monkeypatch):
    """A run is stopped after its second epoch until the function is called."""
    save, count = fit_module._save, []

    def interrupted(*arguments):
        save(*arguments)
        count.append(None)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_save", interrupted)
    return lambda: monkeypatch.setattr(fit_module, "_save", save)


def test_the_loop_calls_after_every_epoch_with_its_line():
    entries = []
    progress = fit(Probe(), Tower(), Source(), SHORT, seed=1, val=Source(), follow=entries.append)
    assert entries == progress.losses
    assert [sorted(entry) for entry in entries] == [["epoch", "learning_rate", "loss", "val_top1"]] * 3


def test_a_run_tells_its_options_its_epochs_and_its_figures(clip, dataset):
    notes = Notes()
    run = short_run(clip, dataset, follow=notes, selection="val")
    assert notes.events == ["begin", "epoch", "epoch", "epoch", "finish"]
    _, folder, options, resumed = notes.told[0]
    assert folder == run.folder and not resumed
    expected = {"method.name": "residual_probe", "recipe.epochs": 3, "recipe.learning_rate": 2e-3, "shots": 2,
                "seed": 1, "data.name": "birds", "backbone.name": clip.name, "selection": "val"}
    assert {key: options[key] for key in expected} == expected
    assert [entry["epoch"] for _, entry in notes.told[1:4]] == [0, 1, 2]
    assert notes.told[-1][1] == {**run.record.metrics, "train_seconds": run.record.train_seconds}
    assert run.record.metrics["val_top1"] == max(entry["val_top1"] for _, entry in notes.told[1:4])


def test_it_is_no_part_of_the_identity_and_a_finished_run_stays_finished(clip, dataset):
    notes = Notes()
    first = short_run(clip, dataset)
    again = short_run(clip, dataset, follow=notes)
    assert again.folder == first.folder and again.record == first.record
    assert notes.told == []
    forced = short_run(clip, dataset, follow=notes, force=True)
    assert forced.record.metrics == first.record.metrics
    assert forced.folder == first.folder


def test_a_method_without_epochs_tells_its_figures_alone(clip, dataset):
    notes = Notes()
    run = short_run(clip, dataset, LinearProbe, recipe=None, follow=notes, selection="val")
    assert notes.events == ["begin", "finish"]
    assert 0 <= run.record.metrics["val_top1"] <= 1


@pytest.mark.parametrize("failing", ["begin", "epoch", "finish"])
def test_a_follower_that_fails_is_warned_of_once_and_the_run_is_done(clip, dataset, caplog, failing):
    notes, alone = Notes(failing), short_run(clip, dataset, runs="alone")
    with caplog.at_level(logging.WARNING):
        run = short_run(clip, dataset, follow=notes)
    assert run.record.metrics == alone.record.metrics
    assert caplog.text.count("Notes follows this run no longer, which goes on (OSError: no space left") == 1
    assert notes.events.count(failing) == 1
    assert notes.events[-1] == "finish"


def test_a_stopped_run_ends_its_follower_and_goes_on_with_its_epochs(clip, dataset, stopped):
    first, second = Notes(), Notes()
    with pytest.raises(KeyboardInterrupt):
        short_run(clip, dataset, follow=first)
    assert first.events == ["begin", "epoch", "epoch", "finish"] and first.told[-1][1] == {}
    stopped()
    short_run(clip, dataset, follow=second)
    assert second.told[0][3]
    assert [entry["epoch"] for event, entry, *_ in second.told if event == "epoch"] == [2]


def test_what_is_no_follower_is_refused():
    for wrong in (print, Notes, "tensorbord"):
        with pytest.raises(UserError, match="follow must be none or tensorboard or trackio or wandb or a Follower"):
            RunOptions(follow=wrong)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_package_that_is_not_there_is_named_before_any_work(monkeypatch, name):
    for module in ("torch.utils.tensorboard", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    extra = "wandb" if name == "wandb" else r"xrvlm\[follow\]"
    with pytest.raises(UserError, match=f"follow='{name}' cannot import {name} .*: pip install '{extra}'"):
        RunOptions(follow=name)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    assert "_hparams_/session_start_info" in found.summary_metadata
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_is_read_back_also_of_a_run_that_was_stopped(clip, dataset, stopped):
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        short_run(clip, dataset, follow="tensorboard")
    stopped()
    run = short_run(clip, dataset, follow="tensorboard")
    place = Path("runs/tensorboard") / run.folder.name
    found = curves(place)
    assert [step for step, _ in found["loss"]] == [0, 1, 2]
    assert found["test/top1"] == [(2, pytest.approx(run.accuracy))]
    assert found["train_seconds"][0][1] == pytest.approx(run.record.train_seconds)
    # a run that starts again takes the place of the earlier curves
    short_run(clip, dataset, follow="tensorboard", force=True)
    assert [step for step, _ in curves(place)["loss"]] == [0, 1, 2]


TRACKIO = """
import json, sys
from xrvlm.cli.main import main
assert main(sys.argv[1:]) == 0
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
runs = [[run.name, dict(run.config), SQLiteStorage.get_logs("mine", run.name)] for run in Api().runs("mine")]
print(json.dumps(runs))
"""


@SLOW
def test_trackio_is_read_back(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))        # read when trackio is imported
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    photo_folder(tmp_path / "birds", images=6)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRACKIO, "adapt", "data.root=birds", "backbone=tiny", "device=cpu",
         "workers=0", "method=task_res", "recipe.epochs=2", "shots=2", "follow=trackio"],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line, folder, found = done.stdout.splitlines()                      # what trackio prints is not among the results
    assert "top-1" in line
    (name, config, logs), = json.loads(found)
    assert name == Path(folder).name
    assert (config["recipe.epochs"], config["shots"], config["method.name"]) == (2, 2, "task_res")
    assert [(entry["step"], entry["epoch"]) for entry in logs[:2]] == [(0, 0), (1, 1)]
    record = json.loads((tmp_path / folder / "record.json").read_text())
    assert logs[2]["test/top1"] == record["metrics"]["top1"]


@pytest.fixture
def wandb(monkeypatch):
    """A module with wandb's calls that writes them down."""
    calls = []
    made = SimpleNamespace(calls=calls, init=lambda **given: calls.append(("init", given)),
                           log=lambda entry, step=None: calls.append(("log", step, entry)),
                           finish=lambda: calls.append(("finish",)))
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_wandb_gets_the_same_by_its_calls(clip, dataset, wandb, monkeypatch, stopped):
    monkeypatch.setenv("WANDB_PROJECT", "birds of mine")
    with pytest.raises(KeyboardInterrupt):
        short_run(clip, dataset, follow="wandb")
    stopped()
    run = short_run(clip, dataset, follow=Tracker("wandb", project="other"))
    begun = [given for event, *(given, *_) in [call for call in wandb.calls if call[0] == "init"]]
    assert [(each["project"], each["resume"]) for each in begun] == [("birds of mine", None), ("other", "allow")]
    assert {each["id"] for each in begun} == {run.folder.name[-10:]}
    assert begun[0]["config"]["recipe.epochs"] == 3
    logged = [call[1:] for call in wandb.calls if call[0] == "log"]
    assert [step for step, _ in logged] == [0, 1, 2, None]
    assert logged[-1][1]["test/top1"] == run.accuracy
    assert [call[0] for call in wandb.calls].count("finish") == 2


def test_a_tracker_without_its_server_does_not_end_the_run(clip, dataset, wandb, caplog):
    def gone(*_, **__):
        raise ConnectionError("the server is gone")

    wandb.log = gone
    run = short_run(clip, dataset, follow="wandb")
    assert (run.folder / "record.json").exists()
    assert caplog.text.count("the server is gone") == 1
    assert [call[0] for call in wandb.calls] == ["init", "finish"]


def test_the_command_line_names_the_choices(tmp_path, capsys):
    photo_folder(tmp_path / "birds", images=6)
    line = told(capsys, "adapt", "data.root=birds", "backbone=tiny", "follow=tensorbord")
    assert "did you mean 'tensorboard'" in line


def test_off_imports_no_tracker(tmp_path):
    photo_folder(tmp_path / "birds", images=6)
    arguments = ("data.root=birds", "backbone=tiny", "device=cpu", "workers=0", "method=task_res", "recipe.epochs=1",
                 "shots=2")
    code = "import sys; from xrvlm.cli.main import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "adapt", *arguments], capture_output=True, text=True, check=True)
    assert "xrvlm.training.fit" in done.stdout
    assert not {name.split(".")[0] for name in done.stdout.split()} & TRACKERS
    assert "torch.utils.tensorboard" not in done.stdout


def test_the_line_of_the_learning_rates_of_a_soup_counts_on():
    entries = []
    fit(Probe(), Tower(), Source(), replace(SHORT, soup=(0.5, 1.0)), seed=1, follow=entries.append)
    assert [entry["epoch"] for entry in entries] == list(range(6))


def test_the_package_is_there_but_a_folder_of_its_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()                         # as wandb itself makes it in the working folder
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="pip install 'wandb'"):
        RunOptions(follow="wandb")
    sys.modules.pop("wandb", None)


def test_a_run_of_the_command_line_is_followed(tmp_path):
    pytest.importorskip("tensorboard")
    photo_folder(tmp_path / "birds", images=6)
    assert main(["adapt", "data.root=birds", "backbone=tiny", "device=cpu", "workers=0", "method=task_res",
                 "recipe.epochs=2", "shots=2", "follow=tensorboard", "selection=val"]) == 0
    place, = Path("runs/tensorboard").iterdir()
    found = curves(place)
    assert [step for step, _ in found["val_top1"]] == [0, 1]
    assert found["best_val_top1"][0][1] == max(value for _, value in found["val_top1"])
