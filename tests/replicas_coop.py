"""Small copies of the data sets of CoOp's benchmark and of ImageNet's variants; see replicas.py."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from photos import write_photo
from scipy.io import savemat

SYNSETS = ("n01440764", "n01443537", "n01484850", "n03773504", "n04008634")     # 0, 1, 2, 657, 744 of 1,000
SCENES = ("a/abbey", "a/apartment_building/indoor", "a/apartment_building/outdoor", "b/ball_pit")
PETS = ("Abyssinian", "american_bulldog", "Bengal")
LANDS = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
         "Residential", "River", "SeaLake")


def folders(root: Path, names: Sequence[str], images: int, suffix: str = ".jpg") -> Path:
    """`images` photos in `root`/<name> for each name, no two alike."""
    for label, name in enumerate(names):
        for key in range(images):
            write_photo(root / name / f"{name.replace('/', '_')}_{key}{suffix}", label % 3, 100 * (label // 3) + key)
    return root


def food101(root: Path) -> Path:
    names = ("apple_pie", "baby_back_ribs", "tuna_tartare")
    folders(root / "images", names, 3)
    (root / "meta").mkdir()
    write_lines(root / "meta" / "classes.txt", names)
    for subset, keys in (("train", (0, 1)), ("test", (2,))):
        write_lines(root / "meta" / f"{subset}.txt", [f"{name}/{name}_{key}" for name in names for key in keys])
    return root


def dtd(root: Path) -> Path:
    names = ("banded", "blotchy", "polka-dotted")
    folders(root / "images", names, 3)
    (root / "labels").mkdir()
    for key, subset in enumerate(("train", "val", "test")):
        write_lines(root / "labels" / f"{subset}1.txt", [f"{name}/{name}_{key}.jpg" for name in names])
    return root


def oxford_pets(root: Path) -> Path:
    rows = {"trainval": [], "test": []}
    for label, breed in enumerate(PETS):
        for key in range(3):
            write_photo(root / "images" / f"{breed}_{key}.jpg", label, key)
            rows["test" if key == 2 else "trainval"].append(f"{breed}_{key} {label + 1} 1 1")
    for subset, lines in rows.items():
        write_lines(root / "annotations" / f"{subset}.txt", reversed(lines))
    write_lines(root / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    return root


def flowers102(root: Path) -> Path:
    """Images 1 to 12; classes 1, 2 and 77, in turn."""
    labels = [(1, 2, 77)[number % 3] for number in range(12)]
    for number in range(12):
        write_photo(root / "jpg" / f"image_{number + 1:05}.jpg", number % 3, number)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    savemat(root / "setid.mat", {"trnid": np.array([[10, 11, 12]], dtype=np.uint16),
                                 "valid": np.array([[7, 8, 9]], dtype=np.uint16),
                                 "tstid": np.array([[1, 2, 3, 4, 5, 6]], dtype=np.uint16)})
    return root


def sun397(root: Path) -> Path:
    folders(root / "SUN397", SCENES, 3)
    paths = [[f"/{name}/{name.replace('/', '_')}_{key}.jpg" for name in SCENES] for key in range(3)]
    write_lines(root / "Partitions" / "Training_01.txt", paths[2] + paths[0])
    write_lines(root / "Partitions" / "Testing_01.txt", paths[1])
    write_lines(root / "Partitions" / "ClassName.txt", [f"/{name}" for name in SCENES])
    return root


def caltech101(root: Path) -> Path:
    folders(root / "101_ObjectCategories", ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "inline_skate"), 4)
    return root


def eurosat(root: Path) -> Path:
    folders(root / "2750", LANDS, 4)
    return root


def ucf101(root: Path) -> Path:
    rows = {"train": [], "test": []}
    for label, (action, folder) in enumerate((("ApplyEyeMakeup", "Apply_Eye_Makeup"), ("TaiChi", "Tai_Chi"),
                                              ("YoYo", "Yo_Yo"))):
        for group in range(3):
            video = f"v_{action}_g0{group}_c01"
            write_photo(root / "UCF-101-midframes" / folder / f"{video}.jpg", label, group)
            number = "" if group == 0 else f" {label + 1}"       # the test list has no numbers
            rows["train" if group else "test"].append(f"{action}/{video}.avi{number}")
    for subset, lines in rows.items():
        write_lines(root / "ucfTrainTestlist" / f"{subset}list01.txt", lines)
    return root


def imagenet(root: Path) -> Path:
    folders(root / "train", SYNSETS, 4, ".JPEG")
    folders(root / "val", SYNSETS, 2, ".JPEG")
    return root


def imagenet_v2(root: Path) -> Path:
    folders(root / "imagenetv2-matched-frequency-format-val", ("0", "1", "2", "657", "744"), 2, ".jpeg")
    return root


def imagenet_sketch(root: Path) -> Path:
    folders(root / "sketch", SYNSETS, 2, ".JPEG")
    return root


def imagenet_a(root: Path) -> Path:
    folders(root / "imagenet-a", SYNSETS[1:4], 2)
    (root / "imagenet-a" / "README.txt").write_text("n01443537 goldfish\n")
    return root


def imagenet_r(root: Path) -> Path:
    folders(root / "imagenet-r", (SYNSETS[4], SYNSETS[0]), 3)
    return root


def coop_split(path: Path, images: Path, names: Mapping[str, str], inner: str = "") -> Path:
    """A split in CoOp's form of the photos in the folders of `images`: `names` gives each class its name, the labels
    run against their order; two of three for training and validation."""
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, (folder, name) in enumerate(reversed(names.items())):
        for key, photo in enumerate(sorted((images / folder).glob("*.*"))):
            rows[("train", "val", "test")[key % 3]].append([f"{inner}{folder}/{photo.name}", label, name])
    path.write_text(json.dumps(rows))
    return path


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
