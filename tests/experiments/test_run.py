"""Whole runs on real files and a tiny tower: what they leave behind, and what happens when they are stopped."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import CLASSES, photo_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from towers import openclip_model, shaken, simple_tokenizer, tiny_vit

from xrvlm import files
from xrvlm.backbones import wrap_openclip
from xrvlm.data.folder import image_folder
from xrvlm.data.images import warn_of_near_copies
from xrvlm.distributed import Group
from xrvlm.errors import UserError
from xrvlm.experiments.evaluate import evaluate, score
from xrvlm.experiments.predict import predict
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt, zero_shot
from xrvlm.features.source import FeatureSettings
from xrvlm.files import FileSource
from xrvlm.inference.classifier import Classifier
from xrvlm.methods import XRVLM, CoOp, LinearProbe, ZeroShot
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.reporting.results import read_records
from xrvlm.text.class_text import class_text

SMALL = partial(XRVLM, image_parts=2, text_parts=2, context_length=3, hidden=8)
SHORT = replace(XRVLM.recipe, name="short", epochs=4, batch_size=5, warmup_epochs=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "my birds")


def other_tower():
    return wrap_openclip(shaken(openclip_model(), seed=5), simple_tokenizer(), name="other", device="cpu")


def options(place: Path, **changes) -> RunOptions:
    settings = FeatureSettings(cache=str(place / "cache"), views=2)
    return RunOptions(**({"runs": place / "runs", "features": settings} | changes))


def short_run(clip, photos, place, **changes):
    return adapt(clip, image_folder(photos), SMALL, shots=4, seed=1, recipe=SHORT, options=options(place, **changes))


def test_a_run_leaves_all_that_is_promised(clip, photos, tmp_path):
    run = short_run(clip, photos, tmp_path)
    names = {path.name for path in run.folder.iterdir() if path.name != ".lock"}
    assert names == {"config.yaml", "split.json", "model.safetensors", "metrics.json", "predictions.csv", "losses.csv",
                     "nearest.csv", "record.json"}
    line = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    assert line["run"] == run.folder.name
    expected = {"method": "xr_vlm", "head": "cross", "prompts": "learned", "recipe": "short", "data": "my birds",
                "world": None, "shots": 4, "seed": 1, "label_budget": 12, "transductive": False, "selection": "last",
                "features": "cached", "backbone": clip.name,
                "options": {"image_parts": 2, "text_parts": 2, "context_length": 3, "hidden": 8}}
    assert {key: line[key] for key in expected} == expected
    assert set(line["metrics"]) == {"top1", "top5", "mean_per_class", "macro_f1", "ece", "nll", "brier"}
    assert line["learned_parameters"] == sum(p.numel() for p in run.classifier.method.parameters()) > 0
    assert {"xrvlm", "torch", "open_clip_torch", "transformers"} <= set(line["versions"])
    with (run.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert line["metrics"]["top1"] == sum(row["label"] == row["prediction"] for row in rows) / 6
    assert len((run.folder / "losses.csv").read_text().splitlines()) == 1 + SHORT.epochs
    with safe_open(run.folder / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if "visual" in key or "clip" in key]       # noqa: SIM118


def test_the_same_seed_gives_the_same_numbers_whatever_the_workers(clip, photos, tmp_path):
    runs = [short_run(clip, photos, tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    assert runs[0].record.metrics == runs[1].record.metrics
    assert (runs[0].folder / "losses.csv").read_text() == (runs[1].folder / "losses.csv").read_text()
    other = adapt(clip, image_folder(photos), SMALL, shots=4, seed=2, recipe=SHORT, options=options(tmp_path / "0"))
    assert (other.folder / "losses.csv").read_text() != (runs[0].folder / "losses.csv").read_text()


def test_a_finished_run_is_reported_not_repeated(clip, photos, tmp_path):
    first = short_run(clip, photos, tmp_path)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "runs" / "results.jsonl").unlink()
    again = short_run(clip, photos, tmp_path)
    assert again.record == first.record
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert len(read_records(tmp_path / "runs")) == 1          # the line is written anew
    short_run(clip, photos, tmp_path, force=True)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns != stamp
    assert len(read_records(tmp_path / "runs")) == 1


def test_two_processes_do_not_share_a_run(clip, photos, tmp_path, straight):
    def again(*_):
        with pytest.raises(UserError, match="another process is at this run; wait for it, or choose another"):
            short_run(clip, photos, tmp_path, force=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xrvlm.experiments.run.write_losses", again)
        short_run(clip, photos, tmp_path)


def test_a_run_that_another_sweep_has_just_finished_is_not_repeated(clip, photos, tmp_path, monkeypatch):
    alone, others = Group.alone, []

    def late(group, lock_file, busy=None):
        if lock_file.parent.parent.name == "runs" and not others:
            others.append(None)
            others.append(short_run(clip, photos, tmp_path))
        return alone(group, lock_file, busy)

    monkeypatch.setattr(Group, "alone", late)
    assert short_run(clip, photos, tmp_path).record == others[1].record          # to the seconds that it took


@pytest.mark.parametrize("damage", ["record", "keys", "model"])
def test_a_finished_run_that_was_damaged_is_told_or_done_again(clip, photos, tmp_path, straight, damage):
    run = short_run(clip, photos, tmp_path)
    if damage == "model":
        (run.folder / "model.safetensors").unlink()
        assert_same_end(short_run(clip, photos, tmp_path), straight)
        return
    (run.folder / "record.json").write_text("{" if damage == "record" else '{"method": "x"}')
    with pytest.raises(UserError, match="start this run again with force=True"):
        short_run(clip, photos, tmp_path)
    assert_same_end(short_run(clip, photos, tmp_path, force=True), straight)


@pytest.mark.parametrize("change", ["shots", "seed", "recipe", "method", "selection", "text", "views", "photos",
                                    "tower"])
def test_a_run_has_an_identity(clip, photos, tmp_path, change):
    base = {"shots": 2, "seed": 1, "recipe": replace(SHORT, epochs=1), "text": class_text, "options": options(tmp_path)}
    changed, tower, method, folder = dict(base), clip, SMALL, photos
    if change in ("shots", "seed"):
        changed[change] = 3
    if change == "recipe":
        changed["recipe"] = replace(SHORT, epochs=1, weight_decay=0.1)
    if change == "method":
        method = partial(SMALL, context_length=2)
    if change == "selection":
        changed["options"] = options(tmp_path, selection="val")
    if change == "text":
        changed["text"] = partial(class_text, templates="birds")
    if change == "views":
        changed["options"] = replace(base["options"], features=FeatureSettings(cache=str(tmp_path / "cache"), views=1))
    if change == "photos":
        folder = photo_folder(tmp_path / "my birds", images=9)
    if change == "tower":
        tower = other_tower()
    one = adapt(clip, image_folder(photos), SMALL, **base)
    other = adapt(tower, image_folder(folder), method, **changed)
    assert one.folder != other.folder


def test_other_photos_of_the_same_names_are_another_run(clip, photos, tmp_path):
    one = short_run(clip, photos, tmp_path)
    other = photo_folder(tmp_path / "my birds")
    first, second = other / CLASSES[0] / "0.png", other / CLASSES[1] / "0.png"
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(swapped)
    assert short_run(clip, other, tmp_path).folder != one.folder


def test_seeds_and_shots_share_a_series(clip, photos, tmp_path):
    def series(seed=1, **changes):
        given = {"shots": 2, "recipe": SHORT, "options": options(tmp_path)} | changes
        return adapt(clip, image_folder(photos), SMALL, seed=seed, **given).record.series

    assert series() == series(seed=2) == series(shots=3) == series(shots=None)
    assert len({series(), series(recipe=replace(SHORT, epochs=2)), series(text=partial(class_text, templates="birds")),
                series(val=True)}) == 4


def test_only_seeds_share_a_setting(clip, photos, tmp_path):
    def setting(seed=1, **changes):
        given = {"shots": 2, "recipe": replace(SHORT, epochs=1), "options": options(tmp_path)} | changes
        return adapt(clip, image_folder(photos), SMALL, seed=seed, **given).record.setting

    assert setting() == setting(seed=2)
    assert len({setting(), setting(recipe=replace(SHORT, epochs=2)), setting(shots=3), setting(val=True),
                setting(text=partial(class_text, templates="birds"))}) == 5


def test_moving_the_photos_or_the_threads_is_no_other_run(clip, photos, tmp_path):
    moved = photo_folder(tmp_path / "elsewhere" / "my birds")
    one = short_run(clip, photos, tmp_path)
    two = adapt(clip, image_folder(moved), SMALL, shots=4, seed=1, recipe=SHORT,
                options=options(tmp_path, workers=2, features=FeatureSettings(cache=str(tmp_path / "other"), views=2)))
    assert one.folder == two.folder


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/experiments"]
import torch; torch.set_num_threads(1)
from test_run import short_run
from towers import tiny_vit
from xrvlm import files
replace, count = os.replace, 0
def counted(source, target):
    global count
    count += 1
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
files.os.replace = counted
run = short_run(tiny_vit(), Path({photos!r}), Path({place!r}))
print(count)
"""


