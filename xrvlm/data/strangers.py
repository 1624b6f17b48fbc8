"""Images of no class that is known: beside a data set, to measure how well they are told from it."""

from dataclasses import dataclass, replace
from pathlib import Path

from xrvlm.data.dataset import SUBSETS, Dataset
from xrvlm.data.folder import files_below
from xrvlm.data.images import ManySources
from xrvlm.errors import UserError, option
from xrvlm.files import FileSource, user_path
from xrvlm.text.class_text import few
from xrvlm.views import SUFFIXES, ImageSource

PREFIX = "unknown:"                      # of the id of a stranger; no path of a data set begins so


@dataclass(frozen=True)
class Joined(ManySources):
    """The images of a data set, and those of a folder under ids that begin with `prefix`."""

    own: ImageSource
    folder: Path
    prefix: str = PREFIX

    @property
    def root(self) -> Path | None:
        return getattr(self.own, "root", None)

    def _of(self, item_id: str) -> tuple[ImageSource, str]:
        strange = item_id.startswith(self.prefix)
        return (FileSource(self.folder), item_id.removeprefix(self.prefix)) if strange else (self.own, item_id)


def with_strangers(dataset: Dataset, folder: str | Path) -> tuple[Dataset, list[tuple[str, str]]]:
    """The data set with the images below `folder` beside its own, and (id, class) of those; the class is their folder.

    Raises UserError where there are none, and where one is known after all: a folder that is called as a class, an
    image that is byte for byte one of the data set.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; check {option('unknown')}")
    root = root.resolve()
    files = sorted(path for path in files_below(root) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"found no image below {root}; {option('unknown')} is a folder of images of no known class")
    joined = Joined(dataset.source, root)
    classes = {name.casefold() for name in dataset.split.classes}
    # a folder of its own, whatever it is called, is no class of the data set
    strangers = [(f"{PREFIX}{path.relative_to(root).as_posix()}", path.parent.name) for path in files]
    if known := sorted({name for _, name in strangers if name.casefold() in classes}):
        raise UserError(f"{few(known)} in {root} is called as a class of {dataset.name}: strangers are of no known "
                        "class; move it out of there")
    own = {dataset.source.sha256(item.id): item.id for subset in SUBSETS for item in getattr(dataset.split, subset)}
    if same := [(name, own[found]) for name, _ in strangers if (found := joined.sha256(name)) in own]:
        raise UserError(f"{len(same)} of {len(strangers)} strangers are images of {dataset.name}: "
                        f"{few(f'{name.removeprefix(PREFIX)} is {mine}' for name, mine in same)}; remove them")
    return replace(dataset, source=joined), [(name, f"unknown {group}") for name, group in strangers]
