"""The data sets of CoOp's benchmark and of ImageNet's variants, each on a small copy of its layout."""

import json
import shutil

import pytest
import replicas
import replicas_coop
from replicas import labels_of, sizes

from xrvlm.cli.main import main
from xrvlm.data.dataset import sample_shots, with_test_set
from xrvlm.data.datasets.aircraft import fgvc_aircraft
from xrvlm.data.datasets.caltech101 import caltech_101
from xrvlm.data.datasets.cars import stanford_cars
from xrvlm.data.datasets.dtd import describable_textures
from xrvlm.data.datasets.eurosat import euro_sat
from xrvlm.data.datasets.flowers102 import oxford_flowers
from xrvlm.data.datasets.food101 import food_101
from xrvlm.data.datasets.imagenet import imagenet_1k
from xrvlm.data.datasets.imagenet_a import imagenet_a
from xrvlm.data.datasets.imagenet_r import imagenet_r
from xrvlm.data.datasets.imagenet_sketch import imagenet_sketch
from xrvlm.data.datasets.imagenet_v2 import imagenet_v2
from xrvlm.data.datasets.oxford_pets import oxford_iiit_pets
from xrvlm.data.datasets.sun397 import sun_397
from xrvlm.data.datasets.ucf101 import ucf_101
from xrvlm.errors import UserError

# of each: the loader, the classes and sizes of the subsets of its small copy, one image and its class
OFFICIAL = {
    "food101": (food_101, ("apple pie", "baby back ribs", "tuna tartare"), (6, 0, 3),
                "images/tuna_tartare/tuna_tartare_2.jpg", "tuna tartare"),
    "dtd": (describable_textures, ("banded", "blotchy", "polka-dotted"), (3, 3, 3),
            "images/polka-dotted/polka-dotted_1.jpg", "polka-dotted"),
    "oxford_pets": (oxford_iiit_pets, ("Abyssinian", "american bulldog", "Bengal"), (6, 0, 3),
                    "images/american_bulldog_2.jpg", "american bulldog"),
    "flowers102": (oxford_flowers, ("pink primrose", "hard-leaved pocket orchid", "passion flower"), (3, 3, 6),
                   "jpg/image_00003.jpg", "passion flower"),
    "sun397": (sun_397, ("abbey", "indoor apartment building", "outdoor apartment building", "ball pit"), (8, 0, 4),
               "SUN397/a/apartment_building/outdoor/a_apartment_building_outdoor_1.jpg", "outdoor apartment building"),
    "caltech101": (caltech_101, ("face", "leopard", "inline skate"), (12, 0, 0),
                   "101_ObjectCategories/Faces/Faces_0.jpg", "face"),
    "eurosat": (euro_sat, ("annual crop fields", "forest", "herbaceous vegetation", "highway", "industrial buildings",
                           "pasture", "permanent crop plantations", "residential buildings", "river", "sea or lake"),
                (40, 0, 0), "2750/SeaLake/SeaLake_3.jpg", "sea or lake"),
    "ucf101": (ucf_101, ("Apply Eye Makeup", "Tai Chi", "Yo Yo"), (6, 0, 3),
               "UCF-101-midframes/Yo_Yo/v_YoYo_g00_c01.jpg", "Yo Yo"),
    "imagenet": (imagenet_1k, ("tench", "goldfish", "great white shark", "missile", "projectile"), (20, 0, 10),
                 "val/n04008634/n04008634_1.JPEG", "projectile"),
    "imagenet_v2": (imagenet_v2, ("tench", "goldfish", "great white shark", "missile", "projectile"), (0, 0, 10),
                    "imagenetv2-matched-frequency-format-val/657/657_0.jpeg", "missile"),
    "imagenet_sketch": (imagenet_sketch, ("tench", "goldfish", "great white shark", "missile", "projectile"),
                        (0, 0, 10), "sketch/n01440764/n01440764_0.JPEG", "tench"),
    "imagenet_a": (imagenet_a, ("goldfish", "great white shark", "missile"), (0, 0, 6),
                   "imagenet-a/n03773504/n03773504_1.jpg", "missile"),
    "imagenet_r": (imagenet_r, ("tench", "projectile"), (0, 0, 6), "imagenet-r/n04008634/n04008634_0.jpg",
                   "projectile"),
}
# what CoOp's file is called, the loader, where its paths begin, the classes' folders with CoOp's names
COOP = {
    "food101": ("Food101", "images", {"apple_pie": "apple_pie", "tuna_tartare": "tuna_tartare"}),
    "dtd": ("DescribableTextures", "images", {"banded": "banded", "polka-dotted": "polka-dotted"}),
    "sun397": ("SUN397", "SUN397", {"a/apartment_building/outdoor": "outdoor apartment_building", "a/abbey": "abbey"}),
    "caltech101": ("Caltech101", "101_ObjectCategories", {"Faces": "face", "inline_skate": "inline_skate"}),
    "eurosat": ("EuroSAT", "2750", {"Forest": "Forest", "SeaLake": "Sea or Lake"}),
    "ucf101": ("UCF101", "UCF-101-midframes", {"Yo_Yo": "Yo_Yo", "Tai_Chi": "Tai_Chi"}),
}
DOWNLOADS = {
    "food101": ("Food101", "food-101"), "dtd": ("DTD", "dtd/dtd"), "oxford_pets": ("OxfordIIITPet", "oxford-iiit-pet"),
    "flowers102": ("Flowers102", "flowers-102"), "caltech101": ("Caltech101", "caltech101"),
    "eurosat": ("EuroSAT", "eurosat"), "sun397": ("SUN397", "."), "aircraft": ("FGVCAircraft", "fgvc-aircraft-2013b"),
}
LOADERS = {name: values[0] for name, values in OFFICIAL.items()} | {"aircraft": fgvc_aircraft}


