"""`xrvlm explain` as a user types it."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from photos import CLASSES, photo_folder, write_photo
from PIL import Image

from xrvlm.cli.main import main, quote

pytestmark = pytest.mark.usefixtures("at_home")
FAST = ("backbone=tiny", "device=cpu", "workers=0", "shots=2", "features.views=1")
XR_VLM = ("method.image_parts=2", "method.text_parts=2", "method.context_length=2", "method.hidden=8",
          "recipe.epochs=1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "birds", images=4)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return adapted(photos, tmp_path_factory.mktemp("runs"), *XR_VLM)


def adapted(photos, place, *options):
    assert main(["adapt", f"data.root={photos}", f"runs={place}", f"features.cache={place / 'cache'}", *FAST,
                 *options]) == 0
    (folder,) = [path.parent for path in place.rglob("record.json")]
    return folder


def explained(run, images, *options) -> int:
    return main(["explain", f"run={run}", f"images={images}", "device=cpu", *options])


def told(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def predictions(run) -> dict[str, str]:
    rows = json.loads((run / "explain" / "explanations.json").read_text())["images"]
    return {row["image"]: row["prediction"] for row in rows}


def test_a_folder(photos, run, capsys):
    capsys.readouterr()
    assert explained(run, photos, "against=Sarkel's finch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 + 2
    assert lines[-1] == str(run / "explain")
    assert "12 images: mean overlap of the part maps" in lines[-2]
    assert all(re.search(r"png: .+ \d+\.\d%, then .+ \d+\.\d%", line) and "(true: " not in line for line in lines[:-2])
    assert all("strongest: part" in line and "dead parts" in line for line in lines[:-2])
    for line in lines[:-2]:
        instead = ", the runner-up, since this is the class asked for" in line
        assert instead == (f": {CLASSES[1]} " in line)
        assert instead == (f" against {CLASSES[1]};" not in line)
    found = json.loads((run / "explain" / "explanations.json").read_text())
    assert sorted(path.relative_to(run / "explain").as_posix() for path in (run / "explain").rglob("*.png")) \
        == sorted(row["image"] for row in found["images"])
    assert found["steps"] >= 64
    assert found["summary"]["parts"] == 24
    terms = torch.tensor([row["logit"]["contributions"] for row in found["images"]]).abs()    # (n, g, m)
    whole = terms.sum(dim=(1, 2))
    for name, axis in (("logit_by_prompt", 2), ("logit_by_part", 1)):
        expected = (terms.sum(dim=axis) / whole[:, None]).mean(dim=0)
        assert found["summary"][name] == pytest.approx(expected.tolist(), rel=1e-3)
    assert found["summary"]["logit_by_prompt"] != found["summary"]["logit_by_part"]
    for row in found["images"]:
        assert ("margin" in row) == (row["prediction"] != CLASSES[1])
        assert row["logit"]["gap"] < 1e-3
        assert len(row["logit"]["contributions"]) == 2
        assert len(row["logit"]["strongest"][0]) == 4
    assert set(found["words"]) == set(predictions(run).values())
    assert len(found["words"][found["images"][0]["prediction"]][0]) == 2


def test_the_nearest_training_images(photos, run, tmp_path):
    split = json.loads((run / "split.json").read_text())
    own = {entry["path"]: entry["class"] for entry in split["train"]}
    first = next(iter(own))
    for count in (0, 2):
        assert explained(run, photos / first, f"out={tmp_path / str(count)}", f"nearest={count}") == 0
    (row,) = json.loads((tmp_path / "2" / "explanations.json").read_text())["images"]
    assert [set(each) for each in row["nearest"]] == [{"image", "class", "similarity"}] * 2
    assert row["nearest"][0] == {"image": first, "class": own[first], "similarity": pytest.approx(1, abs=1e-4)}
    assert own[row["nearest"][1]["image"]] == row["nearest"][1]["class"]
    assert "nearest" not in json.loads((tmp_path / "0" / "explanations.json").read_text())["images"][0]
    heights = []
    for count in "02":
        with Image.open(tmp_path / count / Path(first).name) as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1]       # with a band for the photos


def test_photos_of_several_folders_have_their_pictures_in_out(photos, run, tmp_path):
    files = [str(photos / name / "0.png") for name in CLASSES[:2]]
    assert main(["explain", str(run), *files, f"out={tmp_path / 'out'}", "device=cpu"]) == 0
    rows = json.loads((tmp_path / "out" / "explanations.json").read_text())["images"]
    assert [row["image"] for row in rows] == [f"{name}/0.png" for name in CLASSES[:2]]
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
    assert not list(photos.rglob("0.png.png"))


def test_without_the_images_of_the_run_it_explains_all_the_same(photos, tmp_path, caplog):
    shutil.copytree(photos, tmp_path / "moved")
    run = adapted(tmp_path / "moved", tmp_path / "runs", *XR_VLM)
    shutil.rmtree(tmp_path / "moved")
    assert explained(run, photos / CLASSES[0] / "0.png", f"out={tmp_path / 'out'}") == 0
    assert "nearest" not in json.loads((tmp_path / "out" / "explanations.json").read_text())["images"][0]


def test_without_images_the_test_set_of_the_run(run, tmp_path, capsys):
    assert main(["explain", f"run={run}", f"out={tmp_path / 'out'}", "pictures=false", "device=cpu"]) == 0
    rows = json.loads((tmp_path / "out" / "explanations.json").read_text())["images"]
    with (run / "predictions.csv").open(newline="") as file:
        assert [(row["image"], row["prediction"]) for row in rows] == [
            (row["image"], row["prediction"]) for row in csv.DictReader(file)]


def test_one_file_numbers_alone(photos, run, tmp_path, capsys):
    capsys.readouterr()
    assert explained(run, photos / CLASSES[0] / "0.png", f"out={tmp_path / 'a (b)'}", "pictures=false") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[:4]] == ["0.png:", "prompt", "prompt", "1"]
    assert lines[1].startswith("prompt 1, the nearest word to each learned vector and its distance: ")
    assert lines[1].count(",") >= 2          # two vectors
    assert [path.name for path in (tmp_path / "a (b)").glob("[!.]*")] == ["explanations.json"]


def test_two_images_of_one_stem_have_a_picture_each(run, tmp_path):
    for suffix in ("png", "jpg"):
        write_photo(tmp_path / "in" / f"a.{suffix}", 0, 1)
    assert explained(run, tmp_path / "in", f"out={tmp_path / 'out'}") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png.png", "a.jpg.png"}


def test_no_photo_is_overwritten(photos, run, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "mine")
    before = (tmp_path / "mine" / CLASSES[0] / "0.png").read_bytes()
    assert explained(run, tmp_path / "mine", f"out={tmp_path / 'mine'}") == 2
    assert "would replace the images" in told(capsys)
    assert (tmp_path / "mine" / CLASSES[0] / "0.png").read_bytes() == before


def test_mistakes_are_told_in_one_line(photos, run, tmp_path, capsys):
    photo = photos / CLASSES[0] / "0.png"
    assert explained(run, photo, "against=heron") == 2
    assert "unknown class 'heron'; available: Sarkel's finch, blue tit, wren" in told(capsys)
    assert explained(run, photo) == 0
    predicted = predictions(run)["0.png"]
    capsys.readouterr()
    assert explained(run, photo, f"against={predicted}") == 0
    line = capsys.readouterr().out.splitlines()[0]
    second = re.search(r"then (.+?) \d+\.\d%", line)[1]
    assert f" against {second}, the runner-up, since this is the class asked for; strongest" in line
    row, = json.loads((run / "explain" / "explanations.json").read_text())["images"]
    assert row["against"] == second
    assert row["margin"]["value"] > 0
    (tmp_path / "empty").mkdir()
    assert explained(run, tmp_path / "empty") == 2
    assert "found no image below" in told(capsys)
    (tmp_path / "damaged.png").write_bytes(b"no image")
    assert explained(run, tmp_path / "damaged.png") == 2
    assert "cannot read the image" in told(capsys)
    assert explained(run, photo, "pictures=3") == 2
    assert "pictures must be true or false" in told(capsys)
    assert main(["explain", f"images={photo}"]) == 2
    assert "run is not given" in told(capsys)


def test_a_run_without_parts(photos, tmp_path, capsys):
    probe = adapted(photos, tmp_path / "runs", "method=linear_probe")
    capsys.readouterr()
    assert explained(probe, photos) == 2
    assert "linear probe has no image parts to explain; explain takes runs of methods" in told(capsys)
    assert not (probe / "explain").exists()


def test_names_are_taken_as_they_stand():
    assert quote("against=Baird's Sparrow") == r"against='Baird\'s Sparrow'"


def test_a_folder_that_cannot_be_written_is_told_before_the_work(run, photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert explained(run, photos / CLASSES[0] / "0.png", f"out={tmp_path / 'file' / 'out'}") == 2
    assert "file/out: name another folder with out=DIR" in capsys.readouterr().err


def test_words_on_the_photo(photos, tmp_path, capsys):
    run = adapted(photos, tmp_path / "runs", "method=filip", "recipe.epochs=1")
    capsys.readouterr()
    assert explained(run, photos / CLASSES[0], f"against={CLASSES[1]}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^4 images: mean overlap of the word maps \d\.\d+, dead words 0 of \d+$", lines[-2])
    assert all("strongest: " in line and "dead words 0 of " in line for line in lines[:-2])
    found = json.loads((run / "explain" / "explanations.json").read_text())
    assert set(found["summary"]) == {"images", "overlap", "words", "dead_words", "largest_gap"}
    assert found["summary"]["largest_gap"] < 1e-3
    for row in found["images"]:
        assert row["words"] == row["logit"]["parts"]
        assert row["words"][:4] == ["a", "photo", "of", "a"]
        assert len(row["logit"]["contributions"]) == 2
        total = sum(map(sum, row["logit"]["contributions"])) + row["logit"]["added"]
        assert total == pytest.approx(row["logit"]["value"], abs=1e-2)
        assert (run / "explain" / row["image"]).with_suffix(".png").is_file()