def child(photos, place, at):
    code = CHILD.format(tests=str(Path(__file__).parents[1]), photos=str(photos), place=str(place), at=at)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module")
def straight(clip, photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("straight")
    return short_run(clip, photos, place)


def assert_same_end(run, straight):
    assert run.record.metrics == straight.record.metrics
    for name in ("losses.csv", "predictions.csv", "metrics.json", "split.json"):
        assert (run.folder / name).read_text() == (straight.folder / name).read_text(), name
    expected = straight.classifier.method.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in run.classifier.method.state_dict().items())


# the writes of a short run, in this order: split.json, a bank and its key, a checkpoint an epoch, the test bank and its
# key, metrics, predictions, losses, model, record, results
WRITES = 17


@pytest.mark.parametrize("at", [8, 15])
def test_a_run_that_is_killed_ends_with_the_same_numbers(clip, photos, tmp_path, straight, at):
    killed = child(photos, tmp_path, at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for path in tmp_path.rglob("*.safetensors"):
        if not path.name.startswith("."):                    # whatever stands under its own name is whole
            with safe_open(path, framework="pt") as file:
                assert list(file.keys())
    assert_same_end(short_run(clip, photos, tmp_path), straight)


WRITES_OF_FEATURES = (3, 4, 5, 6)


@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_a_full_disk_at_any_write_leaves_what_stood_before(clip, photos, tmp_path, straight, monkeypatch, at):
    count, original = 0, os.replace

    def full(source, target):
        nonlocal count
        count += 1
        if count == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    if at in WRITES_OF_FEATURES:             # the run goes on with a folder of its process
        assert_same_end(short_run(clip, photos, tmp_path), straight)
    else:
        with pytest.raises(UserError, match="No space left on device; free some space"):
            short_run(clip, photos, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."}
    assert not list(tmp_path.rglob(".*tmp*"))
    monkeypatch.setattr(files.os, "replace", original)
    assert_same_end(short_run(clip, photos, tmp_path), straight)
    for path, data in before.items():
        if path.name not in ("results.jsonl", "last.safetensors"):
            assert path.read_bytes() == data, path


def test_the_number_of_writes_is_what_the_tests_above_count_on(clip, photos, tmp_path, monkeypatch):
    names, original = [], os.replace
    monkeypatch.setattr(files.os, "replace", lambda source, target: (names.append(Path(target).name),
                                                                     original(source, target)))
    short_run(clip, photos, tmp_path)
    assert len(names) == WRITES, names
    assert {names[at - 1].partition("-")[0] for at in WRITES_OF_FEATURES} <= {"shard", "key.json"}, names


def test_zero_shot_scores_all_images_or_the_test_part(clip, photos, tmp_path):
    run = zero_shot(clip, image_folder(photos), options=options(tmp_path))
    assert (run.record.shots, run.record.label_budget, run.record.learned_parameters) == (0, 0, 0)
    assert len((run.folder / "predictions.csv").read_text().splitlines()) == 1 + 24
    assert run.record.protocol == "all_images", "no table beside scores on a test part"
    parts = tmp_path / "parts"
    photo_folder(parts / "train")
    photo_folder(parts / "test", images=2)
    run = zero_shot(clip, image_folder(parts), options=options(tmp_path))
    assert len((run.folder / "predictions.csv").read_text().splitlines()) == 1 + 6
    assert run.record.protocol == "few_shot"


def test_zero_shot_under_adapt_uses_no_label(clip, photos, tmp_path):
    run = adapt(clip, image_folder(photos), ZeroShot, options=options(tmp_path))
    assert (run.record.shots, run.record.label_budget) == (0, 0)
    assert run.record.prompts == "names"


def test_what_learns_nothing_asks_for_no_training_image(clip, photos, tmp_path, caplog):
    found = image_folder(photos)
    bare = replace(found, split=replace(found.split, train=(), test=found.split.train))
    assert adapt(clip, bare, "zero_shot", options=options(tmp_path)).record.label_budget == 0
    adapt(clip, found, "zero_shot", shots=16, options=options(tmp_path))
    assert "training images" not in caplog.text


def test_validation_images_are_labels_too(clip, photos, tmp_path):
    run = adapt(clip, image_folder(photos), LinearProbe, shots=2, val=True, options=options(tmp_path))
    assert run.record.label_budget == 3 * 4
    assert adapt(clip, image_folder(photos), LinearProbe, shots=2,
                 options=options(tmp_path)).record.label_budget == 3 * 2


def test_online_and_over_budget_runs_say_so(clip, photos, tmp_path):
    recipe = replace(CoOp.recipe, epochs=1)
    for features in (FeatureSettings(mode="online"), FeatureSettings(budget_gb=1e-9, cache=str(tmp_path))):
        run = adapt(clip, image_folder(photos), partial(CoOp, context_length=2), shots=2, recipe=recipe,
                    options=options(tmp_path, features=features))
        assert run.record.features == "online"


def test_a_model_labels_a_pil_image_a_file_and_a_folder(clip, photos, tmp_path, straight):
    loaded = Classifier.load(straight.folder, clip)
    file = next((photos / CLASSES[1]).iterdir())
    guesses = loaded.predict(file, topk=2)
    assert guesses == loaded.predict(Image.open(file), topk=2)
    assert len(guesses) == 2
    assert sum(chance for _, chance in loaded.predict(file)) == pytest.approx(1, abs=1e-5)
    model = loaded.save(tmp_path / "model.safetensors")
    lines = [str(each) for each in predict(model, photos, topk=1, out=tmp_path / "preds.csv", clip=clip)]
    assert len(lines) == 24
    with (tmp_path / "preds.csv").open(newline="") as csv_file:
        rows = {row["image"]: row for row in csv.DictReader(csv_file)}
    assert rows[f"{CLASSES[1]}/{file.name}"]["prediction"] == guesses[0][0]


@pytest.mark.parametrize(("text", "said"), [
    (lambda names: class_text(sorted(names, reverse=True)), "it returned the classes 'wren', "),
    (lambda names: class_text([*names, "emu"]), "it returned the classes "),
    (lambda names: list(names), "it returned \\["),
    (partial(lambda extra, names: class_text([*names, extra]), "emu"), "it returned the classes ")])
def test_text_of_other_classes_is_refused(clip, photos, tmp_path, text, said):
    with pytest.raises(UserError, match=f"text must return the ClassText of the classes that it is given, .*{said}"):
        adapt(clip, image_folder(photos), "zero_shot", text=text, options=options(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_text_of_a_function_is_taken(clip, photos, tmp_path):
    run = adapt(clip, image_folder(photos), "zero_shot", text=lambda names: class_text(names, templates="a {} here"),
                options=options(tmp_path))
    assert run.classifier.header.classes.prompts[0] == (f"a {run.classifier.names[0]} here",)


def changed_photos(tmp_path) -> tuple:
    """A finished run, and its test photos, as paths."""
    root = photo_folder(tmp_path / "photos", images=8)
    run = adapt(tiny_vit(), image_folder(root), "linear_probe", shots=4, options=options(tmp_path))
    split = json.loads((run.folder / "split.json").read_text())
    return run, root, split


def test_changed_test_photos_are_told_and_those_it_learned_from_left_out(clip, tmp_path, caplog):
    run, root, split = changed_photos(tmp_path)
    assert evaluate(run.folder, clip=clip).metrics == run.record.metrics | {"images": len(split["test"])}
    assert "not those" not in caplog.text
    first, second = (root / split["test"][index]["path"] for index in (0, -1))
    first.write_bytes((root / split["train"][0]["path"]).read_bytes())
    Image.new("RGB", (40, 40), "red").save(second)
    found = evaluate(run.folder, clip=clip)
    assert found.metrics["images"] == len(split["test"]) - 1
    assert f"2 of {len(split['test'])} test images are not those that the run was measured on" in caplog.text
    assert f"left out 1 of {len(split['test'])} images: the run learned from them" in caplog.text


@pytest.mark.parametrize("damage", [
    lambda split: split["train"][0].pop("sha256"), lambda split: split["train"][0].update(sha256="0"),
    lambda split: split["val"].append(3), lambda split: split.pop("train"), lambda split: split.update(test=None)])
def test_a_damaged_split_is_told(clip, tmp_path, damage):
    run, _, split = changed_photos(tmp_path)
    damage(split)
    (run.folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"split.json is (damaged|not a split): .*; give the command of that run again"):
        evaluate(run.folder, image_folder(photo_folder(tmp_path / "more", images=2)), clip=clip)


def test_evaluate_maps_the_classes_by_name(clip, photos, tmp_path, straight):
    dataset = image_folder(photos)
    all_items = dataset.split.train
    whole = score(straight.classifier, dataset, all_items, tmp_path / "a", features=options(tmp_path).features)
    fewer = photo_folder(tmp_path / "fewer", classes=CLASSES)
    for file in (fewer / CLASSES[0]).iterdir():
        file.unlink()
    (fewer / CLASSES[0]).rmdir()
    for file in (fewer / CLASSES[1]).iterdir():
        file.write_bytes((photos / CLASSES[1] / file.name).read_bytes())
    for file in (fewer / CLASSES[2]).iterdir():
        file.write_bytes((photos / CLASSES[2] / file.name).read_bytes())
    some = image_folder(fewer)
    part = score(straight.classifier, some, some.split.train, tmp_path / "b", features=options(tmp_path).features)
    with (tmp_path / "a" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["label"] != CLASSES[0]]
    assert whole["images"] == 24
    assert part["top1"] == pytest.approx(sum(row["label"] == row["prediction"] for row in kept) / len(kept))
    strange = image_folder(photo_folder(tmp_path / "strange", classes=("blue tit", "ostrich")))
    with pytest.raises(UserError, match=r"1 of 2 classes are unknown to this model \('ostrich'\)"):
        score(straight.classifier, strange, strange.split.train, tmp_path / "c")


def test_a_model_of_another_tower_class_or_method_is_refused(clip, straight, tmp_path):
    with pytest.raises(UserError, match="was adapted on .* (not on|fingerprint) .*: load that tower"):
        Classifier.load(straight.folder, other_tower())
    data = (straight.folder / "model.safetensors").read_bytes()
    for change, message in ((data[:-40], "is damaged or not a model"), (b"", "is damaged or not a model"),
                            (data.replace(b"xr_vlm", b"xr_vlq"), "unknown method 'xr_vlq'")):
        (tmp_path / "model.safetensors").write_bytes(change)
        with pytest.raises(UserError, match=message):
            Classifier.load(tmp_path, clip)
    with pytest.raises(UserError, match="no model at"):
        Classifier.load(tmp_path / "nothing", clip)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda about, tensors: about.pop("backbone"), "is damaged or not a model of xrvlm .KeyError: 'backbone'"),
    (lambda about, tensors: about["classes"].pop("prompts"), "is damaged or not a model of xrvlm .TypeError"),
    (lambda about, tensors: next(iter(tensors.values())).fill_(float("nan")), "holds numbers that are not finite"),
])
def test_a_model_changed_by_hand_is_refused_in_a_sentence(clip, straight, tmp_path, damage, message):
    with safe_open(straight.folder / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["xrvlm"])
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}    # noqa: SIM118
    damage(about, tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"xrvlm": json.dumps(about)})
    with pytest.raises(UserError, match=message):
        Classifier.load(tmp_path, clip)


