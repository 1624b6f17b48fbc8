"""FGVC-Aircraft (Maji et al., 2013, arXiv:1306.5151): 100 variants of aircraft, 10,000 photos."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from xrvlm.data.dataset import Dataset
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_lines, read_pairs
from xrvlm.errors import UserError, unknown

Level = Literal["variant", "family", "manufacturer"]
CLASS_FILES: Mapping[Level, str] = {"variant": "variants.txt", "family": "families.txt",
                                    "manufacturer": "manufacturers.txt"}
CLASSES: Mapping[Level, int] = {"variant": 100, "family": 70, "manufacturer": 30}


def fgvc_aircraft(root: str | Path, *, level: Level = "variant", trainval: bool = False, download: bool = False,
                  class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                  skip_damaged: bool = False, name: str = "aircraft") -> Dataset:
    """The official split: 3,334 for training, 3,333 for validation, 3,333 for testing.

    The strip at the bottom of each image, 20 pixels with the photographer's name, is left in: CoOp's readers, after
    which few-shot work on CLIP goes, do not cut it off either, though the data set's authors ask for it. The paper's
    evaluation transform (shorter side 256, centre 224) leaves 16 rows out below, and so the strip of any landscape
    image of 320 rows or more; the checkpoint's own transform shows it.

    Args:
        root: the archive's folder fgvc-aircraft-2013b, its data/ (images/, variants.txt, images_variant_train.txt), or
            the folder around it, where `download` puts it.
        level: which of the official names are the classes.
        trainval: put the validation images into training, as work with all labels does.
        class_names: see `image_folder`.

    Raises:
        UserError: what is missing or does not fit, with the fix.
    """
    return load(layout(level=level, trainval=trainval), root, download=download, class_names=class_names,
                skip_damaged=skip_damaged, name=name)


def layout(*, level: Level = "variant", trainval: bool = False) -> Layout:
    if level not in CLASS_FILES:
        raise unknown("data.level", level, CLASS_FILES)
    lists = ("trainval", "test") if trainval else ("train", "val", "test")
    files = ("images/", CLASS_FILES[level], *(f"images_{level}_{part}.txt" for part in lists))
    images = {"train": 6667, "test": 3333} if trainval else {"train": 3334, "val": 3333, "test": 3333}
    return Layout("FGVC-Aircraft", "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/", CLASSES[level], images,
                  places={f"data/{file}": (f"data/{file}", file, f"fgvc-aircraft-2013b/data/{file}") for file in files},
                  downloader="FGVCAircraft", read=partial(_read, level=level, lists=lists))


def _read(root: Path, found: Mapping[str, Path], *, level: Level, lists: Sequence[str]) -> Listing:
    classes = tuple(read_lines(found[f"data/{CLASS_FILES[level]}"]))
    index = {name: label for label, name in enumerate(classes)}
    parts = {}
    for part in lists:
        path = found[f"data/images_{level}_{part}.txt"]
        pairs = read_pairs(path)                             # {"0034309": "Boeing 737-700"}
        if lost := next((name for name in pairs.values() if name not in index), None):
            raise UserError(f"{path} names {lost!r}, which is not in {CLASS_FILES[level]}; {FIX}")
        files = below(root, found["data/images/"], (f"{number}.jpg" for number in pairs))
        parts["train" if part == "trainval" else part] = [
            (file, index[name]) for file, name in zip(files, pairs.values(), strict=True)]
    return Listing(classes, parts)
