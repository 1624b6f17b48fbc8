"""A data set as class folders: root/<class>/*.jpg, or root/{train,val,test}/<class>/*.jpg."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import SUBSET_OF_WORD, SUBSETS, Dataset, assemble, registered
from xrvlm.errors import UserError, option
from xrvlm.files import files_below, listing, user_path
from xrvlm.text.class_text import few
from xrvlm.views import SUFFIXES, FileSource

log = logging.getLogger(__name__)

# photos that Pillow cannot read: a warning counts them
UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".svg", ".psd"})


@registered("folder")
def image_folder(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                 skip_damaged: bool = False, name: str | None = None) -> Dataset:
    """Load class folders: one folder a class, in `root` or in its folders train, val (valid, validation) and test.

    Images may lie in folders below the class folder. Hidden files and files that are no images are ignored.

    Args:
        root: the folder.
        class_names: a shipped list, a .txt or .json file, the names in the sorted order of the folders, or
            {folder: name}; None: the names of the folders.
        skip_damaged: leave out images that cannot be read, with a warning.
        name: of the data set; None: that of the folder.

    Raises:
        UserError: the folder does not hold such a data set; the message names the fix.
    """
    folder = existing_folder(root)
    subsets = _subset_folders(folder) or {"train": [folder]}
    found = {subset: [pair for path in paths for pair in _labelled(folder, path, must_fill=subset == "train")]
             for subset, paths in subsets.items()}
    return assemble(name or folder.name, FileSource(folder), found, class_names=class_names, skip_damaged=skip_damaged)


def existing_folder(root: str | Path) -> Path:
    """`root` as an absolute path. Raises UserError if it is no folder."""
    folder = user_path(root)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; check {option('data.root')}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; {option('data.root')} must be the folder that holds the images")
    return folder.resolve()


def _subset_folders(root: Path) -> dict[str, list[Path]] | None:
    """The folders of each subset, or None where `root` holds the class folders themselves."""
    folders, _ = listing(root)
    subsets: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        if subset := SUBSET_OF_WORD.get(folder.name.casefold()):
            subsets[subset].append(folder)
    others = [folder.name for folder in folders if folder.name.casefold() not in SUBSET_OF_WORD]
    if not subsets or (others and not ("train" in subsets and len(subsets) > 1)):    # a class may be called "train"
        return None
    if others:
        raise UserError(f"{root} holds train, val or test beside {few(others)}; leave only these subsets there, "
                        "or only class folders")
    if "train" not in subsets:
        raise UserError(f"{root} holds {few(folder.name for folder in folders)} but no train folder; add one, "
                        f"or set {option('data.root')} to the folder that holds the class folders")
    return {subset: subsets[subset] for subset in SUBSETS if subset in subsets}


def _labelled(root: Path, folder: Path, must_fill: bool) -> Iterator[tuple[str, str]]:
    """Yield (path relative to `root`, class) of the images in the class folders of `folder`."""
    class_folders, files = listing(folder)
    loose = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not class_folders:
        what = f"{len(loose)} images directly" if loose else "no class folders"
        raise UserError(f"found {what} in {folder}: put each class into its own folder")
    if loose:
        log.warning("ignored %d images beside the class folders in %s: %s",
                    len(loose), folder, few(path.name for path in loose))
    empty: dict[str, Counter[str]] = {}
    unreadable: Counter[str] = Counter()
    for class_folder in class_folders:
        files = list(files_below(class_folder))
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        suffixes = Counter(path.suffix.lower() for path in files if path.suffix)
        unreadable.update({suffix: suffixes[suffix] for suffix in suffixes if suffix in UNREADABLE_SUFFIXES})
        if not images:
            empty[class_folder.name] = suffixes
        yield from ((path.relative_to(root).as_posix(), class_folder.name) for path in images)
    if empty and must_fill:
        raise _empty_error(folder, empty, len(class_folders))
    if unreadable:
        log.warning("ignored %s in %s; convert them to .jpg to use them", counted_suffixes(unreadable), folder)


def _empty_error(folder: Path, empty: Mapping[str, Counter[str]], classes: int) -> UserError:
    held = sum(empty.values(), Counter())
    what = f"hold no image but {counted_suffixes(held)}" if held else "hold no image"
    return UserError(f"{len(empty)} of {classes} class folders in {folder} {what}: {few(empty)}; "
                     "add images (.jpg, .png, .webp ...) or remove them")


def counted_suffixes(suffixes: Counter[str]) -> str:
    return few(f"{count} {suffix} files" for suffix, count in suffixes.most_common())
