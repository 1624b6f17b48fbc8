"""An int8 file is written only where it keeps its accuracy, and what it says of itself is true."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
import yaml
from command_line import TINY, told
from onnxruntime import InferenceSession
from photos import photo_folder
from slow import SLOW, slow
from towers import IMAGE_KINDS, images
from zoo import classes, factory

import xrvlm
from xrvlm import Classifier, UserError, export_onnx
from xrvlm.cli.main import main
from xrvlm.experiments.saved import SavedRun
from xrvlm.features.source import evaluation_batches
from xrvlm.inference import quantise
from xrvlm.inference.classifier import ModelHeader
from xrvlm.inference.quantise import needs_calibration, quantise_onnx


class Made(NamedTuple):
    folder: Path
    photos: Path
    before: Path                         # the float32 file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A calibrated run, so that the file has every kind of metadata."""
    home = tmp_path_factory.mktemp("int8")
    photos = photo_folder(home / "photos", images=20)
    assert main(["adapt", f"data.root={photos}", *TINY, "method=linear_probe", "shots=8", "calibrate=folds",
                 f"runs={home / 'runs'}", f"features.cache={home / 'cache'}", "features.views=0"]) == 0
    (folder,) = (path.parent for path in (home / "runs").rglob("record.json"))
    return Made(folder, photos, xrvlm.export(folder))


def ask(path: Path, batch: np.ndarray) -> list[np.ndarray]:
    """As anyone without xrvlm and torch would."""
    return InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": batch})    # type: ignore


def stored(path: Path) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def images_to_test(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    saved = SavedRun(folder)
    dataset, clip = saved.dataset(), saved.classifier(device="cpu").clip
    batches = [batch for _, batch in evaluation_batches(clip, dataset.source, dataset.split.test)]
    return torch.cat(batches).numpy(), np.array([item.label for item in dataset.split.test])


def test_typed_it_writes_a_file_whose_figures_are_true(made, capsys):
    assert main(["export", str(made.folder), "int8=true", "max_drop=50"]) == 0
    path = made.folder / "model.int8.onnx"
    told_of = capsys.readouterr()
    assert told_of.out.strip() == str(path)
    assert " points); same class on " in told_of.err
    batch, labels = images_to_test(made.folder)
    (_, before), (probabilities, after) = ask(made.before, batch), ask(path, batch)
    report = stored(path)["int8"]
    right = [float((logits.argmax(1) == labels).mean()) for logits in (before, after)]
    assert report["images"] == len(labels) > 10
    assert [report["float_top1"], report["int8_top1"]] == pytest.approx(right)
    assert report["drop"] == pytest.approx(100 * (right[0] - right[1]))
    assert report["agreement"] == pytest.approx((before.argmax(1) == after.argmax(1)).mean())
    known = stored(path)["known"]
    score = {"energy": lambda x: np.log(np.exp(x).sum(1)), "logit": lambda x: x.max(1),
             "probability": lambda x: (np.exp(x) / np.exp(x).sum(1, keepdims=True)).max(1)}[known["by"]]
    threshold = known["thresholds"][known["by"]]
    assert threshold is not None
    same = (score(before) >= threshold) == (score(after) >= threshold)
    assert report["known_agreement"] == pytest.approx(same.mean())
    assert report["float_bytes"] == made.before.stat().st_size
    assert 0 < path.stat().st_size - report["int8_bytes"] - len(json.dumps(report)) < 20
    assert path.stat().st_size < 0.4 * made.before.stat().st_size
    assert report["speedup"] > 0 and report["max_drop"] == 50 and report["calibration_images"] == 0
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5
    assert 0 < np.abs(after - before).max() < 0.2 * np.abs(before).max(), "another graph, of nearly the same numbers"


@SLOW
def test_all_that_the_float_file_says_of_itself_stays(made):
    path = xrvlm.export(made.folder, made.folder / "other.onnx", int8=True, max_drop=50.0)
    after, before = stored(path), stored(made.before)
    assert {"classes", "transform", "photo", "xrvlm", "known", "sets", "scaling"} <= set(before)
    del after["int8"]
    assert after == before


def spoiled(file: Path, to: Path, _calibration: Any) -> int:
    """A quantiser that rounds every matrix to zero."""
    graph = onnx.load(file)
    for entry in graph.graph.initializer:
        if len(entry.dims) == 2:
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(entry.dims, np.float32), entry.name))
    onnx.save(graph, to)
    return 0


