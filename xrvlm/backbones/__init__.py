"""Where a FrozenCLIP comes from. open_clip and transformers are imported when the first of theirs is asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xrvlm.backbones.hf import load_hf, wrap_hf
    from xrvlm.backbones.openclip import wrap_openclip
    from xrvlm.backbones.openclip_load import load_openclip

__all__ = ["load_hf", "load_openclip", "wrap_hf", "wrap_openclip"]


def __getattr__(name: str) -> Any:
    if name == "load_openclip":
        from xrvlm.backbones import openclip_load as module
    elif name == "wrap_openclip":
        from xrvlm.backbones import openclip as module
    elif name in ("load_hf", "wrap_hf"):
        from xrvlm.backbones import hf as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