def replica(name, root):
    return getattr(replicas if name == "aircraft" else replicas_coop, name)(root)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_layout(tmp_path, name):
    loader, classes, counts, image, label = OFFICIAL[name]
    dataset = loader(replica(name, tmp_path))
    assert (dataset.name, dataset.split.classes, sizes(dataset)) == (name, classes, counts)
    labels = labels_of(dataset)
    assert labels[image] == label
    assert set(labels.values()) == set(classes)


def test_the_subsets_are_the_official_ones(tmp_path):
    dataset = food_101(replicas_coop.food101(tmp_path / "food"))
    assert {item.id[-5] for item in dataset.split.train} == {"0", "1"}
    dataset = oxford_iiit_pets(replicas_coop.oxford_pets(tmp_path / "pets"))
    assert {item.id[-5] for item in dataset.split.test} == {"2"}
    dataset = oxford_flowers(replicas_coop.flowers102(tmp_path / "flowers"))
    assert [item.id[-6:-4] for item in dataset.split.val] == ["07", "08", "09"]
    dataset = ucf_101(replicas_coop.ucf101(tmp_path / "ucf"))
    assert all("_g00_" in item.id for item in dataset.split.test)
    dataset = sun_397(replicas_coop.sun397(tmp_path / "sun"))
    assert all(item.id.endswith("_1.jpg") for item in dataset.split.test)


def test_a_set_without_an_official_split_keeps_a_quarter_for_testing(tmp_path):
    split = with_test_set(euro_sat(replicas_coop.eurosat(tmp_path)).split)
    assert (len(split.train), len(split.test)) == (30, 10)


def test_a_variant_of_imagenet_has_nothing_to_train_on(tmp_path):
    split = imagenet_a(replicas_coop.imagenet_a(tmp_path)).split
    with pytest.raises(UserError, match="no training image of 3 classes: goldfish, great white shark, missile"):
        sample_shots(split, 1, seed=1)


