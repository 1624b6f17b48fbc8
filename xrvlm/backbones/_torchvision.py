"""Import torchvision next to a torch build that it does not match.

The torchvision wheel on PyPI links CUDA. With a CPU-only torch its C++ library does not load, and `import torchvision`
fails because two operators are missing that its Python code decorates. Defining their schemas is enough for what xrvlm
uses (transforms). If torch and torchvision match, this module changes nothing.
"""

import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    for _module in tuple(sys.modules):
        if _module.split(".")[0] == "torchvision":
            del sys.modules[_module]
    _library = torch.library.Library("torchvision", "FRAGMENT")     # referenced here: its operators live as long as it
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
