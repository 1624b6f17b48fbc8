"""What lies in the cache: banks of features and drawn worlds, also those of older versions, and what may be deleted."""

import atexit
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from xrvlm.errors import UserError, option, seconds_of
from xrvlm.evaluation.text_tables import Table, aligned_table
from xrvlm.features.bank import FEATURES_REVISION, Store
from xrvlm.files import alone, cache_folder, file_text, parsed

log = logging.getLogger(__name__)
CURRENT, STALE, UNREADABLE = "current", "older version", "unreadable"


@dataclass(frozen=True)
class Bank:
    """A folder of the cache. `what` says in words what its files are; `state` is one of the three above."""

    folder: Path
    what: str
    images: int
    size: int                            # bytes
    used: float                          # when a file of it was last read or written, seconds since the epoch
    state: str


def banks(cache: str | Path | None = None) -> list[Bank]:
    """Every bank of features and every drawn world in the cache, the largest first."""
    root = cache_folder(cache)
    if cache is not None and not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder of a cache with {option('cache')}, or leave it out: "
                        f"{cache_folder()}")
    found = [_bank(folder) for folder in _folders(root / "features")]
    worlds = [folder for folder in _folders(root) if re.fullmatch(r"drawn_birds-\d+", folder.name)]
    newest = max((int(folder.name.rpartition("-")[2]) for folder in worlds), default=0)
    found += [Bank(folder, "drawn birds", sum(1 for _ in folder.rglob("*.png")), *_size_and_use(folder),
                   CURRENT if folder.name.endswith(f"-{newest}") else STALE) for folder in worlds]
    return sorted(found, key=lambda bank: -bank.size)


def prune(cache: str | Path | None = None, *, older_than: str | None = None, every: bool = False,
          dry_run: bool = False) -> list[Bank]:
    """Delete what no run of this version reads: banks of older versions and unreadable ones. Returns what was deleted.

    A bank that another process is filling stays, with a warning. What is deleted is computed again where it is needed.

    Args:
        older_than: also delete banks that were not used for so long: "12h", "30d", "8w".
        every: delete all of the cache.
        dry_run: delete nothing, only return what would be deleted.
    """
    before = None
    if older_than is not None:
        before = time.time() - seconds_of("older_than", older_than, "12h, 30d or 8w", units="hdw")
    chosen = [bank for bank in banks(cache) if every or bank.state != CURRENT
              or (before is not None and bank.used < before)]
    return chosen if dry_run else [bank for bank in chosen if _deleted(bank.folder)]


@cache
def of_this_process() -> Path:
    """A folder for features that is deleted when the process ends."""
    folder = TemporaryDirectory(prefix="xrvlm-features-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def for_this_process(store: Store, problem: str) -> Store:
    """`store` in a folder that is deleted when the process ends; a warning says why: `problem`."""
    log.warning("the cache %s is not used, %s: the features are computed for this process alone, in %s; name another "
                "folder with %s or $XRVLM_CACHE", store.root, problem, of_this_process(), option("features.cache"))
    return replace(store, root=of_this_process())


def table(found: Iterable[Bank]) -> str:
    """The banks as the terminal shows them, with their total size."""
    rows = [[bank.folder.name, bank.what, bank.state, str(bank.images), f"{bank.size / 1e6:,.1f}",
             time.strftime("%Y-%m-%d", time.localtime(bank.used))] for bank in found]
    total = sum(float(row[4].replace(",", "")) for row in rows)
    count = "1 folder" if len(rows) == 1 else f"{len(rows)} folders"
    caption = f"{count}, {total:,.1f} MB" + (f" in {next(iter(found)).folder.parent}." if rows else ".")
    return aligned_table(Table(caption, ["Folder", "Holds", "State", "Images", "MB", "Last used"], 3, [], rows), 120)


def _folders(root: Path) -> list[Path]:
    """The folders in `root`; a link to one is no part of the cache, which may be deleted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()) if root.is_dir() else []


def _bank(folder: Path) -> Bank:
    size, used = _size_and_use(folder)
    shards = sorted(folder.rglob("*.safetensors"))
    headers = [_header(path) for path in shards]
    images = sum(len(header.get("images", ())) for header in headers if header)
    try:
        key = parsed(file_text(folder / "key.json"))
        what = f"{key['backbone'][:8]}, {key['precision']}, {key['views'] + 1} views, {key['dtype']}"
        # revision 1 kept a bank for each list of images, revision 2 wrote no number
        state = CURRENT if key.get("format", 2) == FEATURES_REVISION and "ids" not in key else STALE
        images = images or len(key.get("ids", ()))
    except (OSError, ValueError, LookupError, TypeError):
        what, state = "features", STALE if shards and all(headers) else UNREADABLE
    if state == CURRENT and any(header is None or "images" not in header for header in headers):
        state = UNREADABLE
    return Bank(folder, what, images, size, used, state)


def _header(path: Path) -> dict | None:
    """The header of a shard; None where it cannot be read. The file's times stay: this is no use of the bank."""
    try:
        if not path.is_file():
            return None
        status = path.stat()
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parsed(file.read(length)) if length < 10**8 else {}
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return parsed(header["__metadata__"]["xrvlm"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _size_and_use(folder: Path) -> tuple[int, float]:
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    if not found:
        return 0, folder.stat().st_mtime
    return sum(each.st_size for each in found), max(max(each.st_atime, each.st_mtime) for each in found)


def _deleted(folder: Path) -> bool:
    try:
        with ExitStack() as stack:
            for lock in folder.rglob(".lock*"):
                stack.enter_context(alone(lock, "another process is filling this bank"))
            shutil.rmtree(folder)
    except UserError as error:
        log.warning("not deleted: %s", error)
        return False
    return True
