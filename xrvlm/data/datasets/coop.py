"""The splits that CoOp published (Zhou et al., IJCV 2022, arXiv:2109.01134): split_zhou_<Name>.json for a data set.

Most few-shot work on CLIP after it uses them. A file is {"train": [[path, label, class name], ...], "val", "test"}, its
paths relative to the folder of the images; https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md links each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from xrvlm.data.dataset import PARTS
from xrvlm.data.datasets.layout import Layout, Listing, below
from xrvlm.errors import UserError, unknown
from xrvlm.files import read_json
from xrvlm.text.class_text import readable

SplitName = Literal["official", "coop"]
PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
FIX = f"get it again from where {PAGE} says"


def chosen(split: SplitName, official: Layout, *, file: str, images: Mapping[str, int],
           folders: Sequence[str], inside: bool = True) -> Layout:
    """`official` itself, or for `split="coop"` the layout that CoOp's `file` describes.

    Args:
        images: how many each part of CoOp's split has.
        folders: those of the official places that hold the images.
        inside: the paths are relative to that folder (the only one), not to the root.
    """
    if split not in get_args(SplitName):
        raise unknown("data.split", split, get_args(SplitName))
    if split == "official":
        return official
    read = partial(_read, file=file, folder=folders[0] if inside else None)
    return replace(official, images=images, elsewhere={file: PAGE}, read=read,
                   places={file: (file,)} | {folder: official.places[folder] for folder in folders})


def _read(root: Path, found: Mapping[str, Path], *, file: str, folder: str | None) -> Listing:
    record = read_json(found[file], FIX)
    try:
        rows = {part: [(str(path), int(label), str(name)) for path, label, name in record[part]] for part in PARTS}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{found[file]} is not a split of CoOp's form ({error!r} in it); {FIX}") from error
    names: dict[int, str] = {}
    for _, label, name in chain.from_iterable(rows.values()):
        if names.setdefault(label, name) != name:
            raise UserError(f"{found[file]} calls class {label} both {names[label]!r} and {name!r}; {FIX}")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"the classes in {found[file]} are not numbered from 0 without a gap; {FIX}")
    place = found[folder] if folder else root
    parts = {part: list(zip(below(root, place, (path for path, _, _ in listed)), (label for _, label, _ in listed),
                            strict=True)) for part, listed in rows.items()}
    return Listing(tuple(readable(names[label]) for label in range(len(names))), parts)
