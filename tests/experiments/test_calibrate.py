"""Calibrated runs, from labels to answers: probabilities, unknown images, sets, the tree above the classes."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import photo_folder
from PIL import Image
from sklearn.metrics import roc_auc_score

from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.evaluation.calibration import Scaling
from xrvlm.experiments import calibrate as module
from xrvlm.experiments.calibrate import FOLDS
from xrvlm.experiments.evaluate import evaluate
from xrvlm.experiments.labelling.file import LabelFile
from xrvlm.experiments.predict import predict
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt, zero_shot
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.answers import Asked
from xrvlm.inference.classifier import Classifier
from xrvlm.inference.export import _metadata, export_onnx
from xrvlm.methods import XRVLM, LinearProbe
from xrvlm.training.folds import folds_of

CLASSES = ("lion", "tiger", "wolf")
TREE = {"cats": ["lion", "tiger"], "dogs": "wolf"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "beasts", images=24, classes=CLASSES)


@pytest.fixture
def run_of(clip, photos, tmp_path):
    def made(method="linear_probe", *, data=None, shots=12, runs="runs", **changes):
        given = {name: changes.pop(name) for name in tuple(changes) if name in ("protocol", "unknown", "recipe", "val")}
        options = RunOptions(runs=tmp_path / runs, features=FeatureSettings(cache=str(tmp_path / "cache"), views=1),
                             **changes)
        return adapt(clip, data or image_folder(photos), method, shots=shots, options=options, **given)
    return made


def figures_of(run) -> dict:
    return json.loads((run.folder / "calibration.json").read_text())


@pytest.mark.parametrize("by", ["folds", "val"])
def test_the_model_and_its_figures_are_scaled_and_the_labels_are_the_same(run_of, clip, photos, by):
    plain, run = run_of(), run_of(calibrate=by)
    found = figures_of(run)
    assert found["by"] == by and found["images"] == {"folds": 36, "val": 12}[by]
    assert run.record.metrics["ece_before"] == pytest.approx(found["before"]["ece"])
    assert run.record.metrics["nll"] == pytest.approx(found["after"]["nll"], abs=1e-5)
    assert run.record.calibrate == f"{by}, temperature"
    assert run.folder != plain.folder
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = Classifier.load(run.folder, clip)
    scaling = run.classifier.header.calibration.scaling
    logits = loaded.method.logits(clip.encode_image(images, loaded.method.needs), loaded.class_features)
    assert loaded.probabilities(images) == pytest.approx((logits / scaling.temperature).softmax(1), abs=1e-6)
    assert all(torch.equal(loaded.calibration.known[name], run.classifier.calibration.known[name])
               for name in ("probability", "logit", "energy"))
    again = evaluate(run.folder, clip=clip)                  # the same figures, from the file
    assert again.metrics["ece"] == pytest.approx(run.record.metrics["ece"], abs=1e-6)


def test_what_is_held_out_was_never_trained_on(run_of, monkeypatch):
    """Each fold's method gets the other folds' images alone, and is asked about its own."""
    seen = []
    monkeypatch.setattr(module, "learn", lambda method, clip, recipe, **given: seen.append(
        (set(given["train"].ids), set(given["test"].ids))) or method.prepare(clip, given["train"]))
    run = run_of(calibrate="folds")
    assert len(seen) == FOLDS
    assert all(not train & held for train, held in seen)
    assert sorted(name for _, held in seen for name in held) == sorted(
        item["path"] for item in json.loads((run.folder / "split.json").read_text())["train"])


def test_with_val_the_method_never_sees_it(run_of, monkeypatch):
    seen = []
    prepare = LinearProbe.prepare
    monkeypatch.setattr(LinearProbe, "prepare", lambda self, clip, support, val=None: (
        seen.append(val), prepare(self, clip, support, val))[1])
    run_of(calibrate="val")
    assert seen == [None]


def test_folds_are_trained_with_what_the_whole_chose(run_of, monkeypatch):
    chosen = []
    prepare = LinearProbe.prepare
    monkeypatch.setattr(LinearProbe, "prepare", lambda self, clip, support, val=None: (
        prepare(self, clip, support, val), chosen.append(self.chosen))[0])
    run_of(calibrate="folds")
    assert len(chosen) == 1 + FOLDS and len(set(chosen)) == 1


def test_a_run_that_is_stopped_among_its_folds_goes_on(run_of, monkeypatch, tmp_path):
    method = partial(XRVLM, image_parts=2, text_parts=2, context_length=2, hidden=8)
    given = {"calibrate": "folds", "shots": 4, "recipe": {"epochs": 1, "warmup_epochs": 0}}
    straight = run_of(method, runs="straight", **given)
    learn, calls = module.learn, []

    def stopped(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*args, **more)

    monkeypatch.setattr(module, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_of(method, **given)
    folder = next((tmp_path / "runs").glob("xr_vlm-*"))
    assert (folder / "folds.safetensors").exists()
    run = run_of(method, **given)
    assert len(calls) == 3 + FOLDS - 2                       # two folds were finished
    assert not (folder / "folds.safetensors").exists()
    assert figures_of(run) == figures_of(straight)


def test_zero_shot_is_calibrated_without_folds_and_counts_the_labels(run_of, monkeypatch):
    monkeypatch.setattr(module, "learn", None)
    run = run_of("zero_shot", calibrate="folds")
    assert (run.record.label_budget, run.record.shots, figures_of(run)["images"]) == (36, 12, 36)


def test_vector_scaling(run_of, clip):
    run = run_of(calibrate="folds", scaling="vector")
    scaling = Classifier.load(run.folder, clip).header.calibration.scaling
    assert len(scaling.weight) == len(scaling.bias) == 3 and run.record.calibrate == "folds, vector"
    assert evaluate(run.folder, clip=clip).metrics["nll"] == pytest.approx(run.record.metrics["nll"], abs=1e-5)


def test_base_to_new_scales_the_new_classes_by_the_temperature_alone(run_of, tmp_path):
    data = image_folder(photo_folder(tmp_path / "four", images=16, classes=("ape", "bat", "cat", "dog")))
    plain, run = (run_of("zero_shot", data=data, protocol="base_to_new", shots=8, **more)
                  for more in ({}, {"calibrate": "folds", "scaling": "vector"}))
    assert run.record.metrics["new_top1"] == plain.record.metrics["new_top1"]        # no prediction of theirs changes
    assert run.record.metrics["all_top1"] == plain.record.metrics["all_top1"]


def test_other_classes_keep_the_temperature_alone(run_of, clip, photos):
    run = run_of("zero_shot", calibrate="folds", scaling="vector")
    image = next(photos.rglob("*.png"))
    found = predict(run.folder, image, classes=["cat", "dog"], clip=clip)[0]
    assert not found.unknown and found.known is None
    with pytest.raises(UserError, match="of the classes that it was trained on"):
        predict(run.folder, image, classes=["cat", "dog"], clip=clip, asked=Asked(coverage=0.9))


@pytest.mark.parametrize(("changes", "message"), [
    ({"calibrate": "val", "selection": "val"}, "chose nothing else"),
    ({"calibrate": "val", "shots": None, "val": True, "_few": True}, "needs validation images"),
    ({"calibrate": "folds", "shots": 1}, "cross-validation needs two classes with two"),
])
def test_images_that_cannot_calibrate(run_of, tmp_path, changes, message):
    given = dict(changes)
    data = image_folder(photo_folder(tmp_path / "few", images=2, classes=CLASSES)) if given.pop("_few", False) else None
    with pytest.raises(UserError, match=message):
        run_of(data=data, **given)


def test_a_zero_shot_run_has_no_label_to_calibrate_on(clip, photos, tmp_path):
    with pytest.raises(UserError, match="adapt"):
        zero_shot(clip, image_folder(photos), options=RunOptions(runs=tmp_path, calibrate="folds"))


def test_folds_are_no_measure_of_a_transductive_method(run_of):
    with pytest.raises(UserError, match="TransCLIP reads the images that it is asked about.*calibrate.*val"):
        run_of("trans_clip", calibrate="folds")
    assert figures_of(run_of("trans_clip", calibrate="val"))["by"] == "val"


def test_a_method_with_its_own_probabilities_is_refused(run_of):
    class Own(LinearProbe):
        def class_probabilities(self, x, class_features, among=None):
            return self.logits(x, class_features).sigmoid()

    with pytest.raises(UserError, match="makes its probabilities without logits"):
        run_of(Own, calibrate="folds")


def test_predict_says_unknown_and_gives_sets(run_of, clip, photos, tmp_path):
    run = run_of(calibrate="folds")
    calibration = run.classifier.calibration
    files = sorted(photos.rglob("*.png"))
    some = predict(run.folder, files, clip=clip, asked=Asked(known=0.5, coverage=0.8), out=tmp_path / "a.csv")
    for each in some:
        assert each.unknown == (each.known < calibration.threshold("energy", 0.5))
        assert each.prediction == ("unknown" if each.unknown else each.classes[0][0])
        assert each.classes[0][0] == each.held[0]            # the most probable class is always held
    assert 0 < sum(each.unknown for each in some) < len(some)
    nobody = predict(run.folder, files, clip=clip, asked=Asked(known=None, coverage=0.8))
    assert not any(each.unknown for each in nobody)
    whole = predict(run.folder, files[:3], clip=clip, asked=Asked(coverage=0.999))     # more than 36 images can promise
    assert all(len(each.held) == 3 for each in whole)


def stopping(add, after: int):
    count = []

    def added(self, prediction):
        if len(count) == after:
            raise KeyboardInterrupt
        count.append(1)
        add(self, prediction)

    return added


def test_the_files_hold_it_all_and_are_continued(run_of, clip, photos, tmp_path, monkeypatch):
    run = run_of(calibrate="folds")
    files, asked = sorted(photos.rglob("*.png"))[:6], Asked(known=0.5, coverage=0.8)
    wanted = predict(run.folder, files, clip=clip, asked=asked)
    for name in ("labels.csv", "labels.jsonl"):
        path = tmp_path / name
        predict(run.folder, files, clip=clip, asked=asked, out=path)
        whole = path.read_text()
        path.unlink()
        with monkeypatch.context() as patch:                 # stopped after some lines, begun again
            patch.setattr(LabelFile, "add", stopping(LabelFile.add, after=4))
            with pytest.raises(KeyboardInterrupt):
                predict(run.folder, files, clip=clip, asked=asked, out=path)
        part = next(tmp_path.glob(f"{name}.*.part"))
        assert len(part.read_text().splitlines()) == (5 if name.endswith("csv") else 4)
        predict(run.folder, files, clip=clip, asked=asked, out=path)
        assert path.read_text() == whole
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    for row, line, each in zip(rows, lines, wanted, strict=True):
        assert row["prediction"] == line["prediction"] == each.prediction
        assert float(row["known"]) == line["known"] == pytest.approx(each.known, abs=1e-6)
        assert tuple(json.loads(row["set"])) == tuple(line["set"]) == each.held
        assert line["unknown"] == each.unknown and row["taxon"] == "" and line["taxon"] is None


@pytest.mark.parametrize(("asked", "message"), [
    ({"coverage": 1.0}, "coverage is a share"), ({"known": 0.0}, "known is a share"), ({"certainty": 2.0}, "certainty"),
])
def test_shares_out_of_range(asked, message):
    with pytest.raises(UserError, match=message):
        Asked(**asked)


def test_a_model_that_is_not_calibrated_says_so(run_of, clip, photos):
    with pytest.raises(UserError, match="not calibrated: adapt with .*folds"):
        predict(run_of().folder, photos, clip=clip, asked=Asked(coverage=0.9))


@pytest.mark.parametrize(("asked", "message"), [
    ({"sets": "aps"}, "sets='?aps'? is not read without coverage"),
    ({"known_by": "logit", "known": None}, "is not read with known"),
])
def test_what_nothing_would_read_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        Asked(**asked)


def test_what_a_run_without_a_calibration_does_not_read(run_of, clip, photos):
    for changes in ({"scaling": "vector"}, {"known_by": "logit"}):
        with pytest.raises(UserError, match="not read without a calibration"):
            run_of(**changes)
    with pytest.raises(UserError, match="not calibrated"):
        predict(run_of().folder, photos, clip=clip, asked=Asked(known=0.5))


def test_a_prediction_is_in_its_own_set(run_of, clip, photos):
    run = run_of(calibrate="folds", scaling="vector")
    header = run.classifier.header.calibration
    far = replace(header, scaling=Scaling(1.0, (1.0, 1.0, 1.0), (50.0, 0.0, 0.0)))       # always the first class
    model = Classifier(clip, run.classifier.method, replace(run.classifier.header, calibration=far),
                       run.classifier.calibration)
    path = model.save(run.folder.parent / "far")
    for each in predict(path, photos, clip=clip, asked=Asked(known=None, coverage=0.3)):
        assert each.prediction == "lion" and "lion" in each.held


def test_a_file_of_labels_is_of_one_model(run_of, clip, photos, tmp_path, monkeypatch):
    files = sorted(photos.rglob("*.png"))[:6]
    one, other = (run_of("clip_adapter", shots=2, runs=f"runs{epochs}", recipe={"epochs": epochs, "warmup_epochs": 0})
                  for epochs in (1, 9))
    asked = {"classes": ["cat", "dog"], "clip": clip, "out": tmp_path / "labels.csv"}
    with monkeypatch.context() as patch:
        patch.setattr(LabelFile, "add", stopping(LabelFile.add, after=4))
        with pytest.raises(KeyboardInterrupt):
            predict(one.folder, files, **asked)
    predict(other.folder, files, **asked)
    mixed = (tmp_path / "labels.csv").read_text()
    predict(other.folder, files, **asked | {"out": tmp_path / "alone.csv"})
    assert mixed == (tmp_path / "alone.csv").read_text()


def test_a_class_that_is_called_unknown(run_of, clip, tmp_path):
    data = photo_folder(tmp_path / "odd", images=24, classes=("unknown", "wolf"))
    run = run_of(data=image_folder(data), calibrate="folds")
    with pytest.raises(UserError, match="a class is called 'unknown'"):
        predict(run.folder, data, clip=clip)
    assert predict(run.folder, data, clip=clip, asked=Asked(known=None))


def tree_file(folder: Path) -> Path:
    path = folder / "tree.json"
    path.write_text(json.dumps(TREE))
    return path


def test_the_deepest_node_that_is_sure(run_of, clip, photos, tmp_path):
    run = run_of(data=image_folder(photos, hierarchy=tree_file(tmp_path)))
    assert {"level_0", "level_1", "mistake_severity", "hierarchical_precision"} <= run.record.metrics.keys()
    assert run.record.metrics["level_1"] == pytest.approx(run.record.metrics["top1"])
    assert run.record.metrics["level_0"] >= run.record.metrics["level_1"]
    for each in predict(run.folder, photos, clip=clip, asked=Asked(certainty=0.7)):
        chances = dict(each.classes)
        cats = chances["lion"] + chances["tiger"]
        best = max(chances.items(), key=lambda pair: pair[1])
        wanted = best if best[1] >= 0.7 else ("cats", cats) if cats >= 0.7 else None
        if wanted is None:
            assert each.taxon[0] in ("", "dogs")
        else:
            assert each.taxon[0] in ((wanted[0], "dogs") if wanted[0] == "wolf" else (wanted[0],))
            assert each.taxon[1] == pytest.approx(wanted[1], abs=1e-5)
    plain = run_of()
    with pytest.raises(UserError, match="no hierarchy"):
        predict(plain.folder, photos, clip=clip, asked=Asked(certainty=0.7))


def test_nested_folders_are_a_tree(run_of, tmp_path):
    root = tmp_path / "nested"
    photo_folder(root / "cats", images=8, classes=("lion", "tiger"))
    photo_folder(root / "dogs", images=8, classes=("wolf", "fox"))
    with pytest.raises(UserError, match="hierarchy.*folders"):
        image_folder(root)
    data = image_folder(root, hierarchy="folders")
    assert data.split.classes == ("fox", "lion", "tiger", "wolf")
    assert data.hierarchy == {"cats": "", "lion": "cats", "tiger": "cats", "dogs": "", "wolf": "dogs", "fox": "dogs"}
    assert "level_0" in run_of(data=data, shots=4).record.metrics


@pytest.mark.parametrize(("text", "message"), [
    ('{"cats": ["lion", "tiger"]}', "lacks 1 of 3 classes, such as 'wolf'"),
    ('{"cats": ["lion", "tiger"], "dogs": ["wolf", "lion"]}', "'lion' has two parents"),
    ('{"lion": ["tiger", "wolf"]}', "is a class and stands above"),
    ('{"cats": {"lion": ["cats"]}, "wolf": 3}', "no name|two parents|circle"),
    ("nonsense", "is no JSON"),
    ('["lion", "tiger", "wolf"]', "no node above any class"),
])
def test_trees_that_are_none(photos, tmp_path, text, message):
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        image_folder(photos, hierarchy=path)


def test_a_tree_as_a_table(photos, tmp_path):
    path = tmp_path / "tree.csv"
    path.write_text("class,family,order\nlion,cats,animals\ntiger,cats,animals\nwolf,,animals\n")
    assert image_folder(photos, hierarchy=path).hierarchy == {
        "lion": "cats", "tiger": "cats", "cats": "animals", "wolf": "animals", "animals": ""}


def test_open_set_with_half_of_the_classes(run_of, tmp_path):
    data = image_folder(photo_folder(tmp_path / "four", images=16, classes=("ape", "bat", "cat", "dog")))
    run = run_of(data=data, protocol="open_set", shots=8)
    assert run.classifier.names == ("ape", "bat")
    found = json.loads((run.folder / "open_set.json").read_text())
    assert {"probability", "logit", "energy", "gl_mcm"} <= found.keys()
    assert (found["images"], found["unknown"]) == (8, 8)
    assert run.record.metrics["auroc"] == found["energy"]["auroc"]
    other = run_of(data=data, protocol="open_set", shots=8, known_by="logit")
    assert other.folder != run.folder and other.record.metrics["auroc"] == found["logit"]["auroc"]


def strange(folder: Path, classes) -> Path:
    """Photos as of `photo_folder`, upside down: others, byte for byte."""
    for path in photo_folder(folder, images=5, classes=classes).rglob("*.png"):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    return folder


def test_open_set_with_a_folder_of_strangers(run_of, clip, photos, tmp_path):
    strangers = strange(tmp_path / "strangers", ("oak", "elm"))
    run = run_of(protocol="open_set", unknown=strangers, known_by="probability")
    assert run.classifier.names == CLASSES
    known = [max(dict(each.classes).values()) for each in predict(
        run.folder, [photos / item["path"] for item in json.loads((run.folder / "split.json").read_text())["test"]],
        clip=clip)]
    unknown = [max(dict(each.classes).values()) for each in predict(run.folder, strangers, clip=clip)]
    wanted = roc_auc_score([1] * len(known) + [0] * len(unknown), known + unknown)
    assert run.record.metrics["auroc"] == pytest.approx(wanted)


def test_strangers_that_are_none(run_of, photos, tmp_path):
    named = strange(tmp_path / "named", ("Lion", "oak"))
    with pytest.raises(UserError, match="Lion in .* is called as a class"):
        run_of(protocol="open_set", unknown=named)
    copied = strange(tmp_path / "copied", ("oak", "elm"))
    (copied / "oak" / "copy.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    with pytest.raises(UserError, match="1 of 11 strangers are images of beasts"):
        run_of(protocol="open_set", unknown=copied)
    with pytest.raises(UserError, match="read with protocol"):
        run_of(unknown=named)


def largest_of(run, prediction) -> float:
    """The largest probability before it was scaled."""
    chances = torch.tensor([chance for _, chance in prediction.classes], dtype=torch.float64)
    return (chances.log() * run.classifier.header.calibration.scaling.temperature).softmax(0).max().item()


def test_positions_tell_too(run_of, clip, photos):
    run = run_of(calibrate="folds", known_by="gl_mcm")
    assert _metadata(run.classifier)["known"].startswith('{"share": 0.95, "by": "energy"')       # no positions come out
    found = predict(run.folder, photos, clip=clip, asked=Asked(known=0.5))
    assert all(0 < each.known - largest_of(run, each) <= 1 for each in found)
    assert 0 < sum(each.unknown for each in found) < len(found)


def test_an_exported_file_says_all_of_it_without_xrvlm(run_of, clip, photos, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    run = run_of(calibrate="folds", scaling="vector", data=image_folder(photos, hierarchy=tree_file(tmp_path)))
    session = ort.InferenceSession(str(export_onnx(run.classifier, tmp_path / "model.onnx")))
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()
             if name in ("classes", "known", "sets", "scaling", "hierarchy")}
    from xrvlm.views import evaluation_view, read_image
    files = sorted(photos.rglob("*.png"))[::5]
    images = np.stack([evaluation_view(read_image(path), clip.transform).numpy() for path in files])
    chances, logits = session.run(None, {"images": images})
    raw = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    raw /= raw.sum(1, keepdims=True)
    scaled = logits / about["scaling"]["temperature"] * about["scaling"]["weight"] + about["scaling"]["bias"]
    assert np.exp(scaled - scaled.max(1, keepdims=True)).argmax(1).tolist() == chances.argmax(1).tolist()
    wanted = predict(run.folder, files, clip=clip, asked=Asked(coverage=0.8, certainty=0.6))
    for index, each in enumerate(wanted):
        assert about["known"]["by"] == "energy"
        energy = np.log(np.exp(logits[index].astype(float)).sum())
        assert (energy < about["known"]["thresholds"]["energy"]) == each.unknown
        held = 1 - raw[index] <= about["sets"]["lac"]["0.8"]
        held[chances[index].argmax()] = True
        assert {name for name, there in zip(about["classes"], held, strict=True) if there} == set(each.held)
        cats = sum(chance for name, chance in zip(about["classes"], chances[index], strict=True)
                   if about["hierarchy"][name] == "cats")
        if each.taxon[0] == "cats":
            assert cats == pytest.approx(each.taxon[1], abs=1e-4)


def test_a_scaling_that_was_changed_by_hand_is_refused(run_of, clip):
    from safetensors import safe_open
    from safetensors.torch import save_file

    run = run_of(calibrate="folds")
    path = run.folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header, tensors = json.loads(file.metadata()["xrvlm"]), {key: file.get_tensor(key) for key in file.keys()}    # noqa: SIM118

    def written(change, drop=()):
        save_file({name: value for name, value in tensors.items() if name not in drop}, path,
                  {"xrvlm": json.dumps(header | {"calibration": header["calibration"] | change})})

    for change, drop in (({"scaling": {"temperature": -1.0, "weight": [], "bias": []}}, ()),
                         ({"scaling": {"temperature": 1.0, "weight": [1.0], "bias": [1.0]}}, ()), ({"images": 3}, ()),
                         ({"known_by": "luck"}, ()), ({}, ("calibration.misfit.lac",)), ({"more": 1}, ())):
        written(change, drop)
        with pytest.raises(UserError, match="damaged"):
            Classifier.load(run.folder, clip)


def test_the_folds_are_those_of_compare(photos):
    dataset = image_folder(photos)
    fold = folds_of(dataset.split.train, dataset.source, FOLDS, 1)
    assert set(fold.tolist()) == set(range(FOLDS))