@SLOW
def test_a_drop_is_refused_and_the_file_before_stays(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantise, "_quantise", spoiled)
    path = tmp_path / "birds.onnx"
    path.write_text("before")
    batch, labels = images_to_test(made.folder)
    right = (ask(made.before, batch)[1].argmax(1) == labels).mean()
    lost = 100 * (right - (labels == 0).mean())    # without its matrices it always says the first class
    assert lost > 20
    error = told(capsys, "export", str(made.folder), "int8=true", f"out={path}")
    assert f"in int8 top-1 drops by {lost:.1f} points" in error
    assert "allow more with a larger max_drop, or stay in float32 with int8=false" in error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert xrvlm.export(made.folder, path, int8=True, max_drop=100) == path
    assert stored(path)["int8"]["drop"] == pytest.approx(lost)


def test_what_the_run_learned_from_is_no_gate_and_what_has_changed_is_told(made, tmp_path, caplog):
    run, photos = shutil.copytree(made.folder, tmp_path / "run"), shutil.copytree(made.photos, tmp_path / "photos")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["loader"]["options"]["root"] = str(photos)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    split = json.loads((run / "split.json").read_text())
    tests, learned = [photos / entry["path"] for entry in split["test"]], photos / split["train"][0]["path"]
    shutil.copy(learned, tests[0])
    path = xrvlm.export(run, int8=True, max_drop=100.0)
    assert f"1 of {len(tests)} test images are not those that the run was measured on" in caplog.text
    assert f"left out 1 of {len(tests)} images: the run learned from them" in caplog.text
    assert stored(path)["int8"]["images"] == len(tests) - 1
    for test in tests:
        shutil.copy(learned, test)
    with pytest.raises(UserError, match="on test images that the run .* did not learn from, and there are none"):
        xrvlm.export(run, int8=True, max_drop=100.0)


@pytest.mark.parametrize(("options", "message"), [
    (("int8=5",), "int8 must be true or false, found 5"),
    (("int8=true", "max_drop=-1"), "max_drop must be a number of percentage points from 0 to 100, found -1"),
    (("int8=true", "max_drop=nan"), "max_drop must be a number of percentage points from 0 to 100, found nan"),
    (("int8=true", "max_drop=much"), "max_drop must be a number, found 'much'"),
    (("max_drop=2",), "max_drop is of int8 alone: add int8=true"),
    (("int8=true", "parts=image"), "parts are files without classes: leave one of the two out")])
def test_bad_values_are_told_before_the_work(made, capsys, options, message):
    assert message in told(capsys, "export", str(made.folder), *options)


def test_without_images_there_is_no_gate(made, tmp_path, capsys, monkeypatch):
    dataset = SavedRun(made.folder).dataset()
    with monkeypatch.context() as patched:
        patched.setattr(SavedRun, "dataset", lambda _: replace(dataset, split=replace(dataset.split, test=())))
        with pytest.raises(UserError, match="the run in .* has none: stay in float32 with int8=False"):
            xrvlm.export(made.folder, tmp_path / "a.onnx", int8=True)
    hidden = made.photos.rename(made.photos.with_name("hidden"))
    try:
        error = told(capsys, "export", str(made.folder), "int8=true", f"out={tmp_path / 'a.onnx'}")
    finally:
        hidden.rename(made.photos)
    assert "they cannot be read" in error and "stay in float32 with int8=false" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["timm efficientnet", *slow("vit", "resnet")])
def test_convolutions_are_calibrated_and_matrix_products_are_not(tmp_path, kind):
    clip, make = IMAGE_KINDS[kind]().clip, factory("zero_shot")
    method = make(clip, classes())
    method.prepare(clip, None)
    model = Classifier(clip, method, ModelHeader.of(clip, make, classes()))
    file = export_onnx(model, tmp_path / "float.onnx")
    size, convolutional = clip.transform.image_size, kind != "vit"
    assert needs_calibration(file) == convolutional
    batch = images(40, size, seed=3)
    truth = model.probabilities(batch).argmax(1)
    report = quantise_onnx(file, tmp_path / "int8.onnx", images(24, size).unbind(), [(batch, truth)], max_drop=100)
    assert report.calibration_images == (24 if convolutional else 0)
    assert report.float_top1 == 1
    operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert ("QuantizeLinear" in operators) == convolutional
    assert "MatMulInteger" in operators
    before, after = ask(file, batch.numpy())[1], ask(tmp_path / "int8.onnx", batch.numpy())[1]
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9
    assert np.abs(before - after).max() > 0


def test_what_cannot_be_quantised_is_told(tmp_path, made):
    path = tmp_path / "broken.onnx"
    path.write_bytes(made.before.read_bytes()[:3000])
    with pytest.raises(UserError, match="onnxruntime cannot quantise the graph .* stay in float32 with int8=False"):
        quantise_onnx(path, tmp_path / "int8.onnx", (), [])
    assert [each.name for each in tmp_path.iterdir()] == ["broken.onnx"]
