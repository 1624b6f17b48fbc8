"""Code that a file may name and that nothing may call: it remembers each call."""

from typing import Any

SPRUNG: list[str] = []


def spring(*args: Any, **kwargs: Any) -> str:
    SPRUNG.append(f"called with {args} {kwargs}")
    return "sprung"


class Mine:
    """What a file may name as a method or a loader."""

    def __init__(self, *args: Any, **kwargs: Any):
        spring(*args, **kwargs)
