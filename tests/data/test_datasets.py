"""The published data sets, each on a small copy of its real layout."""

import json
import shutil
from collections import Counter

import pytest
import replicas
from replicas import labels_of, sizes
from scipy.io import loadmat, savemat

from xrvlm.cli.main import main
from xrvlm.data.dataset import sample_shots
from xrvlm.data.datasets.aircraft import fgvc_aircraft
from xrvlm.data.datasets.cars import stanford_cars
from xrvlm.data.datasets.cub import cub_200_2011
from xrvlm.data.datasets.dogs import stanford_dogs
from xrvlm.data.datasets.nabirds import nabirds_v1
from xrvlm.errors import UserError


def test_cub(tmp_path):
    dataset = cub_200_2011(replicas.cub(tmp_path))
    assert dataset.name == "cub"
    assert dataset.split.classes == ("Black footed Albatross", "Laysan Albatross", "Red winged Blackbird")
    assert sizes(dataset) == (9, 0, 6)
    labels = labels_of(dataset)
    path = "images/002.Laysan_Albatross/Laysan_Albatross_0003_9.jpg"
    assert labels[path] == "Laysan Albatross"
    assert path in {item.id for item in dataset.split.test}
    assert all(name.replace(" ", "_") in path for path, name in labels.items())


def test_cub_by_its_numbers_not_by_the_order_of_lines(tmp_path):
    before = labels_of(cub_200_2011(replicas.cub(tmp_path)))
    for file in tmp_path.glob("*.txt"):
        file.write_text("\n".join(reversed(file.read_text().splitlines())))
    dataset = cub_200_2011(tmp_path)
    assert dataset.split.classes[0] == "Black footed Albatross"
    assert labels_of(dataset) == before


def test_nabirds_has_the_classes_with_images_in_the_order_of_their_numbers(tmp_path):
    dataset = nabirds_v1(replicas.nabirds(tmp_path))
    assert dataset.split.classes == ("Common Eider (Adult male)", "Brant (Black)", "Swainson's Hawk (Dark morph)")
    assert sizes(dataset) == (9, 0, 3)
    numbers = {path.split("/")[1]: name for path, name in labels_of(dataset).items()}
    assert numbers == dict(zip(("0295", "0313", "1010"), dataset.split.classes, strict=True))
    # hierarchy.txt: 0 above 1, 1 above 295 and 313; it does not name 1010
    eider, brant, hawk = dataset.split.classes
    top, geese = (replicas.BIRDS[number] for number in (0, 1))
    assert dataset.hierarchy == {eider: geese, brant: geese, geese: top, top: "", hawk: ""}


def test_nabirds_without_its_tree_has_none(tmp_path):
    root = replicas.nabirds(tmp_path)
    (root / "hierarchy.txt").unlink()
    assert nabirds_v1(root).hierarchy is None


@pytest.mark.parametrize("places", [{}, {"images": "images/Images", "lists": "lists"}])
def test_dogs(tmp_path, places):
    dataset = stanford_dogs(replicas.dogs(tmp_path, **places))
    assert dataset.split.classes == ("Chihuahua", "Shih-Tzu", "black-and-tan coonhound")
    assert sizes(dataset) == (6, 0, 3)
    labels = labels_of(dataset)
    assert labels[f"{places.get('images', 'Images')}/n02086240-Shih-Tzu/n02086240_2.jpg"] == "Shih-Tzu"
    assert all(name.replace(" ", "_") in path for path, name in labels.items())


@pytest.mark.parametrize("places", [
    {}, {"devkit": "."}, {"devkit": "car_devkit/devkit", "nested": True},
    {"test_list": "devkit/cars_test_annos_withlabels.mat"}], ids=str)
def test_cars(tmp_path, places):
    dataset = stanford_cars(replicas.cars(tmp_path, **places))
    assert dataset.split.classes == replicas.CARS
    assert sizes(dataset) == (6, 0, 3)
    labels, inner = labels_of(dataset), "nested" in places
    assert labels["cars_train/cars_train/00002.jpg" if inner else "cars_train/00002.jpg"] == replicas.CARS[0]
    assert labels["cars_test/cars_test/00001.jpg" if inner else "cars_test/00001.jpg"] == replicas.CARS[2]


