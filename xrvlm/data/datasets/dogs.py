"""Stanford Dogs (Khosla et al., 2011): 120 breeds, 20,580 photos out of ImageNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, Listing, below, load
from xrvlm.data.datasets.lists import FIX, read_mat
from xrvlm.errors import UserError
from xrvlm.text.class_text import readable

LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def layout() -> Layout:
    return Layout("Stanford Dogs", "http://vision.stanford.edu/aditya86/ImageNetDogs/", classes=120,
                  images={"train": 12000, "test": 8580},
                  paths={file: (file, f"lists/{file}") for file in LISTS.values()}
                  | {"Images/": ("Images/Images", "images/Images", "Images", "images")}, read=_read)


@registered("dogs", layout)
def stanford_dogs(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                  skip_damaged: bool = False, name: str = "dogs") -> Dataset:
    """The official split, 12,000 for training (100 a breed) and 8,580 for testing.

    All photos are from ImageNet, also from its training set: a tower that was trained on ImageNet has seen them.

    `root` holds train_list.mat, test_list.mat (or both in lists/) and Images/. `class_names`: see `image_folder`.
    Raises UserError, which names the fix.
    """
    return load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    folders: dict[int, str] = {}         # of each official id
    listed: dict[str, list[tuple[str, int]]] = {}
    for subset, file in LISTS.items():
        names, numbers = read_mat(found[file], "file_list", "labels")
        listed[subset] = list(zip(map(str, names), map(int, numbers), strict=True))
        for path, number in listed[subset]:
            if folders.setdefault(number, path.partition("/")[0]) != path.partition("/")[0]:
                raise UserError(f"{found[file]} puts {path} into class {number}, which is {folders[number]}; {FIX}")
    order = sorted(folders)
    index = {number: label for label, number in enumerate(order)}
    subsets = {subset: [(path, index[number]) for path, (_, number) in
                    zip(below(root, found["Images/"], (path for path, _ in pairs)), pairs, strict=True)]
             for subset, pairs in listed.items()}
    # n02085620-Chihuahua, n02089078-black-and-tan_coonhound
    return Listing(tuple(readable(folders[number].partition("-")[2] or folders[number]) for number in order), subsets)
