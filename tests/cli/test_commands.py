"""Runs on classes that they were not trained on, as a user types them: eval, predict and protocol=base_to_new."""

import csv
import json
from pathlib import Path

import pytest
from command_line import TINY, told
from photos import photo_folder

from xrvlm.cli.main import main

pytestmark = pytest.mark.usefixtures("at_home")
BIRDS, OTHERS = ("blue tit", "Sarkel's finch", "wren"), ("emu", "Sarkel's finch", "hoopoe", "kite")
SHORT = ("shots=2", "recipe.epochs=1", "features.views=1")
CONTEXT = ("method.context_length=2",)
PARTS = ("method=xr_vlm", "method.head=per_class", "method.part_prompts=descriptions", "method.image_parts=2",
         "text.parts=parts.json")


def described(root, names, parts=("beak", "wing")):
    (root / "parts.json").write_text(json.dumps({
        name: {part: f"a {name} with a {part}." for part in parts} for name in names}))
    (root / "words.json").write_text(json.dumps({name: [f"a fine {name}."] for name in names}))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return described(photo_folder(tmp_path_factory.mktemp("data") / "birds", images=5), BIRDS)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = photo_folder(tmp_path_factory.mktemp("data") / "others", images=2, classes=OTHERS)
    return described(folder, OTHERS)


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """The folders of finished runs, by name."""
    place, found = tmp_path_factory.mktemp("finished"), {}
    for name, options in {
        "zero_shot": ("method=zero_shot",), "described": ("method=zero_shot", "text.descriptions=words.json"),
        "coop": ("method=coop", "recipe.epochs=1", *CONTEXT), "parts": (*PARTS, "recipe.epochs=1"),
        "probe": ("method=linear_probe",),
    }.items():
        assert main(["adapt", f"data.root={photos}", f"runs={place / name}", f"features.cache={place / 'cache'}",
                     "shots=2", "features.views=1", *options, *TINY]) == 0
        (found[name],) = (path.parent for path in (place / name).rglob("record.json"))
    return found


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scored(capsys, *arguments) -> tuple[str, list[dict[str, str]]]:
    """What eval says, and the predictions that it left."""
    capsys.readouterr()
    assert main(["eval", *arguments, "device=cpu", "workers=0"]) == 0
    line, place = capsys.readouterr().out.splitlines()
    return line, rows(Path(place) / "predictions.csv")


@pytest.mark.parametrize("name", ["zero_shot", "described", "coop", "parts"])
def test_eval_turns_an_open_run_to_the_classes_of_other_images(runs, others, capsys, name):
    line, found = scored(capsys, f"run={runs[name]}", f"data.root={others}")
    assert line.startswith("others: top-1 ")
    assert line.endswith("; 3 of 4 classes were not trained on")
    candidates = {value for row in found for key, value in row.items() if key.startswith("class_")}
    assert candidates == set(OTHERS), "all classes of the images, the known one too, and none else"


def test_eval_on_known_classes_is_what_it_was(runs, photos, capsys):
    line, found = scored(capsys, f"run={runs['coop']}")
    assert "not trained on" not in line
    summary = json.loads((runs["coop"] / "metrics.json").read_text())["summary"]
    assert f"top-1 {summary['top1']:.1%}" in line
    assert {row["image"]: row["prediction"] for row in found} == {
        row["image"]: row["prediction"] for row in rows(runs["coop"] / "predictions.csv")}


def test_a_closed_run_names_the_unknown_classes_and_what_can(runs, others, capsys):
    error = told(capsys, "eval", f"run={runs['probe']}", f"data.root={others}", "device=cpu", "workers=0")
    assert "3 of 4 classes are unknown to this run ('emu', 'hoopoe', 'kite'): linear probe is bound to the 3" in error
    assert "xr_vlm_plus; zero_shot; " in error
    assert "coop with a shared context; " in error
    assert "xr_vlm with head per_class" in error
    error = told(capsys, "predict", f"run={runs['probe']}", "classes=names.txt", f"images={others}", "device=cpu")
    assert "no class-name list at names.txt" in error


