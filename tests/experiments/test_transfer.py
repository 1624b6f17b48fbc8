"""A finished run on other data sets: of other classes, or of some of its own in another domain."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import replicas_coop
from command_line import TINY, told
from photos import photo_folder

from xrvlm.cli.main import main
from xrvlm.errors import UserError
from xrvlm.experiments.evaluate import evaluate
from xrvlm.reporting.results import read_records, rows_of

pytestmark = pytest.mark.usefixtures("at_home")
BIRDS = ("blue tit", "jay", "kite", "wren")
HERE = ("device=cpu", "workers=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def birds(place):
    return photo_folder(place / "birds", images=5, classes=BIRDS)


@pytest.fixture(scope="module")
def runs(place, birds):
    """{method and seed: the folder of its finished run}; a closed method and an open one."""
    for method in ("linear_probe", "zero_shot"):
        assert main(["adapt", "-m", f"data.root={birds}", f"method={method}", "seed=1,2", "shots=2", "features.views=1",
                     f"runs={place / 'runs'}", f"features.cache={place / 'cache'}", *TINY]) == 0
    folders = [path.parent for path in (place / "runs").glob("*/record.json")]
    return {(record["method"], record["seed"]): folder for folder in folders
            for record in [json.loads((folder / "record.json").read_text())]}


def scored(capsys, *arguments) -> tuple[str, list[dict[str, str]], Path]:
    """What eval says, the predictions that it left, and where."""
    capsys.readouterr()
    assert main(["eval", *arguments, *HERE]) == 0
    line, folder = capsys.readouterr().out.splitlines()
    with (Path(folder) / "predictions.csv").open(newline="") as file:
        return line, list(csv.DictReader(file)), Path(folder)


def chances(row: dict[str, str]) -> dict[str, float]:
    return {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in range(1, 6) if row.get(f"class_{i}")}


def test_a_closed_run_is_scored_among_the_classes_of_the_data(runs, tmp_path, capsys):
    some = photo_folder(tmp_path / "some", images=9, classes=("wren", "jay"))    # their photos do not look like theirs
    arguments = (f"run={runs['linear_probe', 1]}", f"data.root={some}")
    line, whole, _ = scored(capsys, *arguments)
    assert line.endswith("; among all 4 classes of the run (among=data: among these 2)")
    told_, masked, folder = scored(capsys, *arguments, "among=data")
    assert told_.endswith("; among these 2 of the run's 4 classes")
    hits = 0
    for before, after in zip(whole, masked, strict=True):
        of_all, kept = chances(before), chances(after)
        assert (set(of_all), set(kept)) == (set(BIRDS), {"wren", "jay"})
        share = of_all["wren"] / (of_all["wren"] + of_all["jay"])
        assert kept["wren"] == pytest.approx(share, abs=1e-4)
        hits += after["label"] == max(("jay", "wren"), key=of_all.__getitem__)
    summary = json.loads((folder / "metrics.json").read_text())["summary"]
    assert summary["top1"] == pytest.approx(hits / len(masked))
    assert any(row["prediction"] not in ("wren", "jay") for row in whole), "the mask has something to do"


def test_the_classes_that_are_masked_may_stand_in_any_order(runs, birds, tmp_path, capsys):
    (tmp_path / "names.json").write_text(json.dumps({"blue tit": "wren", "jay": "kite", "kite": "jay",
                                                     "wren": "blue tit"}))
    arguments = (f"run={runs['linear_probe', 1]}", f"data.root={birds}", "data.class_names=names.json")
    _, whole, _ = scored(capsys, *arguments)
    _, masked, _ = scored(capsys, *arguments, "among=data")
    for before, after in zip(whole, masked, strict=True):
        assert (before["label"], before["prediction"]) == (after["label"], after["prediction"])


@pytest.mark.parametrize("among", ["run", "data"])
def test_a_closed_run_refuses_other_classes_and_names_what_does_not(runs, tmp_path, capsys, among):
    others = photo_folder(tmp_path / "others", images=2, classes=("emu", "jay"))
    error = told(capsys, "eval", f"run={runs['linear_probe', 1]}", f"data.root={others}", f"among={among}", *HERE)
    assert "1 of 2 classes are unknown to this run ('emu'): linear probe is bound to the 4" in error
    assert "xr_vlm_plus; zero_shot; " in error
    assert "coop with a shared context" in error
    assert not (runs["linear_probe", 1] / "eval" / "results.jsonl").exists() or all(
        record.data != "others" for record in read_records(runs["linear_probe", 1] / "eval"))


def test_what_eval_finds_on_other_data_stands_in_the_report(runs, place, tmp_path, capsys):
    dtd = replicas_coop.dtd(tmp_path / "dtd")
    for seed in (1, 2):
        scored(capsys, f"run={runs['zero_shot', seed]}", "data=dtd", f"data.root={dtd}", "text.templates=textures")
    scored(capsys, f"run={runs['zero_shot', 1]}")                    # its own test part: no further line
    found = [record for record in read_records(place / "runs") if record.data == "dtd"]
    assert {(record.protocol, record.trained_on, record.method) for record in found} == {
        ("transfer", "birds", "zero_shot")}
    (row,) = rows_of(found)
    assert len(row.runs) == len(found) == len({runs["zero_shot", 1], runs["zero_shot", 2]})
    assert all((place / "runs" / record.run / "predictions.csv").exists() for record in found)
    assert main(["report", f"runs={place / 'runs'}", f"out={tmp_path / 'report'}"]) == 0
    assert "dtd · tiny · trained on birds" in capsys.readouterr().out
    assert "trained on birds" in (tmp_path / "report" / "report.md").read_text()


def test_masked_and_unmasked_scores_are_not_averaged(runs, tmp_path, capsys):
    some = photo_folder(tmp_path / "some", images=2, classes=("wren", "jay"))
    for seed in (1, 2):
        for among in ("run", "data"):
            _, _, folder = scored(capsys, f"run={runs['linear_probe', seed]}", f"data.root={some}", "data.name=pair",
                                  f"among={among}")
            assert (folder / "record.json").exists()
    records = [record for seed in (1, 2) for record in read_records(runs["linear_probe", seed] / "eval")]
    rows = rows_of([record for record in records if record.data == "pair"])
    assert {(row.benchmark, row.seeds) for row in rows} == {
        ("pair · tiny · trained on birds", 2), ("pair · tiny · trained on birds, among all its 4 classes", 2)}
    assert all(row.options_suffix == "" for row in rows)


def test_a_run_on_imagenet_is_scored_on_its_variants(tmp_path, capsys):
    imagenet = replicas_coop.imagenet(tmp_path / "imagenet")
    assert main(["adapt", "data=imagenet", f"data.root={imagenet}", "method=linear_probe", "shots=2",
                 "features.views=1", *TINY]) == 0
    (run,) = (tmp_path / "runs").glob("linear_probe-imagenet-*")
    for name, classes in (("imagenet_a", 3), ("imagenet_r", 2), ("imagenet_v2", 5), ("imagenet_sketch", 5)):
        root = getattr(replicas_coop, name)(tmp_path / name)
        line, rows, _ = scored(capsys, f"run={run}", f"data={name}", f"data.root={root}", "among=data")
        assert line.endswith(f"; among these {classes} of the run's 5 classes") == (classes < 5)
        assert len({label for row in rows for label in chances(row)}) == classes
    assert {record.data for record in read_records(run / "eval")} == {
        "imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch"}
    assert "no training image of 3 classes" in told(
        capsys, "adapt", "data=imagenet_a", f"data.root={tmp_path / 'imagenet_a'}", "method=linear_probe", *TINY)
    assert main(["zeroshot", "data=imagenet_a", f"data.root={tmp_path / 'imagenet_a'}", *TINY]) == 0


def test_options_that_eval_does_not_know_are_told(runs, capsys):
    run = f"run={runs['zero_shot', 1]}"
    assert "unknown among 'all'; available: data, run" in told(capsys, "eval", run, "among=all", *HERE)
    assert "among must be run or data, found 3" in told(capsys, "eval", run, "among=3", *HERE)
    assert "data.root is not given" in told(capsys, "eval", run, "data=dtd", *HERE)
    with pytest.raises(UserError, match="unknown among"):
        evaluate("run", among="all")


def test_other_images_of_the_same_names_have_a_score_of_their_own(runs, tmp_path, capsys):
    fog, snow = tmp_path / "fog" / "birds", tmp_path / "snow" / "birds"
    photo_folder(fog, images=2, classes=("jay", "wren"))
    shutil.copytree(fog, snow)
    for name in ("jay", "wren"):
        (snow / name / "0.png").write_bytes((fog / name / "1.png").read_bytes())
    places = [scored(capsys, f"run={runs['linear_probe', 2]}", f"data.root={root}")[2] for root in (fog, snow, fog)]
    assert places[0] == places[2] != places[1]
    lines = [record for record in read_records(places[0].parent) if record.run in {place.name for place in places}]
    assert len(lines) == len({line.tested for line in lines}) == len({line.setting for line in lines}) == 2


def test_a_run_that_cannot_be_written_is_scored_all_the_same(runs, tmp_path, capsys, monkeypatch, birds):
    """As on a disk that may only be read. An `eval` that is a file stands for it: root may write everywhere else."""
    arguments = (f"run={runs['linear_probe', 1]}", f"data.root={birds}")
    line, _, _ = scored(capsys, *arguments)
    copy = shutil.copytree(runs["linear_probe", 1], tmp_path / "runs" / "copy", ignore=shutil.ignore_patterns("eval"))
    (copy / "eval").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["eval", f"run={copy}", f"data.root={birds}", *HERE]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [line]
    assert "the figures are not kept" in captured.out + captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_result_leaves_the_folder_of_a_run_by_a_link(runs, tmp_path, capsys, birds):
    copy = shutil.copytree(runs["linear_probe", 1], tmp_path / "runs" / "copy", ignore=shutil.ignore_patterns("eval"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for link in (copy / "eval", copy / "explain", copy.parent / "report"):
        link.symlink_to(elsewhere)
    shutil.copy(runs["linear_probe", 1].parent / "results.jsonl", copy.parent)
    for arguments in (["eval", f"run={copy}", f"data.root={birds}", *HERE], ["report", str(copy.parent)],
                      ["explain", f"run={copy}", f"images={birds}", "device=cpu"]):
        assert "is a link that leads out of" in told(capsys, *arguments)
    assert list(elsewhere.iterdir()) == []
