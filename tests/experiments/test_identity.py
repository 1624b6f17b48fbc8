"""What decides a run's identity: names, options and revisions; no path of a file and no source code."""

import json
import logging
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from photos import photo_folder

from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.experiments import record as record_module
from xrvlm.experiments.record import RunOptions, not_at_default
from xrvlm.experiments.run import adapt
from xrvlm.features import bank as bank_module
from xrvlm.features.source import FeatureSettings
from xrvlm.methods.base import Recipe
from xrvlm.methods.residual_probe import ResidualProbe
from xrvlm.methods.tip_adapter import TipAdapter
from xrvlm.reporting.results import read_records
from xrvlm.reporting.tables import tables
from xrvlm.training import fit as fit_module

pytestmark = pytest.mark.usefixtures("at_home")
SHORT = Recipe("short", epochs=3, batch_size=8)


@pytest.fixture
def dataset(tmp_path):
    return image_folder(photo_folder(tmp_path / "birds", images=6))


def short_run(clip, dataset, tmp_path, method=ResidualProbe, seed=1, **options):
    return adapt(clip, dataset, method, shots=2, seed=seed, recipe=SHORT,
                 options=RunOptions(runs=tmp_path / "runs", features=FeatureSettings(views=1), **options))


def raised(monkeypatch, which: str) -> None:
    if which == "method":
        monkeypatch.setattr(ResidualProbe, "revision", ResidualProbe.revision + 1)
    elif which == "training":
        monkeypatch.setattr(record_module, "TRAINING_REVISION", fit_module.TRAINING_REVISION + 1)
    else:
        monkeypatch.setattr(record_module, "FEATURES_REVISION", bank_module.FEATURES_REVISION + 1)


@pytest.mark.parametrize("which", ["method", "training", "features"])
def test_a_finished_run_of_an_earlier_revision_is_done_anew_and_says_why(clip, dataset, tmp_path, monkeypatch, caplog,
                                                                         which):
    caplog.set_level(logging.INFO)
    before = short_run(clip, dataset, tmp_path)
    raised(monkeypatch, which)
    caplog.clear()
    after = short_run(clip, dataset, tmp_path)
    assert after.folder != before.folder
    assert f"{before.folder} is of an earlier revision ({which} " in caplog.text
    assert "already finished" not in caplog.text
    assert after.record.revisions[which] == before.record.revisions[which] + 1
    assert short_run(clip, dataset, tmp_path).folder == after.folder


def test_a_half_trained_run_of_an_earlier_revision_is_not_resumed(clip, dataset, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    score, scored = fit_module.probabilities, []
    monkeypatch.setattr("xrvlm.experiments.run.write_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short_run(clip, dataset, tmp_path)
    (checkpoint,) = (tmp_path / "runs").rglob("last.safetensors")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path / "cache"))
    raised(monkeypatch, "training")
    run = short_run(clip, dataset, tmp_path)
    assert run.folder != checkpoint.parent
    assert checkpoint.exists()                           # the unfinished run of before is left as it was
    assert len((run.folder / "losses.csv").read_text().splitlines()) == 1 + SHORT.epochs
    assert not scored and score is fit_module.probabilities


def test_a_checkpoint_of_another_identity_is_refused(clip, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("xrvlm.experiments.run.write_scores", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        short_run(clip, dataset, tmp_path)
    (checkpoint,) = (tmp_path / "runs").rglob("last.safetensors")
    method = ResidualProbe(clip, _text(dataset))
    with pytest.raises(UserError, match="belongs to a run with other options"):
        fit_module.fit(method, clip, None, SHORT, seed=1, checkpoint=checkpoint, identity="another")


def _text(dataset):
    from xrvlm.text.class_text import class_text

    return class_text(dataset.split.classes)


def test_runs_of_two_revisions_are_two_rows_and_not_averaged(clip, dataset, tmp_path, monkeypatch):
    short_run(clip, dataset, tmp_path)
    raised(monkeypatch, "method")
    short_run(clip, dataset, tmp_path, seed=2)
    (table,) = tables(read_records(tmp_path / "runs"))
    assert len(table.rows) == 2
    assert [len(row.runs) for row in table.rows] == [1, 1]


def test_seeds_of_one_revision_are_one_row(clip, dataset, tmp_path):
    for seed in (1, 2):
        short_run(clip, dataset, tmp_path, seed=seed)
    (table,) = tables(read_records(tmp_path / "runs"))
    assert [len(row.runs) for row in table.rows] == [2]


@dataclass(frozen=True)
class Today:
    name: str
    size: int
    rate: float = 0.1


@dataclass(frozen=True)
class Tomorrow(Today):
    smooth: bool = False
    soup: tuple = field(default_factory=tuple)


def test_a_new_option_at_its_default_changes_no_identity():
    assert not_at_default(Today("a", 3)) == not_at_default(Tomorrow("b", 3)) == {"size": 3}
    assert not_at_default(Tomorrow("b", 3, smooth=True)) == {"size": 3, "smooth": True}


class WithOption(TipAdapter):
    def __init__(self, clip, classes, *, alpha: float = 1.0, beta: float = 5.5, trainable: bool = False,
                 gamma: float = 0.0):
        super().__init__(clip, classes, alpha=alpha, beta=beta, trainable=trainable)


WithOption.__module__ = TipAdapter.__module__


def test_a_new_option_of_a_method_at_its_default_is_the_same_run(clip, dataset, tmp_path):
    before = short_run(clip, dataset, tmp_path, TipAdapter)
    assert short_run(clip, dataset, tmp_path, WithOption).folder == before.folder
    assert short_run(clip, dataset, tmp_path, partial(WithOption, gamma=1.0)).folder != before.folder


def test_options_that_differ_make_other_runs(clip, dataset, tmp_path):
    first = short_run(clip, dataset, tmp_path)
    others = [short_run(clip, dataset, tmp_path, seed=2), short_run(clip, dataset, tmp_path, TipAdapter),
              adapt(clip, dataset, ResidualProbe, shots=2, recipe=replace(SHORT, learning_rate=0.1),
                    options=RunOptions(runs=tmp_path / "runs", features=FeatureSettings(views=1)))]
    assert len({run.folder for run in (first, *others)}) == 4


def test_a_recipe_of_another_name_is_the_same_run(clip, dataset, tmp_path):
    first = short_run(clip, dataset, tmp_path)
    again = adapt(clip, dataset, ResidualProbe, shots=2, recipe=replace(SHORT, name="other"),
                  options=RunOptions(runs=tmp_path / "runs", features=FeatureSettings(views=1)))
    assert again.folder == first.folder


def test_a_method_by_name_is_the_run_of_its_class(clip, dataset, tmp_path):
    assert (short_run(clip, dataset, tmp_path, "residual_probe").folder
            == short_run(clip, dataset, tmp_path, ResidualProbe).folder)
    record = json.loads((short_run(clip, dataset, tmp_path).folder / "record.json").read_text())
    assert record["method"] == "residual_probe"
    assert torch.is_tensor(short_run(clip, dataset, tmp_path).classifier.method.residual.weight)
