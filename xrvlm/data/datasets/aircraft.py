"""FGVC-Aircraft (Maji et al., 2013, arXiv:1306.5151): 100 variants of aircraft, 10,000 photos."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_lines, read_pairs
from xrvlm.errors import UserError, option, unknown

Level = Literal["variant", "family", "manufacturer"]
CLASS_FILES: Mapping[Level, str] = {"variant": "variants.txt", "family": "families.txt",
                                    "manufacturer": "manufacturers.txt"}
CLASSES: Mapping[Level, int] = {"variant": 100, "family": 70, "manufacturer": 30}


def layout(*, level: Level = "variant", trainval: bool = False) -> Layout:
    if level not in CLASS_FILES:
        raise unknown(option("data.level"), level, CLASS_FILES)
    lists = ("trainval", "test") if trainval else ("train", "val", "test")
    files = ("images/", CLASS_FILES[level], *(f"images_{level}_{subset}.txt" for subset in lists))
    images = {"train": 6667, "test": 3333} if trainval else {"train": 3334, "val": 3333, "test": 3333}
    return Layout("FGVC-Aircraft", "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/", CLASSES[level], images,
                  paths={f"data/{file}": (f"data/{file}", file, f"fgvc-aircraft-2013b/data/{file}") for file in files},
                  downloader="FGVCAircraft", read=partial(_read, level=level, lists=lists))


@registered("aircraft", layout)
def fgvc_aircraft(root: str | Path, *, level: Level = "variant", trainval: bool = False, download: bool = False,
                  class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                  skip_damaged: bool = False, name: str = "aircraft") -> Dataset:
    """The official split: 3,334 for training, 3,333 for validation, 3,333 for testing.

    The authors ask to crop the lowest 20 pixels of each image, which show the photographer's name. They are kept here,
    as CoOp and the few-shot work on CLIP that follows it keep them. The paper's evaluation transform (shorter side 256,
    centre 224) cuts off 16 rows at the bottom, which is the whole strip of a landscape image of 320 rows or more; the
    checkpoint's evaluation transform does not cut it off.

    Args:
        root: the archive's folder fgvc-aircraft-2013b, its data/ (images/, variants.txt, images_variant_train.txt), or
            the folder that contains the archive's, to which `download` writes.
        level: which of the official names are the classes.
        trainval: add the validation images to the training set, as work with all labels does.
        class_names: see `image_folder`.

    Raises:
        UserError: a file or an image is missing or wrong; the message names the fix.
    """
    return load(layout(level=level, trainval=trainval), root, download=download, class_names=class_names,
                skip_damaged=skip_damaged, name=name)


def _read(root: Path, found: Mapping[str, Path], *, level: Level, lists: Sequence[str]) -> Listing:
    classes = tuple(read_lines(found[f"data/{CLASS_FILES[level]}"]))
    index = {name: label for label, name in enumerate(classes)}
    subsets = {}
    for subset in lists:
        path = found[f"data/images_{level}_{subset}.txt"]
        pairs = read_pairs(path)                             # {"0034309": "Boeing 737-700"}
        if lost := next((name for name in pairs.values() if name not in index), None):
            raise UserError(f"{path} names {lost!r}, which is not in {CLASS_FILES[level]}; {FIX}")
        files = below(root, found["data/images/"], (f"{number}.jpg" for number in pairs))
        subsets["train" if subset == "trainval" else subset] = [
            (file, index[name]) for file, name in zip(files, pairs.values(), strict=True)]
    return Listing(classes, subsets)
