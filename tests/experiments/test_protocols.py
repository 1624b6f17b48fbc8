"""Base-to-new runs on real files and a tiny tower: what is trained on, what is measured, and what is written down."""

import csv
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from photos import photo_folder

from xrvlm.data.dataset import Item, Split, with_test_set
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.evaluation.metrics import harmonic_mean
from xrvlm.experiments.evaluate import score
from xrvlm.experiments.protocols import base_half
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.experiments.saved import read_split
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.classifier import Classifier
from xrvlm.methods import XRVLM, CoOp, LinearProbe, ZeroShot
from xrvlm.methods.base import Method
from xrvlm.reporting.results import read_records
from xrvlm.text.class_text import class_text

BIRDS = ("auk", "emu", "jay", "kite", "wren")
BASE, NEW = BIRDS[:3], BIRDS[3:]
PER_CLASS = partial(XRVLM, head="per_class", image_parts=2, text_parts=2, context_length=2, context="shared")
COOP = partial(CoOp, context_length=2)
SHORT = replace(XRVLM.recipe, name="short", epochs=3, batch_size=4, warmup_epochs=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "birds", images=6, classes=BIRDS)


def options(place, **changes) -> RunOptions:
    return RunOptions(runs=place / "runs", features=FeatureSettings(cache=str(place / "cache"), views=1), **changes)


def base_to_new(clip, photos, place, method=PER_CLASS, **changes):
    return adapt(clip, image_folder(photos), method, **({"shots": 2, "recipe": SHORT, "protocol": "base_to_new",
                                                         "options": options(place)} | changes))


@pytest.fixture(scope="module")
def run(clip, photos, tmp_path_factory):
    return base_to_new(clip, photos, tmp_path_factory.mktemp("straight"))


def rows(file) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def accuracy(file) -> float:
    found = rows(file)
    return sum(row["label"] == row["prediction"] for row in found) / len(found)


def test_the_base_half_is_rounded_up_and_keeps_its_images_alone():
    items = tuple(Item(f"{label}/{i}", label) for label in range(5) for i in range(2))
    half = base_half(Split(BIRDS, train=items[::2], val=items[1:4:2], test=items[1::2]))
    assert half.classes == BASE
    assert [item.label for item in (*half.train, *half.val, *half.test)] == [0, 1, 2, 0, 1, 0, 1, 2]
    assert base_half(Split(BIRDS[:4], items[:8])).classes == BIRDS[:2]


def test_each_half_is_scored_among_its_own_classes_and_all_among_all(run):
    metrics = run.record.metrics
    predictions = {name: run.folder / f"predictions{name}.csv" for name in ("", "_new", "_all")}
    for name, metric, classes in (("", "top1", BASE), ("_new", "new_top1", NEW), ("_all", "all_top1", BIRDS)):
        assert {row["label"] for row in rows(predictions[name])} == set(classes)
        guessed = {value for row in rows(predictions[name]) for key, value in row.items() if key.startswith("class_")}
        assert guessed == set(classes), "every class is a candidate, none of the other half"
        assert metrics[metric] == pytest.approx(accuracy(predictions[name]))
        own = json.loads((run.folder / f"metrics{name}.json").read_text())
        assert own["summary"]["top1"] == metrics[metric]
        assert [row["class"] for row in own["per_class"]] == list(classes)
    images = {name: [row["image"] for row in rows(file)] for name, file in predictions.items()}
    assert images["_all"] == [*images[""], *images["_new"]]
    assert metrics["harmonic_mean"] == pytest.approx(harmonic_mean(metrics["top1"], metrics["new_top1"]))


def test_no_image_of_a_new_class_is_learned_from(run, photos):
    base, whole = read_split(run.folder / "split.json"), read_split(run.folder / "split_all.json")
    assert (base.classes, whole.classes) == (BASE, BIRDS)
    assert (whole.train, whole.val) == (base.train, base.val)
    assert len(base.train) == 2 * len(BASE) == run.record.label_budget
    assert {item.label for item in whole.train} == {0, 1, 2}
    assert whole.test == with_test_set(image_folder(photos).split).test
    assert run.record.protocol == "base_to_new"
    assert "base_to_new" in run.folder.name


def test_the_saved_model_is_that_of_the_base_classes(run, clip, photos, tmp_path):
    model = Classifier.load(run.folder, clip)
    assert model.names == BASE
    assert model.header.metrics["top1"] == run.record.metrics["top1"]
    turned = model.for_classes(class_text(NEW))
    assert not turned.header.metrics, "those are of other classes"
    dataset = image_folder(photos)
    test = [replace(item, label=item.label - 3) for item in read_split(run.folder / "split_all.json").test
            if item.label >= 3]
    new = replace(dataset, split=Split(NEW, ()))
    found = score(turned, new, test, tmp_path / "new", features=options(tmp_path).features)
    assert found["top1"] == run.record.metrics["new_top1"]
    assert (tmp_path / "new" / "predictions.csv").read_text() == (run.folder / "predictions_new.csv").read_text()


