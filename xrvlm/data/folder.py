"""A data set as class folders: root/<class>/*.jpg, or root/{train,val,test}/<class>/*.jpg. Also words for subsets."""

import contextlib
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path

from xrvlm.data.dataset import SUBSETS, Dataset, assemble, registered
from xrvlm.data.hierarchy import FOLDERS, with_hierarchy, with_parents
from xrvlm.errors import UserError, odd_sign, option
from xrvlm.evaluation.hierarchy import from_pairs
from xrvlm.files import FileSource, holds_results, user_path
from xrvlm.text.class_text import few
from xrvlm.views import SUFFIXES

log = logging.getLogger(__name__)

IGNORED_FOLDERS = frozenset({"__MACOSX", "@eaDir", "__pycache__"})
# photos that Pillow cannot read: a warning counts them
UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".svg", ".psd",
                                 ".avif"}) - SUFFIXES
# how the files of the common formats begin: JPEG, PNG, GIF, TIFF, WebP, HEIC and AVIF
BEGINNINGS = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:hei|mif|avi)", re.DOTALL)
WORDS = {"train": ("train", "training", "trn"), "val": ("val", "valid", "validation", "validate", "dev", "development"),
         "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout")}
SUBSET_OF_WORD = {word: subset for subset, words in WORDS.items() for word in words}
# what stands beside such a word in the name of a folder or split: "train_set", "test images", "seg_train"
FILLERS = frozenset({"", "set", "data", "dataset", "split", "subset", "images", "image", "img", "photos", "seg"})


@registered("folder")
def image_folder(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
                 skip_damaged: bool = False, hierarchy: str | Path | None = None, name: str | None = None) -> Dataset:
    """Load class folders: one folder a class, in `root` or in its folders train, val and test.

    Other words for a subset are understood too: Training, dev, holdout, train_set ... (`subset_of`). `root` may hold a
    test folder alone, for what needs no training. Images may lie in a folder below the class folder. Hidden files,
    folders that xrvlm made, and what is no image are ignored.

    Args:
        root: the folder.
        class_names: a shipped list, a .txt or .json file, the names in the sorted order of the folders, or
            {folder: name}; None: the names of the folders.
        skip_damaged: leave out images that cannot be read, with a warning.
        hierarchy: a file with the nodes above the classes, see `data.hierarchy.read_hierarchy`; or "folders": the
            innermost folders are the classes, those around them (genus/species) the nodes above.
        name: of the data set; None: that of the folder.

    Raises:
        UserError: the folder does not hold such a data set; the message names the fix.
    """
    folder = existing_folder(root)
    subsets = _subset_folders(folder) or {"train": [folder]}
    make = partial(assemble, name or folder.name, FileSource(folder), skip_damaged=skip_damaged,
                   test_only="train" not in subsets)
    if hierarchy == FOLDERS:
        if class_names is not None:
            raise UserError(f"{option('data.hierarchy', FOLDERS)} names classes and nodes by their folders: leave "
                            f"{option('data.class_names')} out")
        nested = {subset: [pair for path in paths for pair in _nested(folder, path)]
                  for subset, paths in subsets.items()}
        steps = dict.fromkeys(step for each in nested.values() for _, names in each      # (node, the node above it)
                              for step in zip(names, ["", *names], strict=False))
        pairs = {subset: [(path, names[-1]) for path, names in nested[subset]] for subset in nested}
        return with_parents(make(pairs), from_pairs(list(steps), str(folder)))
    found = {subset: [pair for path in paths for pair in _labelled(folder, path, must_fill=subset == "train")]
             for subset, paths in subsets.items()}
    dataset = make(found, class_names=class_names)
    return dataset if hierarchy is None else with_hierarchy(dataset, hierarchy)


def subset_of(word: str) -> str | None:
    """The subset (train, val or test) that the name of a folder, split or cell means; None where it means none.

    Capitals, signs and the words of `FILLERS` do not matter: "Training", "hold-out", "seg_train", "trainset".
    """
    letters = [token for token in re.split(r"[^a-z]+", word.strip().casefold()) if token not in FILLERS]
    joined = "".join(letters)
    return SUBSET_OF_WORD.get(joined) or SUBSET_OF_WORD.get(joined.removesuffix("set"))


def existing_folder(root: str | Path) -> Path:
    """`root` as an absolute path. Raises UserError if it is no folder."""
    folder = user_path(root)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; check {option('data.root')}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; {option('data.root')} must be the folder that holds the images")
    if folder.resolve() == folder.resolve().parent:
        raise UserError(f"{folder} is the whole disk; {option('data.root')} must be the folder that holds the images")
    return folder.resolve()


