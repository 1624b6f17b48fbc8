"""What is right for any input: a result with a meaning or a UserError; no code of a file runs, no other file changes.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from fuzz.trap import SPRUNG
from xrvlm.cli.main import _tell, main
from xrvlm.errors import CONTROL, UserError

USED, REFUSED = "used", "refused"
CALLS = ("os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen", "socket.connect",
         "pickle.find_class")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.symlink", "os.link")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
T = TypeVar("T")


class Wrong(Exception):    # noqa: N818
    """An answer that is neither right nor a UserError."""


def require(right: Any, message: str) -> None:
    if not right:
        raise Wrong(message)


def plain(text: str, where: str) -> None:
    """Wrong where `text`, as the command line shows it in one line, holds a control character."""
    if found := CONTROL.search(" ".join(text.split())):
        raise Wrong(f"{where} holds the control character {found[0]!r}: {text[:300]!r}")


def answer(call: Callable[[], T]) -> tuple[T | None, str]:
    """What `call` returns and "", or None and the message of its UserError."""
    try:
        return call(), ""
    except UserError as error:
        shown = io.StringIO()
        with redirect_stderr(shown):
            _tell(error)                     # as the command line shows it
        plain(shown.getvalue(), "the message")
        require(str(error).strip(), "an empty message")
        return None, str(error)


def command_line(*words: str) -> tuple[str, str]:
    """USED or REFUSED, and the output, of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(words))
    except SystemExit as error:
        raise Wrong(f"SystemExit {error.code} of {words}: {err.getvalue()[-300:]}") from error
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before[0], before[1]
    shown = out.getvalue() + err.getvalue()
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    require(code in (0, 2), f"exit code {code} of {words}")
    require("Traceback" not in shown, f"a traceback of {words}: {shown[-500:]}")
    require(len(errors) == (code == 2), f"exit code {code} and {len(errors)} error lines of {words}: {shown[-500:]}")
    plain(shown, "the output")
    require(" nan%" not in shown, f"NaN in the output of {words}: {shown[-300:]}")
    return (USED if code == 0 else REFUSED), shown


class _Watch:
    """Which folders may change, and what happened elsewhere."""

    def __init__(self):
        self.hooked = False
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []

    def hook(self, event: str, args: Sequence[Any]) -> None:
        if not self.allowed or (event != "open" and event not in CALLS and event not in CHANGES):
            return
        if event in CALLS:
            self.seen.append(f"{event}{tuple(args)!r:.200}")
        elif event == "open":
            path, mode, flags = args
            if (flags or 0) & WRITES or (isinstance(mode, str) and set(mode) & set("wax+")):
                self.changed(event, path)
        elif not any(isinstance(each, int) and each >= 0 for each in args[1:]) or event in ("os.mkdir", "os.chmod"):
            self.changed(event, args[1 if event in ("os.rename", "os.symlink", "os.link") else 0])

    def changed(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        # a folder that is there is not made, and a file that is opened in it without a name is none
        there = event in ("os.mkdir", "open") and os.path.isdir(real)    # noqa: PTH112 (it raises no event)
        if not there and "__pycache__" not in real and not real.startswith(("/dev/", *self.allowed)):
            self.seen.append(f"{event} of {real}")


_WATCH = _Watch()


@contextmanager
def watched(allowed: Sequence[Path], *, own_code: bool = False) -> Iterator[None]:
    """Inside, an input may change files in the folders `allowed` alone; Wrong else.

    With `own_code` the user names code on the command line, which may then run (SECURITY.md); else nothing may.
    """
    if not _WATCH.hooked:
        sys.addaudithook(_WATCH.hook)
        _WATCH.hooked = True
    SPRUNG.clear()
    _WATCH.seen, _WATCH.allowed = [], tuple(os.path.realpath(path) for path in allowed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:                                 # also where it went wrong: this is the worse failure
        _WATCH.allowed = ()
        imported = sys.modules.pop("fuzz.bait", None)
        require(own_code or (not SPRUNG and imported is None), f"code ran: {SPRUNG[:3] or 'a module was imported'}")
        require(not _WATCH.seen, f"done elsewhere: {_WATCH.seen[:3]}")
