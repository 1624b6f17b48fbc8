"""The methods, one file each. `xrvlm.methods.CoOp` is found through the registry and imported on first use."""

from typing import Any

from xrvlm.errors import imported
from xrvlm.methods import registry


def __getattr__(name: str) -> Any:
    if (target := registry.classes().get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return imported(target, "method")


def __dir__() -> list[str]:
    return sorted({*globals(), *registry.classes()})
