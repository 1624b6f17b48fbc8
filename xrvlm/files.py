"""Files are written whole or not at all: to a temporary name beside the target, flushed, then renamed."""

import ast
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from xrvlm.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`; on any failure `path` stays as it was.

    Raises UserError where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _write_error(path, error) from error
    temporary = Path(name)
    try:
        write(temporary)
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)          # noqa: PTH105 (tests make this one call fail)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _is_disk_error(error):
            raise _write_error(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, fix: str) -> Any:
    """The parsed file; a damaged one raises UserError that ends in `fix`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {fix}") from error


def rewrite_locked(path: Path, change: Callable[[str], str]) -> None:
    """Replace the text of `path` by `change(text)`, alone among the processes that do so through this call."""
    with alone(path.with_name(f".{path.name}.lock")):
        before = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
        after = change(before).encode("utf-8", "surrogateescape")      # bytes that are no text stay as they are
        write_atomically(path, lambda temporary: temporary.write_bytes(after))


@contextlib.contextmanager
def alone(lock_file: Path, busy: str | None = None) -> Iterator[None]:
    """One process at a time: wait for the others, or raise UserError with the sentence `busy` where there is one."""
    lock = FileLock(lock_file, blocking=busy is None)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
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
    """`path` with its `~` expanded; a file may also be called `~photos`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:    # no user of that name
        return Path(path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_of(path: Path) -> Path:
    """A folder itself, or the one that a file stands in."""
    return path if path.is_dir() else path.parent


def code_alone(source: str) -> str:
    """Python source without comments, docstrings and layout: what it does."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                ast.get_docstring(node, clean=False) is not None):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def digest(value: Any) -> str:
    """A hash of anything that JSON can say, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:    # JSON would keep the last and say nothing
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _is_disk_error(error: BaseException) -> bool:
    # safetensors reports a full disk as its own exception, with the system's text inside
    return isinstance(error, OSError) or "I/O error" in str(error) or "No space left" in str(error)


def _write_error(path: Path, error: BaseException) -> UserError:
    return UserError(f"cannot write {path}: {error}; free some space or choose another folder, "
                     "then run the same command again: what was finished before is kept")


@cache
def packaged(folder: str) -> Path:
    """Where the shipped `conf` or `prompts` are: in the package, or beside it in a checkout that is not installed."""
    try:
        return Path(str(resources.files(f"xrvlm.{folder}")))
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / folder


@cache
def shipped(group: str) -> dict[str, Path]:
    """{name: file} of the configurations in conf/`group`, sorted by name."""
    return {path.stem: path for path in sorted((packaged("conf") / group).glob("*.yaml"))}


def shipped_options(group: str, name: str) -> dict[str, Any]:
    """The options in conf/`group`/`name`.yaml, those that it takes over from others of its group below `defaults` too."""
    options: dict[str, Any] = yaml.safe_load(shipped(group)[name].read_text(encoding="utf-8")) or {}
    before = [shipped_options(group, base) for base in options.pop("defaults", ()) if base != "_self_"]
    return {key: value for part in (*before, options) for key, value in part.items()}