def _subset_folders(root: Path) -> dict[str, list[Path]] | None:
    """The folders of each subset, or None where `root` holds the class folders themselves."""
    folders, _ = listing(root)
    subsets: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        if subset := subset_of(folder.name):
            subsets[subset].append(folder)
    others = [folder.name for folder in folders if subset_of(folder.name) is None]
    if not subsets or (others and not ("train" in subsets and len(subsets) > 1)):    # a class may be called "train"
        _check_no_subsets(root, folders)
        return None
    if others:
        raise UserError(f"{root} holds train, val or test beside {few(others)}; leave only these subsets there, "
                        "or only class folders")
    if twice := [same for same in subsets.values() if len(same) > 1]:
        raise UserError(f"{root} holds {few(folder.name for folder in twice[0])}, which mean the same; leave one of "
                        "them there")
    if not subsets.keys() & {"train", "test"}:
        raise UserError(f"{root} holds {few(folder.name for folder in folders)} but no train folder; add one, or set "
                        f"{option('data.root')} to the folder that holds the class folders")
    return {subset: subsets[subset] for subset in SUBSETS if subset in subsets}


def _check_no_subsets(root: Path, folders: Sequence[Path]) -> None:
    """UserError where `folders` look like subsets under other names: they hold folders of the same names.

    Not all need hold all: a class may lack test images.
    """
    inner = [{path.name for path in listing(folder)[0]} for folder in folders]
    count = Counter(name for names in inner for name in names)
    known = {subset_of(name) for name in count} - {None}                             # `_check_nesting` says it better
    shared = sorted(name for name in count if count[name] > 1)
    if len(count) > 1 and len(known) < 2 and all(names.intersection(shared) for names in inner):
        raise UserError(f"{few(path.name for path in folders)} in {root} hold the same folders ({few(shared)}): "
                        "if they are subsets, call them train, val and test; if they are classes, put the images "
                        "of each directly into its folder")


