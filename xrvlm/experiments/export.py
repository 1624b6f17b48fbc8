"""A finished run as one file that runs without xrvlm and torch."""

import logging
from pathlib import Path
from typing import Literal

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, typed
from xrvlm.experiments.saved import SavedRun
from xrvlm.files import user_path
from xrvlm.inference.export import export_onnx, sample_images

log = logging.getLogger(__name__)


@typed
def export(run: str | Path, out: str | Path | None = None, *, format: Literal["onnx"] = "onnx",    # noqa: A002
           clip: FrozenCLIP | None = None) -> Path:
    """Write the run in the folder `run` as ONNX to `out` (default: model.onnx in that folder); returns the file.

    The file is float32 and is made and checked on the CPU: on random images, and on some of the run's test images
    where these can be read. See `inference/export.py` for what the file holds. `run` may be "latest".

    Raises:
        UserError: the format is unknown, a package is missing, or the exported file does not agree with torch.
    """
    saved = SavedRun(run)
    classifier = saved.classifier(clip, device="cpu", precision="fp32")
    images = None
    try:
        dataset = saved.dataset()
        images = sample_images(classifier, dataset.source, dataset.split.test)
    except UserError as error:
        log.info("checked on random images alone: %s", error)
    return export_onnx(classifier, saved.home / "model.onnx" if out is None else user_path(out), images=images)
