"""A call in a process of its own, with a limit of time and of memory: a hang or a crash ends no other."""

import faulthandler
import json
import os
import resource
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 20.0                           # for one input
MEMORY = 8 * 2**30                       # bytes that one input may take beside what the process has


class TooLong(BaseException):
    """The time of an input is over. No `except Exception` holds it."""


def apart(call: Callable[[], str], dump: Path, seconds: float = SECONDS, trace: bool = False) -> tuple[str | None, str]:
    """What `call` returns and "", or None and what went wrong. `dump` is a file for where a library's loop hangs."""
    sys.stdout.flush()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # of threads: none of them holds what the call needs
        pid = os.fork()
    if not pid:
        _answer(call, write, dump, seconds, trace)
    os.close(write)
    try:
        return _heard(pid, read, dump, seconds)
    finally:
        os.close(read)


def _heard(pid: int, read: int, dump: Path, seconds: float) -> tuple[str | None, str]:
    ready, _, _ = select.select([read], [], [], seconds + 10)
    data = b""
    if ready:
        while part := os.read(read, 65536):
            data += part
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if data:
        found, problem = json.loads(data)
        return found, problem
    lines = dump.read_text().splitlines() if dump.exists() else []
    where = next((line.strip() for line in lines if "/xrvlm/" in line), "")
    return None, f"no answer in {seconds:g} s, or a crash (status {status}) {where}"


def _answer(call: Callable[[], str], write: int, dump: Path, seconds: float, trace: bool) -> None:
    found, problem = None, ""
    try:
        _limit(dump, seconds)
        found = call()
    except BaseException as error:    # a failure may be anything, SystemExit and the end of its time too
        if trace:
            traceback.print_exc()
        problem = _told(error)
    finally:
        os.write(write, json.dumps([found, problem]).encode())
        os._exit(0)


def _limit(dump: Path, seconds: float) -> None:
    def over(*_: Any) -> None:
        raise TooLong(f"no answer in {seconds:g} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    file = dump.open("w")                  # open until the process ends
    faulthandler.dump_traceback_later(seconds + 3, exit=True, file=file)    # in a loop that no signal ends
    if (statm := Path("/proc/self/statm")).exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY or used + MEMORY < most:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, most))


def _told(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    inner = next((frame for frame in reversed(where) if "/xrvlm/" in frame.filename.replace("\\", "/")), where[-1])
    text = ascii(" ".join(str(error).split())[:600])
    return f"{type(error).__name__} in {Path(inner.filename).name}:{inner.lineno}: {text}"