def test_cars_in_one_list(tmp_path):
    dataset = stanford_cars(replicas.cars_one_list(tmp_path))
    assert dataset.split.classes == replicas.CARS
    assert sizes(dataset) == (6, 0, 3)
    assert labels_of(dataset)["car_ims/000007.jpg"] == replicas.CARS[1]
    assert "car_ims/000007.jpg" in {item.id for item in dataset.split.test}


@pytest.mark.parametrize("data", ["data", "."])
def test_aircraft(tmp_path, data):
    root = replicas.aircraft(tmp_path, data)
    dataset = fgvc_aircraft(root)
    assert dataset.split.classes == replicas.VARIANTS    # the order of variants.txt
    assert sizes(dataset) == (8, 4, 4)
    images = "images" if data == "." else "data/images"
    assert labels_of(dataset)[f"{images}/0000200.jpg"] == "F/A-18"
    assert sizes(fgvc_aircraft(root, trainval=True)) == (12, 0, 4)
    drawn = sample_shots(dataset.split, 1, seed=1, val=True)
    assert {item.id for item in drawn.val} <= {item.id for item in dataset.split.val}


def test_aircraft_at_other_levels(tmp_path):
    root = replicas.aircraft(tmp_path)
    families, makers = (fgvc_aircraft(root, level=level) for level in ("family", "manufacturer"))
    assert families.split.classes == ("Boeing 707", "Boeing 727", "DC-3", "F/A-18")
    assert labels_of(families)["data/images/0000200.jpg"] == "F/A-18"
    assert Counter(labels_of(makers).values()) == {"Boeing": 8, "McDonnell Douglas": 4, "Douglas Aircraft Company": 4}
    with pytest.raises(UserError, match=r"unknown level 'species'; available: family, manufacturer, variant"):
        fgvc_aircraft(root, level="species")


def test_lists_of_one_line_are_read(tmp_path):
    root = replicas.cars(tmp_path)
    path = root / "cars_test_annos_withlabels.mat"
    savemat(path, {"annotations": loadmat(path)["annotations"][:, :1]})
    assert sizes(stanford_cars(root)) == (6, 0, 1)


def test_other_names_and_another_name_of_the_set(tmp_path):
    (tmp_path / "names.txt").write_text("Albatross A\nAlbatross B\nBlackbird\n")
    dataset = cub_200_2011(replicas.cub(tmp_path / "cub"), class_names=str(tmp_path / "names.txt"), name="small")
    assert (dataset.name, dataset.split.classes) == ("small", ("Albatross A", "Albatross B", "Blackbird"))


# --- what goes wrong

def test_lists_that_are_not_the_published_ones_are_told(tmp_path, caplog):
    cub_200_2011(replicas.cub(tmp_path))
    assert "name 9 train, 6 test images; officially CUB-200-2011 has 5994 train, 5794 test" in caplog.text


def test_missing_images_are_told_or_left_out(tmp_path, caplog):
    root = replicas.cub(tmp_path)
    for key in (1, 2):
        (root / "images" / replicas.CUB[0] / f"Black_footed_Albatross_000{key - 1}_{key}.jpg").unlink()
    with pytest.raises(UserError, match=r"2 images that the lists of CUB-200.*0000_1\.jpg.*skip_damaged=True"):
        cub_200_2011(root)
    assert sizes(cub_200_2011(root, skip_damaged=True)) == (7, 0, 6)
    assert "skipped 2 of 15 images" in caplog.text


def test_a_wrong_folder_is_told_with_the_right_one(tmp_path):
    right = replicas.cub(tmp_path / "downloads" / "CUB_200_2011")
    for wrong in (tmp_path, tmp_path / "downloads", right / "images", right / "images" / replicas.CUB[0]):
        with pytest.raises(UserError, match=f"is not CUB-200-2011 as published.*root='{right}'$"):
            cub_200_2011(wrong)
    (tmp_path / "other" / "images").mkdir(parents=True)
    shutil.rmtree(right)
    with pytest.raises(UserError, match=r"lacks images\.txt, .*; get it from https://www\.vision\.caltech\.edu"):
        cub_200_2011(tmp_path / "other")
    with pytest.raises(UserError, match="there is no folder"):
        cub_200_2011(tmp_path / "nowhere")


