"""Runs of many sets: their figures by domain, what the other commands read of them, and extra images."""

import csv
import json
from pathlib import Path

import pytest
import torch
from photos import photo_folder, write_photo

from xrvlm.data.folder import image_folder
from xrvlm.data.joint import joint
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError
from xrvlm.evaluation.domains import by_domain, in_words
from xrvlm.experiments.evaluate import evaluate
from xrvlm.experiments.predict import predict
from xrvlm.experiments.record import RunOptions, read_record
from xrvlm.experiments.run import adapt
from xrvlm.experiments.saved import SavedRun, read_split
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.answers import Asked
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.reporting.report import report
from xrvlm.reporting.serve.models import Model
from xrvlm.views import read_image

PARENTS = {"a": "one", "b": "one", "c": "two", "d": "two", "one": "", "two": ""}


def options(place: Path, **changes) -> RunOptions:
    return RunOptions(runs=place / "runs", features=FeatureSettings(cache=str(place / "cache"), views=0), **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("joint")
    photo_folder(root / "flowers", classes=("rose", "tulip"))
    photo_folder(root / "sweets", classes=("cake", "pie", "rose"))
    return root


@pytest.fixture(scope="module")
def run(clip, place):
    return adapt(clip, joint([place / "flowers", place / "sweets"]), "linear_probe", shots=2, options=options(place))


def test_figures_within_a_domain_and_among_all():
    chances = torch.tensor([[.4, .1, .5, 0], [.1, .2, .3, .4], [.1, .6, .2, .1], [.4, .3, .2, .1]])
    found = by_domain(chances, torch.tensor([0, 0, 1, 2]), "abcd", PARENTS)
    assert found == {"domains": {"one": {"top1": pytest.approx(1 / 3), "top1_within": pytest.approx(2 / 3),
                                         "images": 3, "classes": 2},
                                 "two": {"top1": 0, "top1_within": 1, "images": 1, "classes": 2}}}
    assert in_words(found["domains"])[1] == ("  two: top-1 0.0% among all classes, 100.0% among its own 2 "
                                             "(1 test images)")
    assert list(by_domain(chances[:1], torch.tensor([0]), "abcd", PARENTS)["domains"]) == ["one"]
    assert by_domain(chances, torch.tensor([0, 0, 1, 2]), "abcd", None) == {}


def test_the_figures_are_in_the_record_and_in_metrics(run):
    domains = run.record.domains
    counts = {name: (of["images"], of["classes"]) for name, of in domains.items()}
    assert counts == {"flowers": (4, 2), "sweets": (6, 3)}
    assert read_record(run.folder / "record.json").domains == domains
    assert json.loads((run.folder / "metrics.json").read_text())["domains"] == domains
    assert run.record.metrics["top1"] == pytest.approx(sum(of["top1"] * of["images"] for of in domains.values()) / 10)
    with (run.folder / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"].startswith("joint:flowers/")]
    assert domains["flowers"]["top1"] == sum(row["label"] == row["prediction"] for row in rows) / len(rows)


def test_a_saved_run_finds_its_images_and_is_scored_again(run, clip, place):
    saved = SavedRun(run.folder)
    assert saved.dataset().split == read_split(run.folder / "split.json")
    assert saved.every_image() == joint([place / "flowers", place / "sweets"])
    again = evaluate(run.folder, clip=clip)
    assert again.metrics["top1"] == run.accuracy
    assert json.loads((again.folder / "metrics.json").read_text())["domains"] == run.record.domains
    flowers = image_folder(place / "flowers", name="other", class_names={"rose": "rose (flowers)", "tulip": "tulip"})
    other = evaluate(run.folder, flowers, clip=clip)
    assert list(json.loads((other.folder / "metrics.json").read_text())["domains"]) == ["flowers"]
    assert read_record(other.folder / "record.json").domains == {}


def test_the_report_has_a_table_of_domains(run, place):
    made = report(place / "runs", photos=False)
    text = {path.suffix: path.read_text() for path in (made.markdown, made.html)}
    cells = [f"{100 * run.record.domains['sweets'][name]:.1f}" for name in ("top1", "top1_within")]
    assert f"| sweets | 3 | 6 | {' | '.join(cells)} |" in text[".md"]
    assert f">sweets</th><td>3</td><td>6</td><td>{'</td><td>'.join(cells)}</td>" in text[".html"]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_prediction_says_its_domain(run, clip, place, tmp_path, name):
    found = predict(run.folder, place / "flowers", clip=clip, out=tmp_path / name, topk=2)
    classes = run.classifier.names
    expected = ["flowers" if classes.index(each.prediction) < 2 else "sweets" for each in found]
    assert [each.domain for each in found] == expected
    assert f"; domain: {expected[0]}" in str(found[0])
    with (tmp_path / name).open(newline="") as file:
        rows = [json.loads(line) for line in file] if name.endswith("l") else list(csv.DictReader(file))
    assert [row["domain"] for row in rows] == expected
    part = next(iter(tmp_path.glob("*.part")), None)
    assert part is None
    written = (tmp_path / name).read_bytes()
    predict(run.folder, place / "flowers", clip=clip, out=tmp_path / name, topk=2)
    assert (tmp_path / name).read_bytes() == written


def test_the_page_says_the_domain(run, place):
    answer = Model(run.classifier, None, Asked()).answer(read_image(place / "flowers" / "rose" / "0.png"))
    assert answer.domain in ("flowers", "sweets")
    assert answer.row["domain"] == answer.domain
    classes = run.classifier.names
    assert (classes.index(answer.prediction) < 2) == (answer.domain == "flowers")


def test_a_model_keeps_that_it_is_joint(run, clip):
    loaded = Classifier.load(run.folder, clip)
    assert loaded.header.joint
    text = json.loads(loaded.header.to_json())
    assert not ModelHeader.from_json(json.dumps({key: value for key, value in text.items() if key != "joint"}),
                                     run.folder).joint
    with pytest.raises(ValueError, match="joint: of the wrong type"):
        ModelHeader.from_json(json.dumps(text | {"joint": "yes"}), run.folder)
    assert not run.classifier.header.metrics.get("domains")


def test_extra_images_are_trained_on_and_counted_apart(clip, place, tmp_path):
    for key in range(3):
        write_photo(tmp_path / "extra" / "rose" / f"{key}.png", 0, 700 + key)
    plain, more = (adapt(clip, load_dataset("folder", root=place / "flowers", **given), "linear_probe", shots=2,
                         options=options(tmp_path, calibrate="folds"))
                   for given in ({}, {"extra": tmp_path / "extra"}))
    assert (plain.record.label_budget, plain.record.extra_images) == (4, 0)
    assert (more.record.label_budget, more.record.extra_images) == (4, 3)
    assert plain.record.series != more.record.series, "rows of their own in a report"
    assert plain.record.tested == more.record.tested
    kept = SavedRun(more.folder).dataset()
    assert kept.split == read_split(more.folder / "split.json")
    assert [item.id for item in kept.split.train[4:]] == [f"extra:rose/{key}.png" for key in range(3)]
    assert more.classifier.header.calibration.images == 4
    zero = adapt(clip, load_dataset("folder", root=place / "flowers", extra=tmp_path / "extra"), "zero_shot",
                 options=options(tmp_path))
    assert zero.record.extra_images == 0


def test_an_extra_test_image_stops_the_run_before_it_begins(clip, place, tmp_path):
    for path in (place / "flowers" / "rose").iterdir():
        (tmp_path / "extra" / "rose").mkdir(parents=True, exist_ok=True)
        (tmp_path / "extra" / "rose" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="2 of 8 extra images are test images"):
        adapt(clip, load_dataset("folder", root=place / "flowers", extra=tmp_path / "extra"), "linear_probe", shots=2,
              options=options(tmp_path))
    assert not (tmp_path / "runs").exists()