@pytest.mark.parametrize("name", COOP)
def test_coops_split(tmp_path, name):
    file, images, names = COOP[name]
    root, loader = replica(name, tmp_path), LOADERS[name]
    replicas_coop.coop_split(root / f"split_zhou_{file}.json", root / images, names)
    dataset = loader(root, split="coop")
    words = {folder: word.replace("_", " ") for folder, word in names.items()}
    assert dataset.split.classes == tuple(reversed(words.values()))            # by CoOp's numbers
    labels = labels_of(dataset)
    assert all(f"{images}/{folder}/" in path for path, label in labels.items()
               for folder, word in words.items() if word == label)
    record = json.loads((root / f"split_zhou_{file}.json").read_text())
    for subset in ("train", "val", "test"):
        assert {item.id for item in getattr(dataset.split, subset)} == {
            f"{images}/{path}" for path, *_ in record[subset]}
    assert set(labels) != set(labels_of(loader(root))), "the official split stays the default"


def test_coops_split_of_sets_whose_images_lie_flat(tmp_path):
    root = replicas_coop.oxford_pets(tmp_path / "pets")
    shutil.rmtree(root / "annotations")
    rows = {subset: [[f"{breed}_{key}.jpg", label, breed.lower()] for label, breed in enumerate(replicas_coop.PETS)]
            for key, subset in enumerate(("train", "val", "test"))}
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps(rows))
    dataset = oxford_iiit_pets(root, split="coop")
    assert dataset.split.classes == ("abyssinian", "american bulldog", "bengal")
    assert labels_of(dataset)["images/Bengal_1.jpg"] == "bengal"
    root = replicas_coop.flowers102(tmp_path / "flowers")
    rows = {subset: [[f"image_{key + label:05}.jpg", label, f"flower {label}"] for label in range(2)]
            for key, subset in ((1, "train"), (3, "val"), (5, "test"))}
    (root / "split_zhou_OxfordFlowers.json").write_text(json.dumps(rows))
    assert labels_of(oxford_flowers(root, split="coop"))["jpg/image_00006.jpg"] == "flower 1"


def test_coops_split_of_cars_names_the_folders(tmp_path):
    root = replicas.cars(tmp_path)
    rows = {"train": [["cars_train/00001.jpg", 1, "2012 Ram"], ["cars_train/00002.jpg", 0, "2000 AM"]],
            "val": [["cars_train/00003.jpg", 1, "2012 Ram"]], "test": [["cars_test/00001.jpg", 1, "2012 Ram"]]}
    (root / "split_zhou_StanfordCars.json").write_text(json.dumps(rows))
    dataset = stanford_cars(root, split="coop")
    assert (dataset.split.classes, sizes(dataset)) == (("2000 AM", "2012 Ram"), (2, 1, 1))
    assert labels_of(dataset)["cars_test/00001.jpg"] == "2012 Ram"
    assert sizes(stanford_cars(root)) == (6, 0, 3)


@pytest.mark.parametrize(("change", "message"), [
    (lambda rows: rows.pop("val"), r"is not a split of CoOp's form \(KeyError\('val'\)"),
    (lambda rows: rows["train"].append(["x.jpg", 0]), "is not a split of CoOp's form"),
    (lambda rows: rows["test"].append(["apple_pie/x.jpg", 0, "cake"]), "calls class 0 both 'tuna_tartare' and 'cake'"),
    (lambda rows: rows["test"].append(["cake/x.jpg", 7, "cake"]), "not numbered from 0 without a gap"),
    (lambda rows: rows["test"].append(["apple_pie/x.jpg", 1, "apple_pie"]), r"1 images that .*images/apple_pie/x\.jpg"),
])
def test_a_damaged_split_of_coop_is_told(tmp_path, change, message):
    root = replicas_coop.food101(tmp_path)
    with pytest.raises(UserError, match=r"lacks split_zhou_Food101\.json; get split_zhou_Food101\.json from https://github"):
        food_101(root, split="coop")
    path = replicas_coop.coop_split(root / "split_zhou_Food101.json", root / "images", COOP["food101"][2])
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
        food_101(root, split="coop")
    with pytest.raises(UserError, match=r"unknown split 'zhou'; available: coop, official"):
        food_101(root, split="zhou")


