"""The image files that are labelled: those that are named, and those below a folder."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from photos import CLASSES, photo_folder
from PIL import Image

import xrvlm
from xrvlm.cli.main import main
from xrvlm.errors import UserError
from xrvlm.evaluation.metrics import as_cell, from_cell
from xrvlm.experiments import predict as module
from xrvlm.experiments.predict import image_files, images_of, predict, zero_shot_classifier
from xrvlm.inference.classifier import Classifier


def test_image_files(tmp_path):
    root = tmp_path / "some photos"
    (root / "b").mkdir(parents=True)
    for name in ("b/2.jpg", "1.PNG", ".hidden.jpg", "notes.txt"):
        (root / name).write_text("x")
    assert image_files(str(root)) == (root.resolve(), ("1.PNG", "b/2.jpg"))
    assert image_files(root / "b" / "2.jpg") == (root.resolve() / "b", ("2.jpg",))
    with pytest.raises(UserError, match=r"there is no image or folder .*nowhere; check the path"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"found no image below .*texts, only 1 \.txt files; it must hold"):
        image_files(tmp_path / "texts")


def test_a_pattern_names_the_files_that_match_it(tmp_path, monkeypatch):
    photo_folder(tmp_path / "birds", images=2)
    monkeypatch.chdir(tmp_path)
    assert list(images_of("birds/*/1.png")) == [f"birds/{name}/1.png" for name in sorted(CLASSES)]
    assert len(images_of("birds/**/*.png")) == len(images_of("birds")) == 2 * len(CLASSES)
    (tmp_path / "a[1].png").write_bytes((tmp_path / "birds" / CLASSES[0] / "0.png").read_bytes())
    assert list(images_of("a[1].png")) == ["a[1].png"], "a file of that very name"
    with pytest.raises(UserError, match=r"the pattern birds/\*\.jpg matches no image and no folder; check it"):
        images_of("birds/*.jpg")


def test_a_pipe_is_called_one(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="pipe.jpg is a pipe or a device, which may have no end: save the image"):
        images_of(tmp_path / "pipe.jpg")


def test_a_table_never_takes_the_place_of_a_pipe(model, photos, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="pipe.csv is a pipe or a device, which a file would replace; name another"):
        predict(model, photos, out=tmp_path / "pipe.csv")
    assert (tmp_path / "pipe.csv").is_fifo()
    assert not list(tmp_path.glob("*.part"))


def test_a_run_with_its_key_before_the_photos(model, photos, capsys):
    photo = photos / CLASSES[0] / "0.png"
    assert main(["predict", str(model), str(photo), "topk=1"]) == 0
    first = capsys.readouterr().out
    assert main(["predict", f"run={model}", str(photo), "topk=1"]) == 0
    assert capsys.readouterr().out == first


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    clip, names = xrvlm.load_tiny_clip(device="cpu"), ["a red bird", "a blue bird", "=1+1"]
    return zero_shot_classifier(clip, xrvlm.class_text(names)).save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    """Twelve photos, one damaged, one empty."""
    root = photo_folder(tmp_path / "photos", images=4)
    first, second = sorted(root.rglob("*.png"))[2:4]
    first.write_bytes(first.read_bytes()[:60])
    second.write_bytes(b"")
    return root


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_damaged_files_are_named_and_the_rest_is_labelled_once(model, photos, tmp_path, caplog, monkeypatch):
    encoded = []
    kept = Classifier.probabilities
    monkeypatch.setattr(Classifier, "probabilities",
                        lambda own, images: encoded.append(len(images)) or kept(own, images))
    found = predict(model, photos, out=tmp_path / "labels.csv", device="cpu")
    assert (len(found), encoded) == (10, [10])
    rows = rows_of(tmp_path / "labels.csv")
    assert len(rows) == 12
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    broken = [row for row in rows if row["error"]]
    assert [row["error"].startswith("cannot read the image") for row in broken] == [True, True]
    assert not any(row["prediction"] or row["class_1"] for row in broken)
    assert all(f"left out: {row['image']}" in caplog.text for row in broken)
    good = [row for row in rows if not row["error"]]
    assert [(row["image"], from_cell(row["class_1"]), float(row["probability_1"])) for row in good] == [
        (each.image, each.classes[0][0], pytest.approx(each.classes[0][1], abs=1e-6)) for each in found]


def test_it_goes_on_where_it_was_stopped(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    straight = predict(model, photos, out=tmp_path / "straight.csv", device="cpu")
    said = []

    def stop(text):
        said.append(text)
        if len(said) == 6:
            raise KeyboardInterrupt

    out = tmp_path / "labels.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, out=out, echo=stop, device="cpu")
    (part,) = tmp_path.glob("labels.csv.*.part")
    assert not out.exists() and len(rows_of(part)) == 8              # six and the two that cannot be read
    part.write_text(part.read_text() + "cut in the mid")             # as by a killed process
    encoded, kept = [], Classifier.probabilities
    monkeypatch.setattr(Classifier, "probabilities",
                        lambda own, images: encoded.append(len(images)) or kept(own, images))
    again = predict(model, photos, out=out, device="cpu")
    assert sum(encoded) == 4
    assert [(each.image, each.classes[0][0]) for each in again] == [
        (each.image, each.classes[0][0]) for each in straight]
    assert out.read_text() == (tmp_path / "straight.csv").read_text(), "with unreadable files among those done, too"
    assert not list(tmp_path.glob("*.part"))


ODD = ("x.png", "00\u2028x.png", "=q.png", "'=q.png", "a\u2029b.png", "b.png", "c, d.png", '"e".png', "''=q.png")


def test_odd_names_keep_their_own_prediction_when_it_goes_on(model, tmp_path, monkeypatch):
    root = photo_folder(tmp_path / "photos", images=3)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(root / ODD[number])
    straight = {each.image: each.classes for each in predict(model, root, device="cpu")}
    assert len({classes[0][1] for classes in straight.values()}) > 5, "another answer for each photo"
    monkeypatch.setattr(module, "BATCH", 1)
    for stopped_at in (2, 5, 8):
        said = []

        def stop(text, said=said, stopped_at=stopped_at):
            said.append(text)
            if len(said) == stopped_at:
                raise KeyboardInterrupt

        out = tmp_path / f"{stopped_at}.csv"
        with pytest.raises(KeyboardInterrupt):
            predict(model, root, out=out, echo=stop, device="cpu")
        again = {each.image: each.classes for each in predict(model, root, out=out, device="cpu")}
        assert again.keys() == straight.keys()
        for image, classes in straight.items():
            assert again[image][0] == (classes[0][0], pytest.approx(classes[0][1], abs=1e-5)), image


@pytest.mark.parametrize("damage", [
    lambda lines: [*lines[:2], lines[2].replace("0.", "x."), *lines[3:]],
    lambda lines: [*lines[:2], lines[2].replace("0.", "7.", 1), *lines[3:]],
    lambda lines: [*lines, *lines[1:]],                                            # every line twice
    lambda lines: [*lines, f'"{"x" * 200_000}\n'],
    lambda lines: [lines[0], *(line.replace("bird", "b\ufffdrd") for line in lines[1:])],
    lambda lines: [*lines[:2], lines[2].replace(".png", "0.png"), *lines[3:]],     # an image that was not asked for
    lambda lines: [lines[0], f'"{lines[1]}', *lines[2:]]])
def test_lines_of_a_begun_table_that_are_damaged_are_made_again(model, photos, tmp_path, monkeypatch, damage):
    out, again = tmp_path / "straight.csv", tmp_path / "again.csv"
    predict(model, photos, out=out, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_complete", lambda *_: None)      # stopped before the end
        predict(model, photos, out=again, device="cpu")
    part, = tmp_path.glob("again.csv.*.part")
    part.write_text("".join(damage(part.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    predict(model, photos, out=again, device="cpu")
    assert sorted(again.read_text().splitlines()) == sorted(out.read_text().splitlines())


def test_a_table_never_takes_the_place_of_a_photo_nor_a_false_name(model, photos, tmp_path):
    photo = min(photos.rglob("*.png"))
    before = photo.read_bytes()
    for name in ("p.xlsx", "p.json", "p.tsv"):
        with pytest.raises(UserError, match=r"is written as a table \(.csv\) or as an object a line \(.jsonl\)"):
            predict(model, photos, out=tmp_path / name)
    with pytest.raises(UserError, match=r"has the name of an image; name a .csv or .jsonl file with out"):
        predict(model, photo, out=photo, device="cpu")
    assert photo.read_bytes() == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("change", ["label", "prediction", "spreadsheet", "none"])
def test_a_table_that_was_corrected_by_hand_is_not_replaced(model, photos, tmp_path, suffix, change):
    out = tmp_path / f"labels.{suffix}"
    found = predict(model, photos, out=out)
    lines, said = out.read_text().split("\n"), as_cell(found[0].prediction)
    row = 0 if suffix == "jsonl" else 1
    if suffix == "jsonl":
        value = json.loads(lines[row])
        lines[row] = json.dumps(value | {"label": "owl"} if change in ("label", "spreadsheet") else
                                value | ({"prediction": "owl"} if change == "prediction" else {}))
    elif change != "none":
        new = f",owl,{said}," if change != "prediction" else ",,owl,"
        assert f",,{said}," in lines[row]
        lines[row] = lines[row].replace(f",,{said},", new, 1)
    text = "\n".join(lines)
    if (change, suffix) == ("spreadsheet", "csv"):
        text = "\ufeff" + text.replace(",", ";")
    out.write_text(text, encoding="utf-8")
    if change == "none":
        assert predict(model, photos, out=out) == found
        return
    with pytest.raises(UserError, match=f"labels.{suffix} holds labels by hand, such as of .*: name another file with"):
        predict(model, photos, out=out)
    assert out.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("name", "content"), [("a.csv", "path,class\n1.jpg,jay\n"), ("a.csv", "hello"),
                                               ("a.jsonl", '{"path": "1.jpg"}\n'), ("a.jsonl", "[1]"), ("a.txt", "x")])
def test_a_file_of_something_else_is_not_replaced(model, photos, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is there and is no file of answers, which would replace it"):
        predict(model, photos, out=tmp_path / name)
    assert (tmp_path / name).read_text() == content


def test_nothing_that_can_be_read(model, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read the image .*1.jpg: the file is empty"):
        predict(model, tmp_path / "1.jpg", out=tmp_path / "labels.csv", device="cpu")
    assert not list(tmp_path.glob("labels*"))


def test_a_second_predict_of_one_table_is_refused_and_other_photos_are_labelled_anew(model, photos, tmp_path):
    out = tmp_path / "labels.csv"

    def stop(text):
        with pytest.raises(UserError, match=r"another predict writes labels\.csv; wait for it, or name another file"):
            predict(model, photos, out=out, device="cpu")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, out=out, echo=stop, device="cpu")
    others = photo_folder(tmp_path / "others", images=4)
    for path in others.rglob("*.png"):
        Image.new("RGB", (30, 30), "blue").save(path)                # of equal names
    assert len(predict(model, others, out=out, device="cpu")) == 12
    assert len({row["class_1"] for row in rows_of(out)}) == 1
    with pytest.raises(UserError, match=r"others is a folder; name a file with out, such as .*labels\.csv"):
        predict(model, photos, out=others, device="cpu")


def test_no_classes_are_not_the_classes_of_the_run(model, photos, capsys):
    with pytest.raises(UserError, match="classes is empty: give at least one class name, or leave it out"):
        predict(model, photos, classes=[])
    assert main(["predict", f"run={model}", f"images={photos}", "classes=[]", "device=cpu"]) == 2
    assert "classes is empty" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["backbone=vit_b32_openai", "backbone.pretrained=laion400m_e32", "+backbone.x=1"])
def test_a_tower_beside_a_run_is_refused(model, photos, key, capsys):
    assert main(["predict", str(model), str(photos), key, "device=cpu"]) == 2
    told = f"{key.partition('=')[0]}= is not read with a run, which names its own tower: leave it out"
    assert told in capsys.readouterr().err


def test_names_for_the_images_of_a_run_are_none_for_other_images(model, photos):
    dataset = xrvlm.image_folder(photo_folder(photos.parent / "more", images=2))
    with pytest.raises(UserError, match="class_names are other names for the run's own test images: name the classes"):
        xrvlm.evaluate(model, dataset, class_names={"a red bird": "x"})
    with pytest.raises(UserError, match="class_names must be a text or a list or a mapping or None, found 5"):
        xrvlm.evaluate(model, class_names=5)


def test_a_file_that_is_named_twice_is_labelled_once(photos):
    folder = sorted(photos.iterdir())[0]
    files = images_of([folder, photos / ".." / photos.name / folder.name, next(folder.glob("*.png"))])
    assert len(set(files.values())) == len(files) == 4


def test_a_list_of_files_gets_one_answer_for_each_in_its_order(model, photos, tmp_path, caplog):
    good, other, *_ = sorted(photos.rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    given = [other, str(good), broken, other.parent / ".." / other.parent.name / other.name, good]
    for options in ({}, {"out": tmp_path / "p.csv"}):
        answers = predict(model, given, **options)
        assert [Path(answer.image) for answer in answers] == [other, good, broken, other, good]
        assert [len(answer.classes) for answer in answers] == [3, 3, 0, 3, 3]
        assert answers[2].prediction == ""
        assert "cannot read the image" in answers[2].problem
        assert "left out 1 of 3 files" in caplog.text
    assert len(predict(model, [*given, photos])) == 10      # with a folder: each once, and those that can be read


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_broken_link_stops_no_other(model, photos, tmp_path, caplog):
    for path in sorted(photos.rglob("*.png"))[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "0.png").unlink(missing_ok=True)
    (tmp_path / "0.png").symlink_to(tmp_path / "gone.png")
    assert [answer.image for answer in predict(model, str(tmp_path / "*.png"))] == [str(tmp_path / "1.png")]
    assert "left out 1 of 2 files, the first because: cannot read the image" in caplog.text


def test_no_lock_is_left_where_the_table_cannot_be_written(model, photos, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("cannot write: No space left")

    monkeypatch.setattr("xrvlm.experiments.labelling.file.append_text", full)
    with pytest.raises(UserError, match="No space left"):
        predict(model, photos, out=tmp_path / "p.csv")
    assert not list(tmp_path.glob(".*.lock"))


def test_latest_of_another_folder(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "other" / "run"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(model.read_bytes())
    (run / "record.json").write_text("{}")
    photo = min(photos.rglob("*.png"))
    assert len(predict("other/latest", photo)) == 1
    assert main(["predict", "latest", str(photo), "runs=other", "workers=0"]) == 2
    assert "run=OTHER/latest for the newest in OTHER" in capsys.readouterr().err


def test_a_photo_whose_name_begins_with_a_dash(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    for words in (["-dash.png"], ["--", "-dash.png"]):
        assert main(["predict", str(model), *words, "workers=0", "device=cpu"]) == 0
        assert capsys.readouterr().out.startswith("-dash.png: ")
    assert main(["predict", str(model), "-gone.png"]) == 2
    assert "a photo of that name is ./-gone.png" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("classes=daisy,crocus",), ("classes=[daisy,crocus]", "text.templates=a,b")])
def test_a_list_without_brackets_is_told_how_it_is_written(photos, words, capsys):
    assert main(["predict", "backbone=tiny", f"images={photos}", *words, "workers=0", "device=cpu"]) == 2
    assert f"a list is written [{words[-1].partition('=')[2]}]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(1, 2, 3), ("tiny", None, None), (None, "linear_probe", {})])
def test_a_classifier_of_nonsense_is_told(arguments):
    with pytest.raises(UserError, match="clip must be a FrozenCLIP, found"):
        xrvlm.Classifier(*arguments)


def test_pixels_that_do_not_fit_the_tower_are_told(model):
    classifier = xrvlm.load(model, device="cpu")
    for images in (torch.zeros(3, 64, 64), torch.zeros(1, 3, 7, 7), torch.zeros(1, 3, 64, 64).byte(), [[0.0]]):
        with pytest.raises(UserError, match=r"images must be a tensor of floats \(b, 3, \d+, \d+\), normalised"):
            classifier.probabilities(images)