@pytest.mark.parametrize(("file", "change", "message"), [
    ("train_test_split.txt", lambda text: text[4:], "has no line for image 1 of images.txt"),
    ("image_class_labels.txt", lambda text: text.replace("15 3", "15 4"), "has no class 4, which image_class_labels"),
    ("image_class_labels.txt", lambda text: text.replace("15 3", "15"), "damaged: no value in '15'"),
    ("images.txt", lambda text: text + text, "damaged: a second line for '1 001"),
    ("train_test_split.txt", lambda text: text.replace("15 0", "15 x"), "has 'x' for image 15, not 0 or 1"),
    ("classes.txt", lambda text: text.replace("002.Laysan", "002.Black_footed"), "duplicate class names"),
])
def test_damaged_lists_of_text_are_told(tmp_path, file, change, message):
    root = replicas.cub(tmp_path)
    (root / file).write_text(change((root / file).read_text()))
    with pytest.raises(UserError, match=message):
        cub_200_2011(root)
    (root / file).write_bytes(b"1 \xff\xfe")
    with pytest.raises(UserError, match=f"cannot read .*{file}"):
        cub_200_2011(root)


def test_damaged_mat_files_are_told(tmp_path):
    root = replicas.cars(tmp_path)
    path = root / "cars_test_annos_withlabels.mat"
    good = path.read_bytes()
    for damage in (b"", b"hello" * 99, good[:-40]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"cannot read .*cars_test_annos_withlabels\.mat"):
            stanford_cars(root)
    shutil.copy(root / "devkit" / "cars_test_annos.mat", path)
    with pytest.raises(UserError, match=r"no field 'class' \(cars_test_annos\.mat comes without labels"):
        stanford_cars(root)
    shutil.copy(root / "devkit" / "cars_meta.mat", path)
    with pytest.raises(UserError, match="has no variable 'annotations'"):
        stanford_cars(root)
    path.unlink()
    with pytest.raises(UserError, match=r"lacks cars_test_annos_withlabels\.mat"):
        stanford_cars(root)


def test_labels_without_a_name_are_told(tmp_path):
    root = replicas.cars(tmp_path / "cars")
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": loadmat(root / "devkit" / "cars_meta.mat")[
        "class_names"][:, :2]})
    with pytest.raises(UserError, match="has class 3, but there are 2 names"):
        stanford_cars(root)
    root = replicas.dogs(tmp_path / "dogs")
    content = {key: value for key, value in loadmat(root / "test_list.mat").items() if not key.startswith("_")}
    savemat(root / "test_list.mat", content | {"labels": content["labels"][::-1]})
    with pytest.raises(UserError, match="puts n02085620-Chihuahua.* into class 3, which is n02089078-black"):
        stanford_dogs(root)
    root = replicas.aircraft(tmp_path / "aircraft")
    (root / "data" / "variants.txt").write_text("707-320\n727-200\nDC-3\n")
    with pytest.raises(UserError, match=r"names 'F/A-18', which is not in variants\.txt"):
        fgvc_aircraft(root)


# --- the paper's run

def test_the_papers_run_on_a_small_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replicas.cub(tmp_path / "CUB_200_2011")
    assert main(["adapt", "-m", "experiment=cub_vit_b16", "data.root=CUB_200_2011", "shots=2,all", "backbone=tiny",
                 "backbone.resize_to=73", "device=cpu", "workers=0", "recipe.epochs=2", "method.image_parts=2",
                 "method.text_parts=2", "method.context_length=2", "method.hidden=8"]) == 0
    lines = (tmp_path / "runs" / "paper" / "results.jsonl").read_text().splitlines()
    records = {record["shots"]: record for record in map(json.loads, lines)}
    expected = {"method": "xr_vlm", "head": "cross", "data": "cub", "features": "online", "selection": "last",
                "backbone": "tiny (resize 73, bilinear)"}
    for shots, budget in ((2, 6), ("all", 9)):
        assert {key: records[shots][key] for key in expected} == expected
        assert records[shots]["label_budget"] == budget
    (folder,) = (tmp_path / "runs" / "paper").glob("*-all-*")
    assert main(["eval", f"run={folder}", "device=cpu", "workers=0", "features=online"]) == 0
    (again,) = (folder / "eval").rglob("predictions.csv")
    assert again.read_text() == (folder / "predictions.csv").read_text()
