"""Files are written atomically, by a temporary name. Also JSON, hashes, the cache folder, and the shipped files."""

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from filelock import FileLock, Timeout

from xrvlm.errors import UserError, WriteError, option

_SHA256: dict[tuple[object, ...], str] = {}
LONGEST_NUMBER = 300                     # digits: a float holds no more
RESULTS = "results.jsonl"
MARK = ".xrvlm"                          # in a folder that xrvlm made


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`; on any failure `path` is unchanged.

    Raises UserError if the disk is full or the folder cannot be written, or `path` is a pipe or a device.
    """
    check_replaceable(path)
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _write_error(path, error) from error
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)          # noqa: PTH105 (tests make this one call fail)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _is_disk_error(error):
            raise _write_error(path, error) from error
        raise


def make_folder(folder: Path) -> None:
    """Make `folder` and those around it that are missing. The outermost is marked: what lies in it are no photos.

    Who calls a command in a folder of photos has `runs`, with its pictures, beside the folders of classes.
    """
    if folder.is_dir():
        return
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if missing:
        (missing[-1] / MARK).touch()


def holds_results(folder: Path) -> bool:
    """Whether xrvlm made `folder`: it is marked, or a file of results says so (of a sweep, or of a former version)."""
    return any((folder / name).exists() for name in (MARK, RESULTS, "multirun.yaml"))


def check_replaceable(path: Path) -> None:
    """UserError where a file would take the place of a pipe or a device: who writes as root may replace /dev/null."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe or a device, which a file would replace; name another file")


def is_writable(path: Path) -> bool:
    """Whether a file can be written to `path`, as far as can be told without making its folders."""
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, fix: str) -> Any:
    """The parsed file. Raises UserError, which ends in `fix`, if it is damaged."""
    try:
        return parsed(file_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {fix}") from error


def parsed(text: str | bytes) -> Any:
    """The value of JSON from anyone. ValueError, too, for a key that occurs twice, half a character, endless levels."""
    try:
        value = json.loads(text, parse_int=_whole, object_pairs_hook=_without_repetition)
        if re.search(r"\\u[dD][89a-fA-F]", text if isinstance(text, str) else text.decode("ascii", "ignore")):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text in it holds half a character (a surrogate such as \\ud800)") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def file_bytes(path: Path) -> bytes:
    """The content of a file. OSError for a pipe or a device too, of which the end may never come."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file", str(path))
    return path.read_bytes()


def file_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 where its first bytes say so; line ends stay. UnicodeDecodeError of others."""
    data = file_bytes(path)
    return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def append_text(path: Path, text: str) -> None:
    """Add `text` to a file. Raises UserError if the disk is full or the file cannot be written."""
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
    except OSError as error:
        raise _write_error(path, error) from error


def leads_out(path: str) -> bool:
    """Whether a relative path that a file names leads out of the folder that it is relative to."""
    return any(kind(path).is_absolute() or ".." in kind(path).parts for kind in (PurePosixPath, PureWindowsPath))


def as_file_name(text: str) -> str:
    """`text` without what would lead out of a folder."""
    return re.sub(r"[ /\\\x00-\x1f]", "_", text).lstrip(".") or "_"


def rewrite_locked(path: Path, change: Callable[[str], str]) -> None:
    """Replace the text of `path` by `change(text)`, under a lock that all processes take in this function."""
    check_replaceable(path)
    with alone(path.with_name(f".{path.name}.lock")):
        before = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
        after = change(before).encode("utf-8", "surrogateescape")      # bytes that are not UTF-8 are kept
        write_atomically(path, lambda temporary: temporary.write_bytes(after))


@contextlib.contextmanager
def alone(lock_file: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `lock_file`. Another process waits or, with `busy`, raises UserError that says it."""
    lock = FileLock(lock_file, blocking=busy is None)
    try:
        make_folder(lock_file.parent)
        if not os.path.lexists(lock_file):
            lock_file.touch()                # where none can be made, the library waits for it or takes it for held
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{lock_file.parent}: {busy}") from error
    except OSError as error:
        raise _write_error(lock_file.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def user_path(path: str | Path) -> Path:
    """`path` with `~` expanded; `~photos` is a file name if there is no such user."""
    if path == "":
        raise UserError("a path is empty, as of a variable that is not set; give the file or folder (. is this one)")
    with contextlib.suppress(RuntimeError):    # there is no such user
        return Path(path).expanduser()
    return Path(path)


def cache_folder(cache: str | Path | None = None) -> Path:
    """`cache`, else $XRVLM_CACHE, else the platform's: on Linux $XDG_CACHE_HOME/xrvlm or ~/.cache/xrvlm."""
    from platformdirs import user_cache_dir

    return user_path(cache or os.environ.get("XRVLM_CACHE") or user_cache_dir("xrvlm", appauthor=False))


@dataclass(frozen=True)
class FileSource:
    """Image files below `root`; an id is the path relative to it."""

    root: Path

    def read(self, item_id: str, /) -> bytes:
        try:
            return file_bytes(self.root / item_id)
        except OSError as error:
            raise self._unreadable(item_id, error) from error

    def sha256(self, item_id: str, /) -> str:
        path = self.root / item_id
        try:
            status = path.stat()
        except OSError as error:
            raise self._unreadable(item_id, error) from error
        # a process reads a file twice only if it was written since: the system alone sets the time of `st_ctime_ns`
        state = path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        if state not in _SHA256:
            _SHA256[state] = sha256(self.read(item_id))
        return _SHA256[state]

    def _unreadable(self, item_id: str, error: OSError) -> UserError:
        return UserError(f"cannot read the image {item_id} in {self.root}: {error.strerror}; {damaged_fix()}")


def damaged_fix() -> str:
    """The fix that the error of an unreadable image ends in."""
    return f"remove or replace it (of a data set, {option('data.skip_damaged', True)} leaves such files out)"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_of(path: Path) -> Path:
    """`path` if it is a folder, else the folder that holds it."""
    return path if path.is_dir() else path.parent


def digest(value: Any) -> str:
    """A hash of any JSON value, independent of the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:    # json.loads would silently keep the last
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _is_disk_error(error: BaseException) -> bool:
    # safetensors raises its own exception for a full disk, with the system's message in it
    return isinstance(error, OSError) or "I/O error" in str(error) or "No space left" in str(error)


def _write_error(path: Path, error: BaseException) -> WriteError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    fix = "free some space or choose another folder" if full else "choose another folder, or one that you may write to"
    return WriteError(f"cannot write {path}: {error}; {fix}, then run the command again: finished results are kept")


@cache
def packaged(folder: str) -> Path:
    """The folder of the shipped `conf` or `prompts`: in the package, or next to it in a checkout."""
    try:
        return Path(str(resources.files(f"xrvlm.{folder}")))
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / folder


@cache
def shipped(group: str) -> dict[str, Path]:
    """{name: file} of the configurations in conf/`group`, sorted by name."""
    return {path.stem: path for path in sorted((packaged("conf") / group).glob("*.yaml"))}


def shipped_options(group: str, name: str) -> dict[str, Any]:
    """The options in conf/`group`/`name`.yaml, with those of its `defaults`, of this group or `/other@_here_: name`."""
    options: dict[str, Any] = yaml.safe_load(shipped(group)[name].read_text(encoding="utf-8")) or {}
    bases = [{group: base} if isinstance(base, str) else base for base in options.pop("defaults", [])]
    before = [shipped_options(of.strip("/").split("@")[0], each) for base in bases for of, each in base.items()]
    return {key: value for part in (*before, options) for key, value in part.items()}
