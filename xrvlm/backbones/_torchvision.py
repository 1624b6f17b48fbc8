"""Let torchvision be imported next to a torch build that it does not match, whoever imports it first.

The torchvision wheel on PyPI links CUDA. With a CPU-only torch its C++ library does not load, and `import torchvision`
fails because two operators are missing that its Python code decorates. Defining their schemas is enough for what xrvlm
uses (transforms). If torch and torchvision match, or torchvision is not installed, this module changes nothing.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_keep: list[Any] = []        # the operators live as long as the library that defines them


class _Finder(MetaPathFinder):
    """Finds torchvision where Python finds it, for `_Mending` to load."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:       # it may only be looked for, not imported
            spec.loader = _Mending(spec.loader)
        return spec


class _Mending(Loader):
    def __init__(self, loader: Any):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self.loader       # from here on it is a module like any other
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        try:
            self.loader.exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in tuple(sys.modules):
                if name.startswith("torchvision."):
                    del sys.modules[name]
            _define_operators()
            self.loader.exec_module(module)


def _define_operators() -> None:
    import torch  # torchvision has imported it

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _Finder())