def test_the_text_is_the_runs_own_unless_given(runs, photos, others, capsys):
    def scores(*arguments) -> list[str]:
        return [row["probability_1"] for row in scored(capsys, f"data.root={others}", *arguments)[1]]

    plain, described = f"run={runs['zero_shot']}", f"run={runs['described']}"
    assert scores(plain) != scores(described)
    assert scores(plain, "text.descriptions=words.json") == scores(described)
    assert scores(described, "text.templates=photo") == scores(plain)
    assert scores(plain, "text.templates=birds") != scores(plain)


def test_given_text_is_never_ignored(runs, photos, capsys):
    plain = scored(capsys, f"run={runs['zero_shot']}")[1]
    line, other = scored(capsys, f"run={runs['zero_shot']}", "text.templates=birds")
    assert line.endswith("; 0 of 3 classes were not trained on")
    assert [row["probability_1"] for row in plain] != [row["probability_1"] for row in other]


def test_new_classes_without_their_words_are_told(runs, photos, tmp_path, capsys):
    bare = photo_folder(tmp_path / "bare", images=2, classes=OTHERS)
    error = told(capsys, "eval", f"run={runs['parts']}", f"data.root={bare}", "device=cpu", "workers=0")
    assert "3 of 4 classes are unknown to this run" in error
    assert f"no parts for 3 of 4 classes in {photos / 'parts.json'}" in error    # the run's own file comes last
    described(bare, OTHERS, parts=("beak", "tail"))
    error = told(capsys, "eval", f"run={runs['parts']}", f"data.root={bare}", "device=cpu", "workers=0")
    assert "trained with the parts beak, wing; the new classes have beak, tail" in error


def test_the_runs_own_images_by_other_names(runs, tmp_path, capsys):
    names = dict(zip(sorted(BIRDS), ("Mésange bleue", "Pinson", "Troglodyte"), strict=True))
    (tmp_path / "names.json").write_text(json.dumps(names))
    line, found = scored(capsys, f"run={runs['coop']}", "data.class_names=names.json")
    assert line.endswith("; 3 of 3 classes were not trained on")
    before = rows(runs["coop"] / "predictions.csv")
    assert {row["image"] for row in found} == {row["image"] for row in before}
    own = {row["image"]: row["label"] for row in before}
    assert all(row["label"] == names[own[row["image"]]] for row in found)
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    error = told(capsys, "eval", f"run={runs['coop']}", "data.class_names=names.txt", "device=cpu", "workers=0")
    assert "order of the classes is not plain: blue tit, Sarkel's finch, wren or Sarkel's finch, blue tit" in error


def test_a_list_of_names_is_read_as_adapt_read_it(tmp_path, capsys):
    photos = photo_folder(tmp_path / "numbered", images=3, classes=[str(number) for number in range(1, 12)])
    (tmp_path / "names.txt").write_text("\n".join("kagu jay ibis heron gull finch emu dove crow bulbul auk".split()))
    assert main(["adapt", f"data.root={photos}", "method=zero_shot", "data.class_names=names.txt", *TINY]) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("record.json"))
    before = {row["image"]: row["label"] for row in rows(run / "predictions.csv")}
    assert {label for image, label in before.items() if image.startswith("10/")} == {"bulbul"}
    line, found = scored(capsys, f"run={run}", "data.class_names=names.txt")
    assert {row["image"]: row["label"] for row in found} == before
    assert "not trained on" not in line
    (tmp_path / "other.txt").write_text("\n".join("abcdefghijk"))
    found = scored(capsys, f"run={run}", "data.class_names=other.txt")[1]
    assert {row["image"].split("/")[0]: row["label"] for row in found} == {
        str(number): "abcdefghijk"[number - 1] for number in range(1, 12)}
    (tmp_path / "turned.txt").write_text("\n".join("jay kagu ibis heron gull finch emu dove crow bulbul auk".split()))
    error = told(capsys, "eval", f"run={run}", "data.class_names=turned.txt", "device=cpu", "workers=0")
    assert "calls 'kagu' 'jay', which is another class: it is in another order than the classes" in error


