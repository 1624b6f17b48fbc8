"""The splits that CoOp published (Zhou et al., IJCV 2022, arXiv:2109.01134): split_zhou_<Name>.json for a data set.

Most later few-shot work on CLIP uses them. A file is {"train": [[path, label, class name], ...], "val", "test"} with
paths relative to the folder of the images; https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md links each file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from xrvlm.data.dataset import SUBSETS
from xrvlm.data.datasets.layout import Layout, Listing, below
from xrvlm.errors import UserError, option, unknown
from xrvlm.files import read_json
from xrvlm.text.class_text import readable

SplitName = Literal["official", "coop"]
PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
FIX = f"get it again as {PAGE} says"


def chosen(split: SplitName, official: Layout, *, file: str, images: Mapping[str, int],
           folders: Sequence[str], inside: bool = True) -> Layout:
    """`official` itself, or for `split="coop"` the layout that CoOp's `file` describes.

    Args:
        file: CoOp's file.
        images: the number of images in each subset of CoOp's split.
        folders: those of the official layout that hold the images.
        inside: the paths in `file` are relative to the only one of `folders` instead of to the root.
    """
    if split not in get_args(SplitName):
        raise unknown(option("data.split"), split, get_args(SplitName))
    if split == "official":
        return official
    read = partial(_read, file=file, folder=folders[0] if inside else None)
    return replace(official, images=images, elsewhere={file: PAGE}, read=read,
                   paths={file: (file,)} | {folder: official.paths[folder] for folder in folders})


def _read(root: Path, found: Mapping[str, Path], *, file: str, folder: str | None) -> Listing:
    record = read_json(found[file], FIX)
    try:
        rows = {subset: [(str(path), int(label), str(name)) for path, label, name in record[subset]]
                for subset in SUBSETS}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{found[file]} is not a split of CoOp's form ({error!r} in it); {FIX}") from error
    names: dict[int, str] = {}
    for _, label, name in chain.from_iterable(rows.values()):
        if names.setdefault(label, name) != name:
            raise UserError(f"{found[file]} calls class {label} both {names[label]!r} and {name!r}; {FIX}")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"the classes in {found[file]} are not numbered from 0 without a gap; {FIX}")
    images = found[folder] if folder else root
    subsets = {subset: list(zip(below(root, images, (path for path, _, _ in listed)), (label for _, label, _ in listed),
                            strict=True)) for subset, listed in rows.items()}
    return Listing(tuple(readable(names[label]) for label in range(len(names))), subsets)