def _labelled(root: Path, folder: Path, must_fill: bool) -> Iterator[tuple[str, str]]:
    """Yield (path relative to `root`, class) of the images in the class folders of `folder`."""
    class_folders, files = listing(folder)
    loose = [path for path in files if _is_image(path)]
    if not class_folders:
        what = f"{len(loose)} images directly" if loose else "no class folders"
        raise UserError(f"found {what} in {folder}: put each class into its own folder")
    if loose:
        log.warning("ignored %d images beside the class folders in %s: %s",
                    len(loose), folder, few(path.name for path in loose))
    empty: dict[str, Counter[str]] = {}
    real = folder.resolve()
    below = {path: list(files_below(path, frozenset({real, *real.parents}))) for path in class_folders}
    _check_accents(folder, class_folders)
    _check_nesting(below)
    for class_folder, files in below.items():
        images = [path for path in files if _is_image(path)]
        suffixes = Counter(path.suffix.lower() for path in files if path.suffix)
        if not images:
            empty[class_folder.name] = suffixes
        # NFC: macOS may write an accent as a character of its own, and train/ and test/ come from two machines
        name = unicodedata.normalize("NFC", class_folder.name)
        yield from ((path.relative_to(root).as_posix(), name) for path in images)
    _warn_of_links(root, {path: folder.name for folder, files in below.items() for path in files if _is_image(path)})
    if empty and must_fill:
        raise _empty_error(folder, empty, len(class_folders))
    warn_of_ignored(chain.from_iterable(below.values()), folder)


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Every file below `folder`. Follows symbolic links, except into a folder that is being walked."""
    real = folder.resolve()
    if real in above:
        return
    folders, files = listing(folder)
    yield from files
    for inner in folders:
        yield from files_below(inner, above | {real})


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in `folder`, sorted, without hidden ones. A broken link counts as a file.

    Folders that xrvlm made are left out, which a line says once.
    """
    try:
        with os.scandir(folder) as entries:      # which knows, without a call for each file, what is a folder
            found = sorted((folder / entry.name, _is_folder(entry)) for entry in entries
                           if entry.name not in IGNORED_FOLDERS and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; check that you may read it") from error
    for odd in (path.name for path, _ in found if odd_sign(path.name)):
        raise UserError(f"the name {odd!r} in {folder} holds {odd_sign(odd)}; rename it")
    return ([path for path, is_folder in found if is_folder and not _is_own(path)],
            [path for path, is_folder in found if not is_folder])


def _is_own(folder: Path) -> bool:
    if own := holds_results(folder):
        _tell_own(folder.absolute())
    return own


@cache                                   # once a process
def _tell_own(folder: Path) -> None:
    log.info("%s holds results of xrvlm: left out; photos that are in it belong into another folder", folder)


def _is_folder(entry: os.DirEntry) -> bool:
    with contextlib.suppress(OSError):   # a link to itself
        return entry.is_dir()
    return False


def warn_of_ignored(files: Iterable[Path], folder: Path) -> None:
    """Say which of `files` are photos that are not read: of other formats, or not called as images are."""
    others = [path for path in files if not _is_image(path)]
    suffixes = Counter(path.suffix.lower() for path in others)
    if unreadable := Counter({suffix: suffixes[suffix] for suffix in suffixes if suffix in UNREADABLE_SUFFIXES}):
        log.warning("ignored %s in %s; convert them to .jpg to use them%s", counted_suffixes(unreadable), folder,
                    ", or pip install 'xrvlm[heic]'" if unreadable.keys() & {".heic", ".heif"} else "")
    if unnamed := [path for path in others if path.suffix.lower() not in unreadable and _begins_as_image(path)]:
        log.warning("ignored %d images in %s whose names do not end in .jpg, .png ...: %s; rename them to use them",
                    len(unnamed), folder, few(path.relative_to(folder).as_posix() for path in unnamed))


def _begins_as_image(path: Path) -> bool:
    if not path.is_file():               # a pipe has no end
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return BEGINNINGS.match(file.read(12)) is not None
    return False


def _nested(root: Path, folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (path relative to `root`, the names of the folders below `folder` that it lies in) of the images there."""
    files = list(files_below(folder))
    warn_of_ignored(files, folder)
    for path in files:
        names = tuple(unicodedata.normalize("NFC", part) for part in path.parent.relative_to(folder).parts)
        if _is_image(path):
            if not names:
                raise UserError(f"{path} lies in no class folder: put each class into its own folder")
            yield path.relative_to(root).as_posix(), names


def _check_accents(folder: Path, class_folders: Sequence[Path]) -> None:
    counts = Counter(unicodedata.normalize("NFC", path.name) for path in class_folders)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"two folders in {folder} are called {twice[0]}, one with accents as separate characters "
                        "(Unicode NFD): move the images into one of them")


def _check_nesting(below: Mapping[Path, Sequence[Path]]) -> None:
    """UserError where the folders below the class folders look like classes (genus/species) or like subsets.

    `below` is {class folder: the files below it}.
    """
    inner = {path: sorted({file.relative_to(path).parts[0] for file in files
                           if file.parent != path and _is_image(file)})
             for path, files in below.items()}
    for path, names in inner.items():
        if len({subset_of(name) for name in names} - {None}) > 1:
            raise UserError(f"{path} holds {few(names)}: put the subsets above the classes, as train/{path.name} and "
                            f"test/{path.name}, or list the images in a table ({option('data')}=table)")
    count = Counter(name for names in inner.values() for name in names)
    several = [path for path, names in inner.items() if len(names) > 1]
    if several and 2 * sum(of == 1 for of in count.values()) > len(count):      # not: session1, session2 in each class
        path = several[0]
        raise UserError(f"{path} holds images in the folders {few(inner[path])}; is {path.name} the class, or are "
                        f"these the classes? Put the images of each class directly into its folder, set "
                        f"{option('data.root')} to the folder of one group, or list the images in a table "
                        f"({option('data')}=table). Where each group stands above its classes (genus/species): "
                        f"{option('data.hierarchy', FOLDERS)}")


def _warn_of_links(root: Path, images: Mapping[Path, str]) -> None:
    """Say which of `images`, {path: class}, links take from outside of `root`, and which they put in two classes."""
    real = {folder: folder.resolve() for folder in {path.parent for path in images}}
    linked = {path: Path(os.path.realpath(path)) if path.is_symlink() else real[path.parent] / path.name
              for path in images if path.is_symlink() or real[path.parent] != path.parent}  # realpath: also of a loop
    if outside := [path for path, target in linked.items() if not target.is_relative_to(root.resolve())]:
        log.warning("links lead to %d images outside of %s: %s", len(outside), root, few(map(str, outside)))
    first = {target: path for path, target in reversed(linked.items())} | {
        path: path for path in images if path not in linked}
    if twice := [(path, first[target]) for path, target in linked.items() if images[first[target]] != images[path]]:
        log.warning("%d images are in two classes, through links: %s; remove the links, or make them one class",
                    len(twice), few(f"{one.relative_to(root)} is {other.relative_to(root)}" for one, other in twice))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _empty_error(folder: Path, empty: Mapping[str, Counter[str]], classes: int) -> UserError:
    held = sum(empty.values(), Counter())
    what = f"hold no image but {counted_suffixes(held)}" if held else "hold no image"
    return UserError(f"{len(empty)} of {classes} class folders in {folder} {what}: {few(empty)}; "
                     "add images (.jpg, .png, .webp ...) or remove them")


def counted_suffixes(suffixes: Counter[str]) -> str:
    return few(f"{count} {suffix} files" for suffix, count in suffixes.most_common())