def test_a_model_file_cannot_name_a_function_to_call(clip, straight, tmp_path):
    model = Classifier.load(straight.folder, clip)
    loader = {"name": "os.system", "options": {"command": f"touch '{tmp_path / 'called'}'"}}
    model.header = replace(model.header, backbone=replace(model.header.backbone, loader=loader))
    with pytest.raises(UserError, match="no loader of xrvlm's: do not use this file"):
        Classifier.load(model.save(tmp_path / "evil.safetensors"))
    assert not (tmp_path / "called").exists()


def test_a_tower_made_in_memory_must_be_passed(straight):
    with pytest.raises(UserError, match="pass it as `clip`"):
        Classifier.load(straight.folder)


def test_a_recipe_fits_its_method(tmp_path, caplog):
    folder = photo_folder(tmp_path / "photos", images=4)
    options = RunOptions(runs=tmp_path, features=FeatureSettings(cache=str(tmp_path / "cache"), views=1))
    with pytest.raises(UserError, match="CoOp is trained by steps, and recipe 'none' has no epochs: leave recipe and "
                                        "epochs out"):
        adapt(tiny_vit(), image_folder(folder), CoOp, shots=2, recipe=TRAINING_FREE, options=options)
    plain = adapt(tiny_vit(), image_folder(folder), LinearProbe, shots=2, options=options)
    same = adapt(tiny_vit(), image_folder(folder), LinearProbe, shots=2, recipe=CoOp.recipe, options=options)
    assert same.folder == plain.folder
    assert "is not trained by steps: recipe is not read" in caplog.text


