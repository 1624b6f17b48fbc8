"""Frozen CLIP models of open_clip and transformers. Each library is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xrvlm.backbones.hf import load_hf, wrap_hf
    from xrvlm.backbones.openclip import wrap_openclip
    from xrvlm.backbones.openclip_load import load_openclip

__all__ = ["load_hf", "load_openclip", "wrap_hf", "wrap_openclip"]

_MODULE_OF = {"load_hf": "hf", "load_openclip": "openclip_load", "wrap_hf": "hf", "wrap_openclip": "openclip"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
