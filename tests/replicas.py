"""Small copies of the published data sets: the real layouts and list formats, few and small images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from photos import write_photo
from scipy.io import savemat

from xrvlm.data.dataset import SUBSETS

CUB = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
DOGS = ("n02085620-Chihuahua", "n02086240-Shih-Tzu", "n02089078-black-and-tan_coonhound")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")
VARIANTS = ("707-320", "727-200", "F/A-18", "DC-3")
BIRDS = {0: "Birds", 1: "Ducks, Geese, and Swans", 295: "Common Eider (Adult male)", 313: "Brant (Black)",
         1010: "Swainson's Hawk (Dark morph )"}


def cub(root: Path, training: int = 3, testing: int = 2) -> Path:
    ids, lines = 0, {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    for label, folder in enumerate(CUB):
        for key in range(training + testing):
            ids += 1
            path = f"{folder}/{folder[4:]}_{key:04}_{ids}.jpg"
            write_photo(root / "images" / path, label, key)
            lines["images"].append(f"{ids} {path}")
            lines["image_class_labels"].append(f"{ids} {label + 1}")
            lines["train_test_split"].append(f"{ids} {int(key < training)}")
    for name, rows in (lines | {"classes": [f"{label + 1} {name}" for label, name in enumerate(CUB)]}).items():
        _write(root / f"{name}.txt", rows)
    return root


def nabirds(root: Path) -> Path:
    """Two of the tree's leaves out of order in images.txt, and 1010; the inner nodes have no images."""
    lines = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    for order, number in enumerate((1010, 295, 313)):
        for key in range(4):
            image = f"0000139e-21dc-4d0c-bfe1-4cae3c85c8{order}{key}"
            write_photo(root / "images" / f"{number:04}" / f"{image.replace('-', '')}.jpg", order, key)
            lines["images"].append(f"{image} {number:04}/{image.replace('-', '')}.jpg")
            lines["image_class_labels"].append(f"{image} {number}")
            lines["train_test_split"].append(f"{image} {int(key < 3)}")
    classes = [f"{number} {name}" for number, name in BIRDS.items()]
    for name, rows in (lines | {"classes": classes, "hierarchy": ["1 0", "295 1", "313 1"]}).items():
        _write(root / f"{name}.txt", rows)
    return root


def dogs(root: Path, images: str = "Images", lists: str = "") -> Path:
    for file, keys in (("train_list", (0, 1)), ("test_list", (2,))):
        paths = [f"{folder}/{folder[:9]}_{key}.jpg" for folder in DOGS for key in keys]
        for path in paths:
            write_photo(root / images / path, DOGS.index(path.partition("/")[0]), int(path[-5]))
        labels = [[label + 1] for label in range(len(DOGS)) for _ in keys]
        (root / lists).mkdir(parents=True, exist_ok=True)
        savemat(root / lists / f"{file}.mat", {"file_list": _cell(paths), "labels": np.array(labels, dtype=np.uint8),
                                               "annotation_list": _cell([path[:-4] for path in paths])})
    return root


def cars(root: Path, devkit: str = "devkit", test_list: str = "cars_test_annos_withlabels.mat",
         nested: bool = False) -> Path:
    """`nested`: cars_train/cars_train/00001.jpg, as some pass it on."""
    (root / devkit).mkdir(parents=True, exist_ok=True)
    savemat(root / devkit / "cars_meta.mat", {"class_names": _cell(CARS).reshape(1, -1)})
    for subset, file, each in (("train", f"{devkit}/cars_train_annos.mat", 2), ("test", test_list, 1)):
        # classes out of order, as in the published lists
        rows = [(1, 2, 30, 31, label + 1, f"{number:05}.jpg")
                for number, label in enumerate([2, 0, 1] * each, start=1)]
        for row in rows:
            write_photo(root / f"cars_{subset}" / (f"cars_{subset}" if nested else "") / row[-1], row[-2] - 1,
                        int(row[-1][:5]) + 50 * (subset == "test"))
        savemat(root / file, {"annotations": _struct(
            ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"), rows)})
    savemat(root / devkit / "cars_test_annos.mat", {"annotations": _struct(
        ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "fname"), [(1, 2, 30, 31, "00001.jpg")])})
    return root


def cars_one_list(root: Path) -> Path:
    rows = [(f"car_ims/{number:06}.jpg", 1, 2, 30, 31, number % 3 + 1, int(number > 6)) for number in range(1, 10)]
    for row in rows:
        write_photo(root / row[0], row[5] - 1, int(row[0][-8:-4]))
    names = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    savemat(root / "cars_annos.mat", {"annotations": _struct(names, rows),
                                      "class_names": _cell(CARS).reshape(1, -1)})
    return root


def aircraft(root: Path, data: str = "data") -> Path:
    folder = root / data
    _write_lists(folder, "variant", "variants.txt", VARIANTS, VARIANTS)
    _write_lists(folder, "family", "families.txt", ("Boeing 707", "Boeing 727", "DC-3", "F/A-18"),
                 ("Boeing 707", "Boeing 727", "F/A-18", "DC-3"))
    _write_lists(folder, "manufacturer", "manufacturers.txt", ("Boeing", "Douglas Aircraft Company",
                 "McDonnell Douglas"), ("Boeing", "Boeing", "McDonnell Douglas", "Douglas Aircraft Company"))
    return root


def _write_lists(folder: Path, level: str, file: str, names: Sequence[str], of_variant: Sequence[str]) -> None:
    _write(folder / file, names)
    rows: dict[str, list[str]] = {}
    for label, name in enumerate(of_variant):
        for key, subset in enumerate(("train", "train", "val", "test")):
            number = f"{label * 100 + key:07}"
            if not (folder / "images" / f"{number}.jpg").exists():
                write_photo(folder / "images" / f"{number}.jpg", label % 3, key + 10 * label)
            for into in {subset, *(["trainval"] if subset != "test" else [])}:
                rows.setdefault(into, []).append(f"{number} {name}")
    for subset, lines in rows.items():
        _write(folder / f"images_{level}_{subset}.txt", lines)


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _cell(values: Sequence[str]) -> np.ndarray:
    """(n, 1) as MATLAB's cell arrays come."""
    return np.array([*values, None], dtype=object)[:-1].reshape(-1, 1)


def _struct(fields: Sequence[str], rows: Sequence[tuple]) -> np.ndarray:
    """(1, n) as MATLAB's struct arrays come."""
    return np.array([rows], dtype=[(field, object) for field in fields])


def sizes(dataset):
    return tuple(len(getattr(dataset.split, subset)) for subset in SUBSETS)


def labels_of(dataset):
    """{id: class name} of all subsets; every image is read, so that every path is right."""
    items = [item for subset in SUBSETS for item in getattr(dataset.split, subset)]
    assert all(dataset.source.read(item.id) for item in items)
    found = {item.id: dataset.split.classes[item.label] for item in items}
    assert len(found) == len(items), "an image is in one subset"
    return found
