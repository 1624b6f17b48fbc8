"""Loaders of towers by name: a saved model names the loader of its tower, never a dotted path."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, imported

LOADERS = {
    "openclip": "xrvlm.backbones.openclip_load.load_openclip",
    "hf": "xrvlm.backbones.hf.load_hf",
    "tiny": "xrvlm.demo.tiny_clip.load_tiny_clip",
    "photo": "xrvlm.photo.photo_tower.load_photo",
    "timm_trunk": "xrvlm.backbones.composed.trunk.load_timm_trunk",
    "hf_trunk": "xrvlm.backbones.composed.trunk.load_hf_trunk",
    "pair": "xrvlm.backbones.composed.pair.load_pair",
    "look": "xrvlm.backbones.composed.look.load_look",
}
# how files name their loader that were written before loaders had names; only looked up here, never imported
FORMER_PATHS = {
    "xrvlm.backbones.load_openclip": "openclip",
    "xrvlm.backbones.load_hf": "hf",
    "xrvlm.demo.load_tiny_clip": "tiny",
}


def with_inner(loader: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """`loader`, and the loaders of the towers that it is made of; nothing of None."""
    if loader is None:
        return
    yield loader
    for value in (loader.get("options") or loader.get("arguments") or {}).values():
        if isinstance(value, Mapping) and "name" in value:
            yield from with_inner(value)


def load_tower(loader: Mapping[str, Any], **options: Any) -> FrozenCLIP:
    """Load the tower that `FrozenCLIP.loader` describes.

    Args:
        loader: {"name": one of `LOADERS`, "options": arguments of the loader}. Former versions wrote {"target": dotted
            path, "arguments": ...}.
        options: further arguments of the loader, such as `device` and `precision`.

    Raises:
        UserError: `loader` names no loader of xrvlm, or the tower cannot be loaded.
    """
    former = "target" in loader
    named = loader["target"] if former else loader["name"]
    name = FORMER_PATHS.get(named) if former else named
    if name not in LOADERS:                  # nothing else may be imported: a file can come from anyone
        raise UserError(f"the file names {named!r} as the loader of its tower, which is no loader of xrvlm's: do not "
                        "use this file, or pass the tower as `clip`")
    load, given = imported(LOADERS[name], "loader"), loader["arguments" if former else "options"]
    try:
        signature(load).bind_partial(**given)
    except TypeError as error:
        raise UserError(f"the file's options of the tower {name!r} are not those of its loader ({error}): it was "
                        "changed, or another version wrote it; pass the tower as `clip`") from error
    return load(**given, **options)
