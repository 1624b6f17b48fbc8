"""Which files of the package work on a task: counted by a profile function while the task runs.

A file counts if one of its functions runs. Bodies of modules and classes do not count, nor what is called while a
module is imported, such as a decorator. Threads count too, other processes do not.
"""

import inspect
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from PIL import Image

import xrvlm
from xrvlm.backbones.base import Features

PACKAGE = Path(xrvlm.__file__).parent
Files = dict[str, set[str]]              # file, relative to the package -> qualified names of its functions
COMPREHENSIONS = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}
IMPORTING = {"_load_unlocked", "exec_module"}        # functions of importlib that run the body of a module


def files_run(function: Callable[[], object]) -> Files:
    """The files whose functions run in `function()`."""
    found: Files = defaultdict(set)

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (file := _file_of(frame.f_code)) is not None and not _importing(frame):
            found[file].add(frame.f_code.co_qualname)

    _profiled(function, profile)
    return dict(found)


def files_of_image(function: Callable[[], object], sources: Collection[CodeType], end: str = "loss") -> Files:
    """The files that an image goes through in `function()`, from what `sources` return to the loss.

    `sources`: functions whose return value is the data of images: the reader of files, and the reader of a feature bank
    (what was written to disk has no identity in memory). A call is on the path if it gets the image's data as an
    argument, as a field of its object, or returns (yields) it. The image's data: what `sources` return, what a function
    on the path returns, and float tensors that a function passes on which is on the path or was returned such data;
    bytes, PIL images and tensors count, alone or in a list, tuple, dict or `Features`. Parameters do not, nor tensors
    that a function off the path returned (text, labels). The path ends when a function called `end` that is on it
    returns for the first time.
    """
    trace = _Trace(sources, end)
    _profiled(function, trace.profile)
    assert trace.ended, f"no image reached a function called {end!r}: {shown(trace.found)}"
    return dict(trace.found)


def shown(files: Files) -> str:
    """One line a file, for the message of a failed test."""
    return f"{len(files)} files\n" + "\n".join(f"  {file}: {', '.join(sorted(files[file]))}" for file in sorted(files))


class _Trace:
    def __init__(self, sources: Collection[CodeType], end: str):
        self.sources, self.end, self.ended = sources, end, False
        self.found: Files = defaultdict(set)
        self.image: dict[int, Any] = {}              # id -> the object, kept alive so that no other gets its id
        self.other: dict[int, Any] = {}              # tensors that functions off the path returned
        self.on_path: dict[int, FrameType] = {}
        self.holders: dict[int, FrameType] = {}      # that a function on the path returned to
        self.lock = threading.RLock()

    def profile(self, frame: FrameType, event: str, result: object) -> None:
        if self.ended or event not in ("call", "return") or not _is_function(frame.f_code):
            return
        with self.lock:
            if event == "call":
                self._called(frame)
            else:
                self._returned(frame, result)

    def _called(self, frame: FrameType) -> None:
        leaves = [leaf for value in _arguments(frame) for leaf in _leaves(value)]
        caller = _caller(frame)
        if caller is not None and (id(caller) in self.on_path or id(caller) in self.holders):
            for leaf in leaves:
                if _is_derived(leaf) and id(leaf) not in self.other:
                    self.image[id(leaf)] = leaf
        if any(id(leaf) in self.image for leaf in (*leaves, *_own(frame))):
            self._mark(frame)

    def _returned(self, frame: FrameType, result: object) -> None:
        leaves = list(_leaves(result))
        on_path = id(frame) in self.on_path
        made = on_path or (id(frame) in self.holders and any(isinstance(value, Features) for value in _flat(result)))
        if frame.f_code in self.sources or made:
            self.image |= {id(leaf): leaf for leaf in leaves
                           if id(leaf) not in self.other and (not isinstance(leaf, torch.Tensor) or _is_derived(leaf))}
        if any(id(leaf) in self.image for leaf in leaves):
            self._mark(frame)
            if (caller := _caller(frame)) is not None:
                self.holders[id(caller)] = caller
        else:
            self.other |= {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if on_path and frame.f_code.co_name == self.end:
            self.ended = True

    def _mark(self, frame: FrameType) -> None:
        self.on_path[id(frame)] = frame
        file = _file_of(frame.f_code)
        assert file is not None
        self.found[file].add(frame.f_code.co_qualname)


def _profiled(function: Callable[[], object], profile: Callable[[FrameType, str, Any], None]) -> None:
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)           # pyright: ignore[reportArgumentType]


_FILES: dict[CodeType, str | None] = {}


def _file_of(code: CodeType) -> str | None:
    """The file of a function of the package; None for other code, and for the body of a module or a class."""
    if code not in _FILES:
        path = Path(code.co_filename)
        inside = bool(code.co_flags & inspect.CO_OPTIMIZED) and path.is_relative_to(PACKAGE)
        _FILES[code] = path.relative_to(PACKAGE).as_posix() if inside else None
    return _FILES[code]


def _is_function(code: CodeType) -> bool:
    """Of the package, and no comprehension, which counts as a piece of the function around it."""
    return _file_of(code) is not None and code.co_name not in COMPREHENSIONS


def _importing(frame: FrameType) -> bool:
    return any(outer.f_code.co_name in IMPORTING and "importlib" in outer.f_code.co_filename
               for outer in _outer(frame))


def _outer(frame: FrameType) -> Iterator[FrameType]:
    outer = frame.f_back
    while outer is not None and outer.f_code is not _profiled.__code__:
        yield outer
        outer = outer.f_back


def _caller(frame: FrameType) -> FrameType | None:
    """The function of the package that called, perhaps through a library such as torch."""
    return next((outer for outer in _outer(frame) if _is_function(outer.f_code)), None)


def _arguments(frame: FrameType) -> Iterator[object]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    for name in code.co_varnames[:count]:
        yield frame.f_locals.get(name)


def _leaves(value: object, depth: int = 3) -> Iterator[Any]:
    if isinstance(value, bytes | Image.Image | torch.Tensor):
        yield value
    elif depth and isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry, depth - 1)
    elif depth and isinstance(value, dict):
        for entry in value.values():
            yield from _leaves(entry, depth - 1)
    elif depth and isinstance(value, Features):
        yield from _leaves(vars(value), depth)


def _own(frame: FrameType) -> Iterator[Any]:
    """What the object of a method holds, such as the shards of a bank."""
    value = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
    if is_dataclass(value) and not isinstance(value, torch.nn.Module):
        yield from _leaves(vars(value))


def _flat(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_derived(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not isinstance(leaf, torch.nn.Parameter)
