"""Check a data set before a long run: what is there, what is missing, and where people get it."""

import inspect
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrvlm.data.dataset import SUBSETS, Dataset
from xrvlm.data.datasets.layout import Layout, absent_images, counted, suggestion
from xrvlm.data.folder import existing_folder, files_below
from xrvlm.data.images import copies_in, unreadable_images
from xrvlm.data.registry import find
from xrvlm.errors import UserError
from xrvlm.files import damaged_fix
from xrvlm.text.class_names import name_classes
from xrvlm.text.class_text import class_text, few
from xrvlm.views import SUFFIXES

SHOWN = 3    # missing images that are named


@dataclass(frozen=True)
class Finding:
    """A report, line by line, and what is wrong, one phrase a fault; no faults if the data set is complete."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]


def check_data(name: str = "folder", /, **options: Any) -> Finding:
    """Check the data set that `load_dataset(name, **options)` would load.

    A published data set is compared with its official layout; no image of it is opened. Any other is loaded and
    counted, and each of its images is decoded.

    Args:
        name: registry name of the loader: "folder", "table", "hub", "cub" ...
        options: of the loader, such as `root`.

    Returns:
        What was found. A data set that cannot be loaded is a fault, not an error.

    Raises:
        UserError: no loader is registered as `name`, or it has no such option.
    """
    found = find(name, **options)
    try:
        return check(found.func, found.keywords)
    except UserError as error:
        return Finding((f"  wrong    {error}", "not complete"), (str(error),))


def check(loader: Callable[..., Dataset], options: Mapping[str, Any]) -> Finding:
    """Check what `loader(**options)` would load; raises the UserError of a loader without an official layout."""
    make_layout = getattr(loader, "layout", None)
    if make_layout is None:
        return _count(loader(**options))
    root = existing_folder(options["root"])
    given = {**options, "root": root}
    wanted = inspect.signature(make_layout).parameters
    layout = make_layout(**{name: given[name] for name in wanted if name in given})
    return _check_layout(layout, root, options.get("class_names"))


def _check_layout(layout: Layout, root: Path, class_names: Any) -> Finding:
    found = layout.found(root)
    lines = [f"{layout.title} in {root}"]
    lines += [f"  {'found  ' if official in found else 'missing'}  {official}"
              + (f" (at {found[official].relative_to(root).as_posix()})" if _elsewhere(root, official, found) else "")
              for official in layout.paths]
    missing = [official for official in layout.paths if official not in found]
    if missing:
        faults = [f"missing: {few(missing)}", suggestion(layout, root)]
        lines += [*_without_lists(layout, found), f"  {faults[-1]}"]
    else:
        faults = _compare(layout, root, found, class_names, lines)
    return Finding((*lines, "not complete" if faults else "complete"), tuple(faults))


def _elsewhere(root: Path, official: str, found: Mapping[str, Path]) -> bool:
    return official in found and found[official] != root / official.rstrip("/")


def _without_lists(layout: Layout, found: Mapping[str, Path]) -> list[str]:
    """The number of image files in each folder, for a data set whose lists are missing."""
    lines = []
    for official, path in found.items():
        if official.endswith("/"):
            count = sum(file.suffix.lower() in SUFFIXES for file in files_below(path)) if path.is_dir() else 0
            lines.append(f"  {count} image files in {official} ({sum(layout.images.values())} officially in all)")
    return lines


def _compare(layout: Layout, root: Path, found: Mapping[str, Path], class_names: Any,
             lines: list[str]) -> list[str]:
    """Compare the lists and images with the official numbers: adds to `lines` and returns the faults."""
    try:
        listing = layout.listing(root, found)
        name_classes(listing.classes, class_names)
    except UserError as error:
        lines.append(f"  wrong    {error}")
        return [str(error)]
    counts = {subset: len(pairs) for subset, pairs in listing.subsets.items()}
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
    """The numbers of a data set that has no official ones, and which of its images cannot be read; warns of copies."""
    split = dataset.split
    class_text(split.classes)            # UserError for names that a tower cannot tell apart
    ids = [item.id for subset in SUBSETS for item in getattr(split, subset)]
    damaged = unreadable_images(ids, dataset.source, os.cpu_count() or 1)
    copies_in({subset: [{"path": item.id, "class": split.classes[item.label], "sha256": dataset.source.sha256(item.id)}
                        for item in getattr(split, subset) if item.id not in damaged] for subset in SUBSETS})
    counts = {subset: len(getattr(split, subset)) for subset in SUBSETS if getattr(split, subset)}
    each = Counter(item.label for item in split.train)
    lines = [dataset.name, f"  classes  {len(split.classes)}: {few(split.classes)}", f"  images   {counted(counts)}"]
    if each:
        low, high = min(each.values()), max(each.values())
        fewest = few(split.classes[label] for label, count in sorted(each.items()) if count == low)
        lines.append(f"  training images a class: {low} to {high}; fewest: {fewest}")
    else:
        lines.append("  no training images are given: for zeroshot and eval")
    if not split.test:
        lines.append("  no test set is given: a quarter of each class will be kept for testing (of one image, none)")
    if not damaged:
        return Finding((*lines, "complete"), ())
    fault = f"{len(damaged)} of {len(ids)} images cannot be read: {few(sorted(damaged), SHOWN)}; {damaged_fix()}"
    return Finding((*lines, f"  damaged  {fault}", "not complete"), (fault,))
