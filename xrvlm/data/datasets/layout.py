"""The layout of a published data set: the files it consists of, and how to load them as a Dataset."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from xrvlm.data.dataset import Dataset, assemble
from xrvlm.data.datasets.download import download as fetch
from xrvlm.data.folder import existing_folder
from xrvlm.distributed import processes
from xrvlm.errors import UserError, option
from xrvlm.files import FileSource, user_path
from xrvlm.text.class_text import check_unique, few

log = logging.getLogger(__name__)
MOST_FOLDERS = 2000                      # searched for a better root, since `root` may be a whole disk


@dataclass(frozen=True)
class Listing:
    """The content of the official lists."""

    classes: tuple[str, ...]                             # readable, in the order of the official ids
    subsets: Mapping[str, Sequence[tuple[str, int]]]     # {"train": (path relative to the root, label) of each image}


@dataclass(frozen=True)
class Layout:
    """A data set as it was published.

    `paths` maps the official name of each file and folder (a folder ends in "/") to the paths, relative to the root, at
    which it may be; the first that exists is used. `read` takes the root and {official name: path found}.
    """

    title: str
    address: str                         # where people get it; shown, not fetched
    classes: int
    images: Mapping[str, int]            # {subset: official number of images}
    paths: Mapping[str, Sequence[str]]
    read: Callable[[Path, Mapping[str, Path]], Listing]
    downloader: str | None = None        # the class of torchvision.datasets that downloads it
    elsewhere: Mapping[str, str] = field(default_factory=dict)    # {official name: address, if another than `address`}

    def found(self, root: Path) -> dict[str, Path]:
        """{official name: path} of the files and folders that are there."""
        there: dict[str, Path] = {}
        for official, paths in self.paths.items():
            exists = Path.is_dir if official.endswith("/") else Path.is_file
            if path := next((root / path for path in paths if exists(root / path)), None):
                there[official] = path
        return there

    def listing(self, root: Path, found: Mapping[str, Path]) -> Listing:
        """The content of the lists. Raises UserError if they are damaged."""
        listing = self.read(root, found)
        check_unique(listing.classes, f"class names in {root}")
        return listing


def load(layout: Layout, root: str | Path, *, class_names: Any, skip_damaged: bool, name: str,
         download: bool = False) -> Dataset:
    """Load the data set in `root`; with `download`, download it first if it is not there.

    Raises UserError if files, lists or images are missing; with `skip_damaged`, missing images are left out.
    """
    if download:
        processes().from_first(lambda: _fetched(layout, user_path(root)))
    folder = existing_folder(root)
    found = layout.found(folder)
    if missing := [official for official in layout.paths if official not in found]:
        raise UserError(f"{folder} is not {layout.title} as published: it lacks {few(missing)}; "
                        f"{suggestion(layout, folder)}")
    listing = layout.listing(folder, found)
    if not skip_damaged and (absent := absent_images(folder, listing)):
        raise UserError(f"{len(absent)} images that the lists of {layout.title} name are not in {folder}: "
                        f"{few(absent)}; unpack the images again, or pass {option('data.skip_damaged', True)}")
    counts = {subset: len(pairs) for subset, pairs in listing.subsets.items()}
    if counts != dict(layout.images):
        log.warning("the lists in %s name %s images; officially %s has %s: results are not comparable", folder,
                    counted(counts), layout.title, counted(layout.images))
    subsets = {subset: [(path, listing.classes[label]) for path, label in pairs]
               for subset, pairs in listing.subsets.items()}
    return assemble(name, FileSource(folder), subsets, classes=listing.classes, class_names=class_names,
                    skip_damaged=skip_damaged, test_only="train" not in layout.images)


def _fetched(layout: Layout, root: Path) -> None:
    assert layout.downloader is not None, "only loaders of a layout with a downloader have the option"
    if not root.is_dir() or len(layout.found(root)) < len(layout.paths):
        fetch(layout.downloader, root, title=layout.title, address=layout.address)


def absent_images(root: Path, listing: Listing) -> list[str]:
    """The listed images that are missing, sorted. Lists each folder once instead of looking up every file."""
    wanted = sorted(path for pairs in listing.subsets.values() for path, _ in pairs)
    held: dict[str, set[str]] = {}
    absent = []
    for path in wanted:
        parent, _, file = path.rpartition("/")
        if parent not in held:
            held[parent] = _files(root / parent)
        if file not in held[parent]:
            absent.append(path)
    return absent


def suggestion(layout: Layout, root: Path) -> str:
    """How to fix a wrong root: a folder near it that looks right, or where to get the data set."""
    scores = {folder: len(layout.found(folder)) for folder in _near(root)}
    best = max(scores, key=lambda folder: scores[folder], default=root)
    if scores and scores[best] > len(layout.found(root)) and 2 * scores[best] >= len(layout.paths):
        return f"{best} looks right: {option('data.root', str(best))}"
    return wherefrom(layout, root)


def wherefrom(layout: Layout, root: Path) -> str:
    """Where to get what `root` lacks."""
    missing = [official for official in layout.paths if official not in layout.found(root)]
    apart = [f"get {official} from {layout.elsewhere[official]}" for official in missing
             if official in layout.elsewhere]
    if apart and len(apart) == len(missing):
        return ", ".join(apart)
    download = f", or pass {option('data.download', True)}" if layout.downloader else ""
    return ", ".join([*apart, f"get {'the rest' if apart else 'it'} from {layout.address}{download}"])


def below(root: Path, folder: Path, names: Iterable[str]) -> list[str]:
    """The paths of the files `names` in `folder`, relative to `root`."""
    inner = folder.relative_to(root).as_posix()
    return [PurePosixPath(inner, name).as_posix() for name in names]


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {subset}" for subset, count in counts.items())


def _near(root: Path) -> Iterator[Path]:
    """Yield the folders up to two levels below `root`, then two above it."""
    yield from islice((path for pattern in ("*/", "*/*/") for path in root.glob(pattern) if path.is_dir()),
                      MOST_FOLDERS)
    yield from list(root.parents)[:2]


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
