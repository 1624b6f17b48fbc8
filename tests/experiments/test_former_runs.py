"""Runs from before methods, towers and data sets were saved by registry name: what they hold is still read."""

import json
import shutil
from pathlib import Path

import pytest
from photos import photo_folder
from slow import slow

import xrvlm
from xrvlm.cli.main import main
from xrvlm.inference.classifier import Classifier

FORMER = Path(__file__).parents[1] / "fixtures" / "runs_before_registry"
OPTIONS = ("backbone=tiny", "device=cpu", "workers=0", "shots=2", "features.views=1", "recipe.epochs=2")
NAMES = sorted(path.name for path in FORMER.iterdir() if path.is_dir())

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture
def runs(tmp_path):
    """The folders of two runs as they were left, with photos where their configurations say."""
    photos = photo_folder(tmp_path / "birds", images=6)
    shutil.copytree(FORMER, tmp_path / "runs")
    for config in (tmp_path / "runs").rglob("config.yaml"):
        config.write_text(config.read_text().replace("@PHOTOS@", str(photos)))
    return tmp_path / "runs"


@pytest.mark.parametrize("name", NAMES)
def test_the_model_opens_and_names_its_method_as_the_registry_does(runs, name):
    classifier = Classifier.load(runs / name, device="cpu")
    assert classifier.header.method.name == name.partition("-")[0]
    saved = classifier.save(runs / "again.safetensors")
    assert Classifier.load(saved, classifier.clip).header == classifier.header


@pytest.mark.parametrize("name", NAMES)
def test_it_is_scored_again_with_the_figures_that_it_had(runs, name):
    before = json.loads((runs / name / "record.json").read_text())["metrics"]
    found = xrvlm.evaluate(runs / name, device="cpu")
    assert {key: found.metrics[key] for key in before} == pytest.approx(before, abs=1e-6)
    before = (runs / name / "predictions.csv").read_text().splitlines()
    after = (found.folder / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in after] == [line.split(",")[:4] for line in before]


@pytest.mark.parametrize("name", [*slow(*NAMES[1:]), NAMES[0]])
def test_it_labels_photos_and_is_exported(runs, name, tmp_path):
    (prediction,) = xrvlm.predict(runs / name, tmp_path / "birds" / "wren" / "0.png", device="cpu")
    assert len(prediction.classes) == 3
    pytest.importorskip("onnxruntime")
    assert xrvlm.export(runs / name).name == "model.onnx"


def test_it_is_explained(runs):
    made = xrvlm.explain(runs / next(name for name in NAMES if name.startswith("xr_vlm")), device="cpu", pictures=False)
    assert (made.folder / "explanations.json").exists()


def test_it_stands_in_a_report(runs):
    made = xrvlm.report(runs, photos=True)
    assert "XR-VLM" in made.table and "Tip-Adapter-F" in made.table
    assert "data:image/" in made.html.read_text()


def test_it_is_trained_anew_and_the_reason_is_said(runs, tmp_path, capfd):
    (name,) = (name for name in NAMES if name.startswith("tip_adapter"))
    assert main(["adapt", str(tmp_path / "birds"), f"runs={runs}", "method=tip_adapter_f", "text.templates=birds",
                 "recipe.by_step=false", "recipe.eps=1e-8", *OPTIONS]) == 0      # the recipe of then
    err = capfd.readouterr().err
    assert f"{runs / name} is of an earlier revision" in err
    anew = [path for path in runs.glob("tip_adapter-*") if path.name != name]
    assert len(anew) == 1
    before, after = (json.loads((path / "metrics.json").read_text())["summary"] for path in (runs / name, anew[0]))
    assert {name: after[name] for name in before} == pytest.approx(before, abs=1e-6)
