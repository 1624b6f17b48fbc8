"""The one exception for what a user can mend, and the sentences that name the fix."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the input, told in one line that names the fix. The command line exits with code 2 on it."""


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
