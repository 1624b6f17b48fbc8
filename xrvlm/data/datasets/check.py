"""What of a data set is there, what is missing, and where people get it: told before a long run stumbles on it."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import PARTS, Dataset
from xrvlm.data.datasets.layout import Layout, absent_images, counted, suggestion
from xrvlm.data.folder import existing_folder, image_files
from xrvlm.errors import UserError
from xrvlm.text.class_text import few, name_classes

SHOWN = 3    # absent images that are named


@dataclass(frozen=True)
class Finding:
    """A report to read, line by line, and what is wrong, in a few words each."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]


def check(loader: Callable[..., Dataset], options: Mapping[str, Any]) -> Finding:
    """Look at what `loader(**options)` would read.

    A set with an official layout is held against what was published. Any other is loaded and counted: its own
    mistakes come as the UserError of its loader.
    """
    module = inspect.getmodule(loader)
    if module is None or module.__name__.rpartition(".")[0] != "xrvlm.data.datasets":
        return _count(loader(**options))
    root = existing_folder(options["root"])
    given = {**options, "root": root}
    wanted = inspect.signature(module.layout).parameters     # each module there has one
    layout = module.layout(**{name: given[name] for name in wanted if name in given})
    return _check_layout(layout, root, options.get("class_names"))


def _check_layout(layout: Layout, root: Path, class_names: Any) -> Finding:
    found = layout.found(root)
    lines = [f"{layout.title} in {root}"]
    lines += [f"  {'found  ' if official in found else 'missing'}  {official}"
              + (f" (at {found[official].relative_to(root).as_posix()})" if _elsewhere(root, official, found) else "")
              for official in layout.places]
    missing = [official for official in layout.places if official not in found]
    if missing:
        faults = [f"missing: {few(missing)}", suggestion(layout, root)]
        lines += [*_without_lists(layout, found), f"  {faults[-1]}"]
    else:
        faults = _hold_against(layout, root, found, class_names, lines)
    return Finding((*lines, "not complete" if faults else "complete"), tuple(faults))


def _elsewhere(root: Path, official: str, found: Mapping[str, Path]) -> bool:
    return official in found and found[official] != root / official.rstrip("/")


def _without_lists(layout: Layout, found: Mapping[str, Path]) -> list[str]:
    """How many image files there are, where no list can say which are wanted."""
    lines = []
    for official, path in found.items():
        if official.endswith("/"):
            try:
                count = len(image_files(path)[1])
            except UserError:
                count = 0
            lines.append(f"  {count} image files in {official} ({sum(layout.images.values())} officially in all)")
    return lines


def _hold_against(layout: Layout, root: Path, found: Mapping[str, Path], class_names: Any,
                  lines: list[str]) -> list[str]:
    """Adds what was counted to `lines`; returns the faults."""
    try:
        listing = layout.listing(root, found)
        name_classes(listing.classes, class_names)
    except UserError as error:
        lines.append(f"  wrong    {error}")
        return [str(error)]
    counts = {part: len(pairs) for part, pairs in listing.parts.items()}
    total = sum(counts.values())
    absent = absent_images(root, listing)
    lines += [f"  classes  {len(listing.classes)} (officially {layout.classes})",
              f"  listed   {counted(counts)} (officially {counted(layout.images)})",
              f"  images   {total - len(absent)} of {total} listed ones are there"]
    faults = []
    if len(listing.classes) != layout.classes or counts != dict(layout.images):
        faults.append(f"the lists name {len(listing.classes)} classes and {counted(counts)} images, officially "
                      f"{layout.classes} classes and {counted(layout.images)}")
    if absent:
        lines.append(f"  absent   {len(absent)}: {few(absent, SHOWN)}")
        faults.append(f"{len(absent)} of {total} images are absent: {few(absent, SHOWN)}")
    if faults:
        faults.append(f"get it from {layout.address}")
        lines.append(f"  {faults[-1]}")
    return faults


def _count(dataset: Dataset) -> Finding:
    """What a loader found, where there is no official number to hold it against."""
    split = dataset.split
    counts = {part: len(getattr(split, part)) for part in PARTS if getattr(split, part)}
    each = Counter(item.label for item in split.train)
    low, high = min(each.values()), max(each.values())
    fewest = few(split.classes[label] for label, count in sorted(each.items()) if count == low)
    lines = [f"{dataset.name}", f"  classes  {len(split.classes)}: {few(split.classes)}",
             f"  images   {counted(counts)}", f"  training images a class: {low} to {high}; fewest: {fewest}"]
    if not split.test:
        lines.append("  no test part is given: a quarter of each class will be kept for testing (of one image, none)")
    return Finding((*lines, "complete"), ())
