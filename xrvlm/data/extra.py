"""Images that are for training alone, such as synthetic photos: beside those that are drawn, whatever `shots` is.

Photos of a generator were added to few shots by DataDream (Kim et al., ECCV 2024, arXiv:2407.10910).
"""

from dataclasses import replace
from pathlib import Path

from xrvlm.data.dataset import EXTRA, Dataset, Item
from xrvlm.data.folder import files_below
from xrvlm.data.strangers import Joined
from xrvlm.errors import UserError, option, unknown
from xrvlm.files import user_path
from xrvlm.text.class_text import few, readable
from xrvlm.views import SUFFIXES


def with_extra(dataset: Dataset, folder: str | Path) -> Dataset:
    """`dataset` with the images of `folder` for training alone: a folder a class, called as the class.

    Capitals do not matter, and `_` is a space. Not every class needs a folder. Extra images are never drawn, never
    held out and no labels of the budget.

    Raises:
        UserError: the folder is not there, holds no image, or one of its folders is called as no class.
    """
    if any(item.id.startswith(EXTRA) for item in dataset.split.extra):   # those of joined sets have ids of theirs
        raise UserError(f"{dataset.name} has extra images already: put all of them below one folder")
    root = user_path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; check {option('data.extra')}")
    root = root.resolve()
    paths = sorted(path.relative_to(root) for path in files_below(root) if path.suffix.lower() in SUFFIXES)
    if loose := [path.name for path in paths if len(path.parts) == 1]:
        raise UserError(f"{len(loose)} images lie directly in {root} ({few(loose)}): put each into a folder that is "
                        f"called as its class, or check {option('data.extra')}")
    if not paths:
        raise UserError(f"found no image below {root}; {option('data.extra')} holds a folder of images for each class")
    label = {_letters(name): index for index, name in enumerate(dataset.split.classes)}
    for name in dict.fromkeys(path.parts[0] for path in paths):
        if _letters(name) not in label:
            raise unknown("class", name, dataset.split.classes,
                          f"rename the folder {root / name}: those of {option('data.extra')} are called as the classes")
    items = tuple(Item(f"{EXTRA}{path.as_posix()}", label[_letters(path.parts[0])]) for path in paths)
    split = replace(dataset.split, extra=(*dataset.split.extra, *items))
    return replace(dataset, source=Joined(dataset.source, root, EXTRA), split=split,
                   loader=dataset.loader and {**dataset.loader, "options": {**dataset.loader["options"],
                                                                            "extra": str(root)}})


def _letters(name: str) -> str:
    return readable(name).casefold()