@pytest.mark.parametrize("method", [LinearProbe, partial(CoOp, context="specific"), XRVLM])
def test_a_closed_method_is_refused_before_anything_is_done(clip, photos, tmp_path, method, monkeypatch):
    monkeypatch.setattr(Method, "prepare", lambda *_, **__: pytest.fail("it was prepared"))
    with pytest.raises(UserError, match="is bound to the 3 classes that it was trained on; methods that score new "
                                        "classes: .*coop with"):
        base_to_new(clip, photos, tmp_path, method)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_what_cannot_be_halved_is_refused(clip, photos, tmp_path):
    few = photo_folder(tmp_path / "few", classes=BASE)
    with pytest.raises(UserError, match="scores the others: it needs 4 at least, found 3"):
        base_to_new(clip, few, tmp_path)
    with pytest.raises(UserError, match="unknown protocol 'base2new'; did you mean 'base_to_new'"):
        base_to_new(clip, photos, tmp_path, protocol="base2new")
    lonely = photo_folder(tmp_path / "lonely", classes=BIRDS[:4], images=4)
    for name in BIRDS[2:4]:
        for file in sorted((lonely / name).iterdir())[1:]:
            file.unlink()
    with pytest.raises(UserError, match="the new classes have no image left to test on"):
        base_to_new(clip, lonely, tmp_path)
    half = {name: f"a small {name}." for name in BASE}
    with pytest.raises(UserError, match="no descriptions for 2 of 2 classes"):
        base_to_new(clip, photos, tmp_path, ZeroShot, text=partial(class_text, descriptions=half))


def test_zero_shot_needs_no_label_and_is_scored_alike(clip, photos, tmp_path):
    run = base_to_new(clip, photos, tmp_path, ZeroShot, recipe=None)
    assert (run.record.shots, run.record.label_budget) == (0, 0)
    plain = adapt(clip, image_folder(photos), ZeroShot, options=options(tmp_path))
    assert run.record.metrics["all_top1"] == plain.record.metrics["top1"]


def test_the_protocol_and_the_new_classes_are_part_of_the_identity(clip, photos, tmp_path, run):
    short = replace(SHORT, epochs=1)
    made = partial(base_to_new, clip, photos, tmp_path, method=COOP, recipe=short)
    seeds = [made(seed=seed) for seed in (1, 2)]
    few_shot = made(protocol="few_shot")
    texts = [made(method=ZeroShot, recipe=None, text=partial(class_text, descriptions={
        name: f"a {name}{' with a crest' * (name == 'wren' and crest)}." for name in BIRDS})) for crest in (0, 1)]
    assert seeds[0].record.setting == seeds[1].record.setting
    assert len({found.folder for found in (*seeds, few_shot, *texts)}) == 5
    assert len({found.record.setting for found in (*seeds, few_shot, *texts)}) == 4
    assert few_shot.record.protocol == "few_shot"
    assert "new_top1" not in few_shot.record.metrics
    photo = photos / read_split(seeds[0].folder / "split_all.json").test[-1].id     # of a new class
    before = photo.read_bytes()
    try:
        photo.write_bytes((photos / "auk" / "0.png").read_bytes())
        assert made(seed=1).folder != seeds[0].folder
    finally:
        photo.write_bytes(before)


def test_a_finished_run_is_reported(clip, photos, run, monkeypatch):
    monkeypatch.setattr("xrvlm.training.fit._train_epoch", lambda *_: pytest.fail("it was trained again"))
    place = run.folder.parent.parent
    assert base_to_new(clip, photos, place).record == run.record
    assert read_records(place / "runs") == [run.record]


@pytest.mark.parametrize("at", ["epoch", "new"])
def test_a_stopped_run_goes_on_to_the_same_end(clip, photos, tmp_path, run, monkeypatch, at):
    target = {"epoch": "xrvlm.training.fit._save", "new": "xrvlm.experiments.protocols.write_scores"}[at]
    module, name = target.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[name]), name)

    def stopped(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, stopped)
    with pytest.raises(KeyboardInterrupt):
        base_to_new(clip, photos, tmp_path)
    monkeypatch.undo()
    again = base_to_new(clip, photos, tmp_path)
    assert again.folder.name == run.folder.name
    assert again.record.metrics == run.record.metrics
    for name in ("split.json", "split_all.json", "predictions.csv", "predictions_new.csv", "predictions_all.csv"):
        assert (again.folder / name).read_text() == (run.folder / name).read_text(), name
    expected = run.classifier.method.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.classifier.method.state_dict().items())
