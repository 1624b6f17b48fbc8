"""Stanford Cars (Krause et al., 2013): 196 makes, models and years of cars, 16,185 photos."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_mat
from xrvlm.data.folder import existing_folder
from xrvlm.errors import UserError

TITLE = "Stanford Cars"
# the authors' pages are gone; the thread lists what still works
ADDRESS = "https://github.com/pytorch/vision/issues/7545 (the first address, ai.stanford.edu/~jkrause/cars, is gone)"
CLASSES, IMAGES = 196, {"train": 8144, "test": 8041}
DEVKITS = ("devkit/", "car_devkit/devkit/", "car_devkit/", "")
TRAIN, TEST, META = "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"
ALL = "cars_annos.mat"


def layout(root: Path, *, split: SplitName = "official") -> Layout:
    """The form that `root` holds: with a devkit, or with one list."""
    one_list = Layout(TITLE, ADDRESS, CLASSES, IMAGES, read=_read_one_list, paths={
        ALL: _mats(ALL), "car_ims/": ("car_ims/car_ims", "car_ims")})
    devkit = Layout(TITLE, ADDRESS, CLASSES, IMAGES, read=_read_devkit, paths={
        TRAIN: _mats("cars_train_annos.mat"), TEST: ("cars_test_annos_withlabels.mat", *_mats(TEST)),
        META: _mats("cars_meta.mat"), "cars_train/": ("cars_train/cars_train", "cars_train"),
        "cars_test/": ("cars_test/cars_test", "cars_test")})
    if split != "official":
        folders = {folder: (folder,) for folder in ("cars_train/", "cars_test/")}
        return chosen(split, replace(devkit, paths=folders), file="split_zhou_StanfordCars.json",
                      folders=tuple(folders), inside=False, images={"train": 6509, "val": 1635, "test": 8041})
    return one_list if len(one_list.found(root)) == 2 and len(devkit.found(root)) < len(devkit.paths) else devkit


@registered("cars", layout)
def stanford_cars(root: str | Path, *, split: SplitName = "official",
                  class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
                  name: str = "cars") -> Dataset:
    """The official split, 8,144 for training and 8,041 for testing; names as `AM General Hummer SUV 2000`; or CoOp's
    split, with the same test set and names that begin with the year.

    `root` holds cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat, as torchvision expects them in
    its folder stanford_cars. Also found: the .mat files beside the images or in car_devkit/, images one folder
    deeper (cars_train/cars_train/), and the form with one list, cars_annos.mat with car_ims/; CoOp's split needs
    cars_train/ and cars_test/. There is no `download`: torchvision's address is dead.
    `split`: see coop.py; `class_names`: see `image_folder`. Raises UserError, which names the fix.
    """
    chosen_layout = layout(existing_folder(root), split=split)
    return load(chosen_layout, root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def _mats(file: str) -> tuple[str, ...]:
    return tuple(f"{folder}{file}" for folder in DEVKITS)


def _read_devkit(root: Path, found: Mapping[str, Path]) -> Listing:
    (names,) = read_mat(found[META], "class_names")
    subsets = {}
    for subset, file in (("train", TRAIN), ("test", TEST)):
        (rows,) = read_mat(found[file], "annotations")
        files = below(root, found[f"cars_{subset}/"], map(str, _field(rows, "fname", found[file])))
        subsets[subset] = list(zip(files, _labels(rows, found[file], len(names)), strict=True))
    return Listing(tuple(str(name).strip() for name in names), subsets)


def _read_one_list(root: Path, found: Mapping[str, Path]) -> Listing:
    path = found[ALL]
    names, rows = read_mat(path, "class_names", "annotations")
    files = below(root, found["car_ims/"], (Path(str(name)).name for name in _field(rows, "relative_im_path", path)))
    images = list(zip(files, _labels(rows, path, len(names)), strict=True))
    tested = [bool(flag) for flag in _field(rows, "test", path)]
    subsets = {subset: [image for image, test in zip(images, tested, strict=True) if test == wanted]
             for subset, wanted in (("train", False), ("test", True))}
    return Listing(tuple(str(name).strip() for name in names), subsets)


def _labels(rows: Any, path: Path, classes: int) -> list[int]:
    labels = [int(number) - 1 for number in _field(rows, "class", path)]
    if wrong := [label + 1 for label in labels if not 0 <= label < classes]:
        raise UserError(f"{path} has class {wrong[0]}, but there are {classes} names; {FIX}")
    return labels


def _field(rows: Any, field: str, path: Path) -> Any:
    if field not in (rows.dtype.names or ()):
        raise UserError(f"{path} has no field {field!r} (cars_test_annos.mat comes without labels: the test list is "
                        f"cars_test_annos_withlabels.mat); {FIX}")
    return rows[field]