def test_classes_without_a_test_image_are_named(tmp_path, caplog):
    folder = photo_folder(tmp_path / "photos", images=4)
    lone = sorted(path for path in folder.iterdir() if path.is_dir())[0]
    for photo in sorted(lone.iterdir())[1:]:
        photo.unlink()
    adapt(tiny_vit(), image_folder(folder), LinearProbe, shots=2,
          options=RunOptions(runs=tmp_path, features=FeatureSettings(cache=str(tmp_path / "cache"))))
    assert f"classes have no test image, the figures are of the others: {lone.name}" in caplog.text


def test_a_test_photo_that_is_a_training_photo_saved_anew_is_told(clip, tmp_path, caplog):
    for key, (subset, name, place) in enumerate(product(("train", "test"), ("jay", "wren"), range(4))):
        path = tmp_path / "birds" / subset / name / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(key).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(draws).resize((90, 70), Image.Resampling.BICUBIC).save(path)
    for name in ("jay", "wren"):
        photos = [Image.open(tmp_path / "birds" / "train" / name / f"{place}.png") for place in range(3)]
        photos[0].save(tmp_path / "birds" / "test" / name / "0.png", compress_level=0)
        photos[1].save(tmp_path / "birds" / "test" / name / "1.jpg", quality=75)
        photos[2].resize((140, 110)).save(tmp_path / "birds" / "test" / name / "2.webp")
    run = adapt(clip, image_folder(tmp_path / "birds"), LinearProbe, shots=None, options=options(
        tmp_path, features=FeatureSettings(views=0, cache=str(tmp_path / "cache"))))
    told = [record.getMessage() for record in caplog.records if "look the same" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("6 test images look the same as a training image (saved anew, in other sizes or formats)")
    assert "train/jay/1.png = test/jay/1.jpg" in told[0]
    assert run.record.images == 12


def test_a_photo_that_is_gone_when_copies_are_looked_for_stops_nothing(tmp_path, caplog):
    source = FileSource(photo_folder(tmp_path / "birds", images=2))
    warn_of_near_copies([(1.0, 0.5, "wren/0.png", "wren/gone.png"), (0.9, 0.0, "wren/0.png", "wren/1.png")], source)
    assert not caplog.records
