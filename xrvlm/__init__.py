"""xrvlm adapts a frozen CLIP to fine-grained recognition. These are the public names; each is imported on first use.

Every command of the command line is one call here: `adapt`, `zero_shot`, `evaluate`, `predict`, `explain`, `export`,
`compare`, `report`, `serve`, `push`, `suspects`, `next_to_label`, `describe`, `choose_prompts`, `check_data`.
The class of a method, such as `xrvlm.CoOp`, is found through the registry (`xrvlm.methods.registry`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xrvlm.backbones import _torchvision as _torchvision  # before any import of torchvision, the caller's too

if TYPE_CHECKING:
    from xrvlm.backbones.base import Features, FrozenCLIP
    from xrvlm.backbones.composed.look import second_look
    from xrvlm.backbones.composed.pair import paired
    from xrvlm.backbones.composed.trunk import load_hf_trunk, load_timm_trunk
    from xrvlm.backbones.hf import load_hf, wrap_hf
    from xrvlm.backbones.openclip import wrap_openclip
    from xrvlm.backbones.openclip_load import load_openclip
    from xrvlm.data.dataset import Dataset, Item, Split
    from xrvlm.data.datasets.check import check_data
    from xrvlm.data.extra import with_extra
    from xrvlm.data.folder import image_folder
    from xrvlm.data.hub import hub_dataset
    from xrvlm.data.joint import joint
    from xrvlm.data.table import table
    from xrvlm.demo.drawn_birds import load_world
    from xrvlm.demo.tiny_clip import load_tiny_clip
    from xrvlm.errors import UserError
    from xrvlm.experiments.compare import Candidate, CompareOptions, compare
    from xrvlm.experiments.evaluate import evaluate
    from xrvlm.experiments.export import export
    from xrvlm.experiments.labelling.choose import next_to_label
    from xrvlm.experiments.predict import predict
    from xrvlm.experiments.record import RunOptions
    from xrvlm.experiments.run import Run, adapt, zero_shot
    from xrvlm.experiments.wording.describe import describe
    from xrvlm.experiments.wording.prompts import choose_prompts
    from xrvlm.features.source import FeatureSettings
    from xrvlm.inference.answers import Asked
    from xrvlm.inference.classifier import Classifier, load
    from xrvlm.inference.export import export_onnx
    from xrvlm.methods.base import Method, Recipe
    from xrvlm.photo.photo_tower import load_photo
    from xrvlm.reporting.explanations import explain
    from xrvlm.reporting.hub.push import push
    from xrvlm.reporting.report import report
    from xrvlm.reporting.serve.page import PageLimits, serve
    from xrvlm.reporting.suspects import suspects
    from xrvlm.text.class_text import ClassText, class_text

__all__ = [
    "Asked", "Candidate", "ClassText", "Classifier", "CompareOptions", "Dataset", "FeatureSettings", "Features",
    "FrozenCLIP", "Item", "Method", "PageLimits", "Recipe", "Run", "RunOptions", "Split", "UserError", "adapt",
    "check_data", "choose_prompts", "class_text", "compare", "describe", "evaluate", "explain", "export", "export_onnx",
    "hub_dataset", "image_folder", "joint", "load", "load_hf", "load_hf_trunk", "load_openclip", "load_photo",
    "load_timm_trunk", "load_tiny_clip", "load_world", "next_to_label", "paired", "predict", "push", "report",
    "second_look", "serve", "suspects", "table", "with_extra", "wrap_hf", "wrap_openclip", "zero_shot",
]

_NAMES = {
    "backbones.base": ("Features", "FrozenCLIP"),
    "backbones.hf": ("load_hf", "wrap_hf"),
    "backbones.openclip": ("wrap_openclip",),
    "backbones.openclip_load": ("load_openclip",),
    "data.dataset": ("Dataset", "Item", "Split"),
    "data.datasets.check": ("check_data",),
    "data.extra": ("with_extra",),
    "data.folder": ("image_folder",),
    "data.hub": ("hub_dataset",),
    "data.joint": ("joint",),
    "data.table": ("table",),
    "demo.drawn_birds": ("load_world",),
    "demo.tiny_clip": ("load_tiny_clip",),
    "errors": ("UserError",),
    "experiments.compare": ("Candidate", "CompareOptions", "compare"),
    "experiments.evaluate": ("evaluate",),
    "experiments.export": ("export",),
    "experiments.labelling.choose": ("next_to_label",),
    "experiments.predict": ("predict",),
    "experiments.record": ("RunOptions",),
    "experiments.run": ("Run", "adapt", "zero_shot"),
    "experiments.wording.describe": ("describe",),
    "experiments.wording.prompts": ("choose_prompts",),
    "features.source": ("FeatureSettings",),
    "inference.answers": ("Asked",),
    "inference.classifier": ("Classifier", "load"),
    "inference.export": ("export_onnx",),
    "methods.base": ("Method", "Recipe"),
    "photo.photo_tower": ("load_photo",),
    "backbones.composed.pair": ("paired",),
    "backbones.composed.look": ("second_look",),
    "backbones.composed.trunk": ("load_hf_trunk", "load_timm_trunk"),
    "reporting.explanations": ("explain",),
    "reporting.hub.push": ("push",),
    "reporting.report": ("report",),
    "reporting.serve.page": ("PageLimits", "serve"),
    "reporting.suspects": ("suspects",),
    "text.class_text": ("ClassText", "class_text"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"xrvlm.{_MODULE_OF[name]}"), name)
    if name[:1].isupper():                   # no module is called so
        return getattr(import_module("xrvlm.methods"), name)
    raise AttributeError(f"module 'xrvlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *dir(import_module("xrvlm.methods"))})