# --- download, through a stub of torchvision: nothing is ever fetched in a test

@pytest.mark.parametrize("name", DOWNLOADS)
def test_torchvision_downloads_what_is_not_there(tmp_path, monkeypatch, name):
    downloader, folder = DOWNLOADS[name]
    calls = []

    def stub(root, *, download):
        calls.append((root, download))
        replica(name, root / folder)

    monkeypatch.setattr(f"torchvision.datasets.{downloader}", stub)
    root = tmp_path / "new" / "place"
    loader = LOADERS[name]
    dataset = loader(root, download=True)
    assert calls == [(root, True)]
    assert labels_of(dataset)
    assert labels_of(loader(root, download=True)) == labels_of(loader(root)) == labels_of(dataset)
    assert len(calls) == 1, "what is there is not fetched again"


def test_a_download_that_fails_is_told_with_the_address(tmp_path, monkeypatch):
    def stub(root, *, download):
        raise RuntimeError("File not found\nor corrupted.")

    monkeypatch.setattr("torchvision.datasets.DTD", stub)
    with pytest.raises(UserError, match=r"could not download DTD \(RuntimeError: File not found or corrupted\.\); get "
                                        "it from https://www.robots.ox.ac.uk/~vgg/data/dtd/"):
        describable_textures(tmp_path / "x", download=True)


def test_torchvision_has_the_classes_that_layouts_name():
    from torchvision import datasets

    for downloader, _ in DOWNLOADS.values():
        assert callable(getattr(datasets, downloader))


# --- what goes wrong, and what `data check` says

def test_folders_that_are_no_synsets_are_told(tmp_path):
    root = replicas_coop.imagenet(tmp_path)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match="val holds no folder of a class: .* such as n01440764"):
        imagenet_1k(root)
    (root / "val" / "dogs").mkdir()
    with pytest.raises(UserError, match="holds dogs, where folders such as n01440764 belong"):
        imagenet_1k(root)


def test_lists_that_name_an_unknown_class_are_told(tmp_path):
    root = replicas_coop.food101(tmp_path / "food")
    replicas_coop.write_lines(root / "meta" / "classes.txt", ["apple_pie", "tuna_tartare"])
    with pytest.raises(UserError, match=r"names 'baby_back_ribs/baby_back_ribs_0', whose class is not in meta"):
        food_101(root)
    root = replicas_coop.flowers102(tmp_path / "flowers")
    (root / "imagelabels.mat").write_bytes((root / "setid.mat").read_bytes())
    with pytest.raises(UserError, match=r"imagelabels\.mat has no variable 'labels'"):
        oxford_flowers(root)


@pytest.mark.parametrize("name", OFFICIAL)
def test_data_check_says_what_is_missing_and_where_it_is(tmp_path, capsys, name):
    root = replica(name, tmp_path / "set")
    assert main(["data", "check", f"data={name}", f"data.root={root}"]) == 2
    out, err = capsys.readouterr()
    assert f"  classes  {len(OFFICIAL[name][1])} (officially " in out
    assert "missing" not in out
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", f"data={name}", f"data.root={tmp_path / 'empty'}"]) == 2
    out, err = capsys.readouterr()
    assert "get it from http" in err
    assert ("or pass data.download=true" in err) == (name in DOWNLOADS)


def test_data_check_of_coops_split(tmp_path, capsys):
    root = replicas_coop.dtd(tmp_path)
    assert main(["data", "check", "data=dtd", f"data.root={root}", "data.split=coop"]) == 2
    assert "  missing  split_zhou_DescribableTextures.json" in capsys.readouterr().out
    file, images, names = COOP["dtd"]
    replicas_coop.coop_split(root / f"split_zhou_{file}.json", root / images, names)
    assert main(["data", "check", "data=dtd", f"data.root={root}", "data.split=coop"]) == 2
    assert "(officially 2820 train, 1128 val, 1692 test)" in capsys.readouterr().out
