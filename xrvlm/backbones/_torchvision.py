"""Import torchvision beside a torch that it was not built for.

The torchvision wheel of PyPI links CUDA; next to a CPU-only torch its C++ library cannot be loaded, and the import
then fails because the two operators that Python code decorates do not exist. Declaring them is enough for all that is
used here (transforms). Where the pair matches, nothing is done.
"""

import sys

import torch


def _declare_missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = _declare_missing_operators()     # must stay alive: the operators go with it
    import torchvision  # noqa: F401