@pytest.mark.parametrize("name", ["zero_shot", "parts"])
def test_predict_with_a_run_and_classes(runs, others, tmp_path, capsys, name):
    (tmp_path / "names.txt").write_text("hoopoe\nemu\n")
    capsys.readouterr()
    assert main(["predict", f"run={runs[name]}", "classes=names.txt", f"images={others}", "out=new.csv",
                 "device=cpu", "workers=0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert {row["class_1"] for row in rows(tmp_path / "new.csv")} <= {"hoopoe", "emu"}
    assert "class_3" not in rows(tmp_path / "new.csv")[0]
    probe = told(capsys, "predict", f"run={runs['probe']}", "classes=names.txt", f"images={others}", "device=cpu")
    assert "linear probe is bound to the 3 classes that it was trained on" in probe


@pytest.mark.parametrize("method", [("method=zero_shot",), ("method=coop", *SHORT, *CONTEXT), (*PARTS, *SHORT),
                                    ("method=xr_vlm", "method.head=alignment", "method.context=shared", *SHORT,
                                     *CONTEXT)], ids=["zero_shot", "coop", "parts", "alignment"])
def test_base_to_new_as_a_user_types_it(others, tmp_path, capsys, method):
    arguments = ["adapt", f"data.root={others}", "protocol=base_to_new", *method, *TINY]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "XR-VLM, base to new: " in out or ", base to new: " in out
    assert "harmonic mean " in out
    record = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    assert record["protocol"] == "base_to_new"
    folder = tmp_path / "runs" / record["run"]
    assert {row["label"] for row in rows(folder / "predictions.csv")} == set(sorted(OTHERS)[:2])
    assert {row["label"] for row in rows(folder / "predictions_new.csv")} == set(sorted(OTHERS)[2:])
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    if method[0] != "method=coop":           # what follows reads records, whatever method wrote them
        return
    assert main([*arguments, "protocol=few_shot"]) == 0
    assert main(["report", "runs=runs"]) == 0
    out = capsys.readouterr().out
    assert "Harmonic" in out
    assert "Top-1" in out
    assert main(["eval", f"run={folder}", "device=cpu", "workers=0"]) == 0
    assert f"top-1 {record['metrics']['top1']:.1%}" in capsys.readouterr().out


def test_base_to_new_refuses_a_closed_method_and_an_unknown_protocol(others, tmp_path, capsys):
    arguments = ["adapt", f"data.root={others}", *SHORT, *CONTEXT, *TINY]
    error = told(capsys, *arguments, "protocol=base_to_new")
    assert "head cross is bound to the 2 classes that it was trained on; methods that score new classes: " in error
    assert not (tmp_path / "runs").exists()
    assert "unknown protocol 'new'; available: base_to_new, few_shot" in told(capsys, *arguments, "protocol=new")
    wrong = told(capsys, *arguments, "protocol=null")
    assert "protocol must be few_shot or base_to_new or open_set, found null" in wrong


def test_parts_that_nothing_reads_are_refused(runs, others, capsys):
    error = told(capsys, "predict", f"run={runs['coop']}", "text.parts=parts.json", f"images={others}", "device=cpu")
    assert "text.parts is not read: this run was made without part descriptions" in error
    error = told(capsys, "predict", "backbone=tiny", "classes=['a','b']", "text.parts=parts.json", f"images={others}",
                 "device=cpu")
    assert "text.parts is not read without run: zero-shot" in error


def test_commands_in_a_folder_of_photos_do_not_take_their_own_pictures_for_photos(tmp_path, monkeypatch, capsys):
    photos = photo_folder(tmp_path / "birds", images=4)
    monkeypatch.chdir(photos)
    before = sorted(path.name for path in photos.iterdir())
    first = ("adapt", ".", *TINY, *SHORT, "method=xr_vlm", *CONTEXT, "method.image_parts=2", "method.hidden=8")
    assert main([*first]) == 0
    assert main(["explain", "latest", "wren", "device=cpu"]) == 0
    assert list(photos.glob("runs/*/explain/*.png"))
    assert main(["suspects", ".", *TINY]) == 0
    assert main(["adapt", ".", *TINY, "shots=2", "method=linear_probe"]) == 0
    split = json.loads(next(photos.glob("runs/linear_probe-*/split.json")).read_text())
    assert sorted({entry["class"] for entries in (split["train"], split["test"]) for entry in entries}) == before
    capsys.readouterr()
    assert main(["predict", "latest", ".", "out=answers.csv", "device=cpu"]) == 0
    assert len(rows(photos / "answers.csv")) == 4 * len(before)
    assert main([*first, "seed=2"]) == 0
    assert main(["adapt", "-m", ".", *TINY, "shots=1,2", "method=linear_probe", "runs=sweep"]) == 0
    assert len((photos / "sweep" / "results.jsonl").read_text().splitlines()) == 2
