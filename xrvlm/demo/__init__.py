"""The embedded default: drawn birds to recognise and a tiny CLIP that knows such birds. Needs no network."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from xrvlm.backbone import FrozenCLIP, Interpolation
from xrvlm.data import Dataset
from xrvlm.data_folder import image_folder
from xrvlm.files import user_path
from xrvlm.text_tower import TextPath


def load_world(*, world: int = 0, root: str | None = None) -> Dataset:
    """World 0 to 7 of the drawn birds: 40 species, 32 training and 38 test images each, drawn on first use.

    `descriptions.json` and `parts.json` stand beside the images. `root=None` draws into the cache.
    """
    from xrvlm.demo import drawn_birds

    cache = Path(os.environ.get("XRVLM_CACHE") or "~/.cache/xrvlm") / f"drawn_birds-{drawn_birds.VERSION}"
    folder = Path(root) if root is not None else cache / f"world{world}"
    return replace(image_folder(drawn_birds.write(user_path(folder), world), name="drawn_birds"), world=world)


def load_tiny_clip(*, resize_to: int | None = None, interpolation: Interpolation | None = None,
                   text: TextPath = "fast", text_memory_gb: float | None = None, **options: Any) -> FrozenCLIP:
    """The embedded tower; `options` are device and precision, the others as in `load_openclip`."""
    from xrvlm.demo import tiny_clip

    return tiny_clip.tower(resize_to=resize_to, interpolation=interpolation, text=text, text_memory_gb=text_memory_gb,
                           **options)
