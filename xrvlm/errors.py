"""The one exception for what a user can mend, and how its message names an option to whoever reads it."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

# set while the command line runs: an environment variable, so that processes which decode images inherit it
SPEAKS_KEYS = "XRVLM_ERRORS_NAME_KEYS"
_NO_VALUE: Any = object()


class UserError(ValueError):
    """A mistake in the input, told in one line that names the fix. The command line exits with code 2 on it."""


def option(name: str, value: Any = _NO_VALUE) -> str:
    """How the reader writes an option: `skip_damaged=True` in Python, `data.skip_damaged=true` on the command line.

    Args:
        name: as the command line has it, with its group: "data.skip_damaged". Python knows the last word of it.
        value: what to set it to, as a Python object; left out, the name stands alone.
    """
    if not os.environ.get(SPEAKS_KEYS):
        word = name.rpartition(".")[2]
        return word if value is _NO_VALUE else f"{word}={value!r}"
    return name if value is _NO_VALUE else f"{name}={_as_key_value(value)}"


def _as_key_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_key_value, value))}]"
    return str(value)


def unknown(kind: str, name: str, available: Iterable[str], hint: str = "") -> UserError:
    """`unknown template list 'phot'; available: fine_grained, photo; did you mean 'photo'?; or pass a path`."""
    known = sorted(available)
    shown = ", ".join(known[:40]) + (f", and {len(known) - 40} more" if len(known) > 40 else "")
    close = get_close_matches(name, known, n=1)
    parts = [f"unknown {kind} {name!r}", f"available: {shown or 'none'}"]
    if close:
        parts.append(f"did you mean {close[0]!r}?")
    if hint:
        parts.append(hint)
    return UserError("; ".join(parts))
