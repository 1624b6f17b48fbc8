"""Each command is one public call in Python: the same guards, the same result. Export: inference/test_export.py."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import TINY, told
from photos import CLASSES, photo_folder

import xrvlm
from xrvlm.cli.main import main
from xrvlm.experiments.compare import CompareOptions

pytestmark = pytest.mark.usefixtures("at_home")
VIEW = "features.views=1"
SETTINGS = {"features": xrvlm.FeatureSettings(views=1)}


@pytest.fixture(scope="module")
def tiny():
    return xrvlm.load_tiny_clip(device="cpu")


@pytest.fixture
def photos(tmp_path):
    return photo_folder(tmp_path / "birds", images=6)


@pytest.fixture
def run(tiny, photos, tmp_path):
    """A finished run of XR-VLM+, which has parts to explain."""
    return xrvlm.adapt(tiny, xrvlm.image_folder(photos), "xr_vlm_plus", shots=3,
                       options=xrvlm.RunOptions(runs=tmp_path / "runs", **SETTINGS))


def record(folder: Path) -> dict:
    """What of a record does not depend on the clock."""
    return json.loads((folder / "record.json").read_text()) | {"train_seconds": 0}


def only(runs: Path) -> Path:
    (found,) = (path.parent for path in runs.rglob("record.json"))
    return found


def test_adapt(tiny, photos, tmp_path):
    assert main(["adapt", str(photos), "method=coop", "shots=2", "recipe.epochs=1", "runs=typed", VIEW, *TINY]) == 0
    called = xrvlm.adapt(tiny, xrvlm.image_folder(photos), "coop", shots=2, recipe={"epochs": 1},
                         options=xrvlm.RunOptions(runs="called", **SETTINGS))
    typed = only(Path("typed"))
    assert record(typed) == record(called.folder)
    assert sorted(path.name for path in typed.iterdir()) == sorted(path.name for path in called.folder.iterdir())
    for name in ("predictions.csv", "metrics.json", "split.json", "losses.csv", "config.yaml"):
        assert (typed / name).read_text() == (called.folder / name).read_text(), name


def test_zero_shot(tiny, photos, tmp_path):
    assert main(["zeroshot", str(photos), "text.templates=birds", "runs=typed", *TINY]) == 0
    called = xrvlm.zero_shot(tiny, xrvlm.image_folder(photos), text={"templates": "birds"},
                             options=xrvlm.RunOptions(runs="called"))
    assert record(only(Path("typed"))) == record(called.folder)


def test_evaluate(run, tmp_path, capsys):
    other = photo_folder(tmp_path / "others", images=9)
    assert main(["eval", str(run.folder), f"data.root={other}", "device=cpu", "workers=0"]) == 0
    typed = Path(capsys.readouterr().out.splitlines()[-1])
    before = {path.name: path.read_text() for path in typed.iterdir() if path.is_file()}
    called = xrvlm.evaluate(run.folder, xrvlm.image_folder(other), device="cpu")
    assert called.folder == typed
    assert {name: (typed / name).read_text() for name in before} == before


def test_what_a_run_learned_from_is_left_out_both_ways(run, photos, caplog, capfd):
    learned = 9
    found = xrvlm.evaluate(run.folder, xrvlm.image_folder(photos), device="cpu")
    assert f"left out {learned} of 18 images: the run learned from them" in caplog.text
    assert found.metrics["images"] == 18 - learned
    assert main(["eval", str(run.folder), f"data.root={photos}", "device=cpu", "workers=0"]) == 0
    assert "left out 9 of 18 images" in capfd.readouterr().err


def test_predict(run, tmp_path, capsys):
    other = photo_folder(tmp_path / "others", images=2)
    capsys.readouterr()
    assert main(["predict", str(run.folder), str(other), "topk=2", "out=typed.csv", "device=cpu", "workers=0"]) == 0
    typed = capsys.readouterr().out.splitlines()
    called = xrvlm.predict(run.folder, other, topk=2, out="called.csv", device="cpu")
    assert typed == [str(prediction) for prediction in called]
    assert Path("typed.csv").read_text() == Path("called.csv").read_text()
    assert [row["image"] for row in csv.DictReader(Path("called.csv").read_text().splitlines())] == [
        each.image for each in called]


def test_predict_of_several_photos_and_of_the_latest_run(run, tmp_path, capsys):
    photos = [tmp_path / "birds" / name / "0.png" for name in CLASSES[:2]]
    assert main(["predict", "latest", *map(str, photos), "device=cpu", "workers=0"]) == 0
    typed = capsys.readouterr().out.splitlines()
    assert typed == [str(each) for each in xrvlm.predict("latest", photos, device="cpu")]
    assert len(typed) == 2


def test_zero_shot_predictions(tiny, photos, capsys):
    Path("names.txt").write_text("wren\nblue tit\n")
    assert main(["predict", "classes=names.txt", f"images={photos}", *TINY]) == 0
    typed = capsys.readouterr().out.splitlines()
    assert typed == [str(each) for each in xrvlm.predict(None, photos, classes="names.txt", clip=tiny)]


def test_explain(run, capsys):
    capsys.readouterr()
    assert main(["explain", str(run.folder), "out=typed", "pictures=false", "device=cpu", "workers=0"]) == 0
    typed = capsys.readouterr().out.splitlines()
    called = xrvlm.explain(run.folder, out="called", pictures=False, device="cpu")
    assert typed[:-1] == list(called.lines)[:-1] and typed[-1] == "typed"
    names = {path.name: path for path in Path("birds").iterdir()}
    assert all(f"(true: {row['true']})" in line and row["true"] in names and row["image"].startswith(row["true"])
               for row, line in zip(called.rows, typed, strict=False))
    assert Path("typed/explanations.json").read_text() == Path("called/explanations.json").read_text()


def test_compare(tiny, photos, capsys):
    assert main(["compare", str(photos), "candidates=[zero_shot,linear_probe,'tip_adapter method.beta=1']", "folds=2",
                 "runs=typed", VIEW, *TINY]) == 0
    called = xrvlm.compare(tiny, xrvlm.image_folder(photos), ["zero_shot", "linear_probe", "tip_adapter method.beta=1"],
                           options=CompareOptions(folds=2, runs="called", **SETTINGS))
    typed = next(Path("typed").rglob("compare.json"))
    assert typed.parent.name == called.folder.name
    one, two = (json.loads((folder / "compare.json").read_text()) for folder in (typed.parent, called.folder))
    assert [row["hits"] for row in one["scores"]] == [row["hits"] for row in two["scores"]]
    assert one["command"].startswith("xrvlm adapt") and two["command"].startswith("xrvlm.adapt(clip, dataset, ")


def test_report(run, capsys):
    capsys.readouterr()
    assert main(["report", "runs", "out=typed"]) == 0
    typed = capsys.readouterr().out
    called = xrvlm.report("runs", "called")
    assert called.table in typed
    for name in ("report.md", "tables.tex"):
        assert Path("typed", name).read_text() == Path("called", name).read_text()


def test_data_check(photos, capsys):
    assert main(["data", "check", str(photos)]) == 0
    assert capsys.readouterr().out.splitlines() == list(xrvlm.check_data("folder", root=photos).lines)


@pytest.mark.parametrize(("command", "call", "key", "argument"), [
    (["report", "nowhere"], lambda: xrvlm.report("nowhere"), "there is no", "there is no"),
    (["predict", "nowhere", "images=."], lambda: xrvlm.predict("nowhere", "."), "no model at", "no model at"),
    (["eval", "latest"], lambda: xrvlm.evaluate("latest"), "no finished run", "no finished run"),
    (["predict", "run=null", "images=."], lambda: xrvlm.predict(None, "."), "predict needs run", "predict needs run"),
    (["adapt", "nowhere", "backbone=tiny"], lambda: xrvlm.image_folder("nowhere"), "check data.root", "check root"),
])
def test_a_mistake_is_named_as_its_reader_writes_it(capsys, photos, command, call, key, argument):
    assert key in told(capsys, *command)
    with pytest.raises(xrvlm.UserError, match=argument) as found:
        call()
    assert "data." not in str(found.value)


def test_images_of_the_run_that_were_saved_anew_or_are_gone_are_told(run, photos, tmp_path, capfd):
    again = tmp_path / "again"
    shutil.copytree(photos, again)
    for path in again.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")                 # other bytes, the same picture
    assert main(["eval", str(run.folder), f"data.root={again}", "device=cpu", "workers=0"]) == 0
    told = "9 of 18 images have the paths of images that the run learned from, and other bytes"
    assert told in capfd.readouterr().err
    tested = photos / json.loads((run.folder / "split.json").read_text())["test"][0]["path"]
    gone = tested.rename(tmp_path / "gone.png")
    try:
        assert main(["eval", str(run.folder), "device=cpu", "workers=0"]) == 2
        assert re.search("1 of the run's 6 test images are no longer in .*: put them back", capfd.readouterr().err)
    finally:
        gone.rename(tested)
