"""xrvlm adapts a frozen CLIP to fine-grained recognition. These are the public names; each is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xrvlm import _torchvision as _torchvision  # before anything else imports torchvision

if TYPE_CHECKING:
    from xrvlm.backbone import Features, FrozenCLIP
    from xrvlm.backbones import load_hf, load_openclip, wrap_hf, wrap_openclip
    from xrvlm.classifier import Classifier, load
    from xrvlm.data import Dataset, Item, Split
    from xrvlm.data_folder import image_folder
    from xrvlm.data_hub import hub_dataset
    from xrvlm.data_table import table
    from xrvlm.demo import load_tiny_clip, load_world
    from xrvlm.errors import UserError
    from xrvlm.export import export_onnx
    from xrvlm.features import FeatureSettings
    from xrvlm.method import Method
    from xrvlm.methods import (
        CLAP,
        DCLIP,
        GDA,
        PLOT,
        XRVLM,
        ZPE,
        ClipAdapter,
        CoCoOp,
        CoOp,
        GalLoP,
        LinearProbe,
        LPPlusPlus,
        ProLIP,
        ResidualProbe,
        TaskRes,
        TipAdapter,
        TransCLIP,
        XRVLMPlus,
        ZeroShot,
    )
    from xrvlm.recipe import Recipe
    from xrvlm.run import Run, RunOptions, adapt, zero_shot
    from xrvlm.text import ClassText, class_text

_HOME = {
    "backbone": ("Features", "FrozenCLIP"),
    "backbones": ("load_hf", "load_openclip", "wrap_hf", "wrap_openclip"),
    "classifier": ("Classifier", "load"),
    "data": ("Dataset", "Item", "Split"),
    "data_folder": ("image_folder",),
    "data_hub": ("hub_dataset",),
    "data_table": ("table",),
    "demo": ("load_tiny_clip", "load_world"),
    "errors": ("UserError",),
    "export": ("export_onnx",),
    "features": ("FeatureSettings",),
    "method": ("Method",),
    "methods": (
        "CLAP", "DCLIP", "GDA", "PLOT", "XRVLM", "ZPE", "ClipAdapter", "CoCoOp", "CoOp", "GalLoP",
        "LPPlusPlus", "LinearProbe", "ProLIP", "ResidualProbe", "TaskRes", "TipAdapter", "TransCLIP",
        "XRVLMPlus", "ZeroShot",
    ),
    "recipe": ("Recipe",),
    "run": ("Run", "RunOptions", "adapt", "zero_shot"),
    "text": ("ClassText", "class_text"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CLAP", "DCLIP", "GDA", "PLOT", "XRVLM", "ZPE", "ClassText", "Classifier", "ClipAdapter", "CoCoOp", "CoOp",
    "Dataset", "FeatureSettings", "Features", "FrozenCLIP", "GalLoP", "Item", "LPPlusPlus", "LinearProbe",
    "Method", "ProLIP", "Recipe", "ResidualProbe", "Run", "RunOptions", "Split", "TaskRes", "TipAdapter",
    "TransCLIP", "UserError", "XRVLMPlus", "ZeroShot", "adapt", "class_text", "export_onnx", "hub_dataset",
    "image_folder", "load", "load_hf", "load_openclip", "load_tiny_clip", "load_world", "table", "wrap_hf",
    "wrap_openclip", "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xrvlm' has no attribute {name!r}")
    return getattr(import_module(f"xrvlm.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
