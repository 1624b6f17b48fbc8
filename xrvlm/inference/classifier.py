"""An adapted tower that labels images, and its file: what was learned plus all that is needed to use it again."""

import contextlib
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.files import code_alone, digest, user_path, write_atomically
from xrvlm.methods.base import Method
from xrvlm.text.class_text import ClassText
from xrvlm.views import evaluation_view, read_image

FORMAT = 1
MethodFactory = Callable[[FrozenCLIP, ClassText], Method]    # a Method class, or a partial of one with its options


class Classifier:
    """A frozen tower with an adapted method; the language side is computed once.

    `about` is the file's header: classes, backbone, method and its arguments, split fingerprint, metrics.
    """

    def __init__(self, clip: FrozenCLIP, method: Method, about: dict[str, Any]):
        self.clip, self.method, self.about = clip, method.eval(), about
        self.names: tuple[str, ...] = tuple(about["classes"]["names"])
        with torch.no_grad():
            self.class_features = method.class_features(clip)

    @torch.no_grad()
    def from_features(self, x: Features) -> Tensor:
        """(b, c) probabilities on the CPU."""
        return self.method.logits(x, self.class_features).softmax(dim=1).cpu()

    def probabilities(self, images: Tensor) -> Tensor:
        """(b, c) on the CPU, of `images` (b, 3, s, s) as the tower's evaluation transform makes them."""
        return self.from_features(self.clip.encode_image(images.to(self.clip.device), self.method.needs))

    def predict(self, image: Image.Image | str | Path, topk: int = 5) -> list[tuple[str, float]]:
        """The `topk` most probable classes of one image (a PIL image or a file) with their probabilities."""
        view = evaluation_view(read_image(image), self.clip.transform)
        values, classes = self.probabilities(view[None])[0].topk(min(topk, len(self.names)))
        return [(self.names[index], value) for index, value in zip(classes.tolist(), values.tolist(), strict=True)]

    def for_classes(self, classes: ClassText) -> "Classifier":
        """This model, as trained, for other classes (`class_text` makes them); it can be saved and loaded as any.

        Raises UserError where the method is bound to the classes that it was trained on.
        """
        about = {key: value for key, value in self.about.items() if key != "metrics"}    # those are of other classes
        return Classifier(self.clip, self.method.for_classes(self.clip, classes), about | {"classes": asdict(classes)})

    def save(self, path: Path | str) -> Path:
        """Write the model to `path` (a file ending in .safetensors, or a folder: model.safetensors inside)."""
        path = _model_file(user_path(path))
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.method.state_dict().items()}
        metadata = {"xrvlm": json.dumps(self.about, ensure_ascii=False)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
        return path

    @classmethod
    def load(cls, path: Path | str, clip: FrozenCLIP | None = None, **tower_options: Any) -> "Classifier":
        """Read what `save` wrote.

        Without `clip` the tower is loaded as the file's header says; `tower_options` are device and precision.

        Raises:
            UserError: the file is missing or damaged, the tower is another one than the model was adapted on, or the
                method's class or options are not what they were.
        """
        path = _model_file(user_path(path))
        about, tensors = _read(path)
        try:
            return cls._restored(path, about, tensors, clip, tower_options)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged or was changed by hand ({type(error).__name__}: {error}): adapt again "
                            "with force=true") from error

    @classmethod
    def _restored(cls, path: Path, about: dict[str, Any], tensors: dict[str, Tensor], clip: FrozenCLIP | None,
                  tower_options: dict[str, Any]) -> "Classifier":
        clip = clip or _load_tower(path, about["backbone"], tower_options)
        if clip.fingerprint != about["backbone"]["fingerprint"]:
            before = about["backbone"]
            raise UserError(f"{path} was adapted on {before['name']} at {before['image_size']} pixels, not on "
                            f"{clip.name} at {clip.transform.image_size}: load that tower, with the same transform, "
                            "or adapt again")
        _check_options(path, about["method"])
        method = build_method(about["method"], clip, read_class_text(about["classes"]))
        broken = [name for name, value in tensors.items() if not value.isfinite().all()]
        if broken:
            raise UserError(f"{path} holds numbers that are not finite ({', '.join(broken)}): adapt again with "
                            "force=true")
        try:
            method.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} does not fit its method {about['method']['target']}: {reason}; use the version of "
                            "the method that it was saved with, or adapt again with force=true") from error
        return cls(clip, method.to(clip.device), about)


def describe(clip: FrozenCLIP, factory: MethodFactory, classes: ClassText) -> dict[str, Any]:
    """The part of a model's header that is known before training."""
    backbone = {"name": clip.name, "fingerprint": clip.fingerprint, "image_size": clip.transform.image_size,
                "loader": clip.loader}
    return {"format": FORMAT, "backbone": backbone, "method": method_spec(factory), "classes": asdict(classes)}


def method_spec(factory: MethodFactory) -> dict[str, Any]:
    """{"target": dotted path of the class, "arguments": all its options, the defaults too}."""
    target = factory.func if isinstance(factory, partial) else factory
    given = factory.keywords if isinstance(factory, partial) else {}
    if not (isinstance(target, type) and issubclass(target, Method)):
        raise UserError(f"a method is a subclass of xrvlm.Method or a functools.partial of one, found {factory!r}")
    return {"target": f"{target.__module__}.{target.__qualname__}", "arguments": _defaults(target) | given}


def method_code(method: type[Method]) -> dict[str, str]:
    """A hash of the source of `method` and of its bases, by the module's name, comments and docstrings left out.

    Nothing for a class that has no file.
    """
    found = {}
    for base in method.__mro__:
        if base not in Method.__mro__:
            with contextlib.suppress(OSError, TypeError):    # how `inspect` says that there is no file
                found[base.__module__] = digest(code_alone(Path(inspect.getfile(base)).read_text(encoding="utf-8")))
    return found


def changed_options(spec: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `method_spec` that are not the method's defaults, or have none that is known."""
    defaults = _defaults(_method_class(spec))
    return {name: value for name, value in spec["arguments"].items() if name not in defaults or value != defaults[name]}


def _defaults(target: type) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(target).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def build_method(spec: dict[str, Any], clip: FrozenCLIP, classes: ClassText) -> Method:
    """The inverse of `method_spec`, freshly allocated."""
    return _method_class(spec)(clip, classes, **spec["arguments"])


def _check_options(path: Path, spec: dict[str, Any]) -> None:
    known = inspect.signature(_method_class(spec)).parameters
    gone = sorted(spec["arguments"].keys() - known.keys())
    if gone and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise UserError(f"{path} has options that {spec['target']} does not know ({', '.join(gone)}), it was written "
                        "by another version of xrvlm: install that version, or adapt again with force=true")


def _method_class(spec: dict[str, Any]) -> type[Method]:
    module, _, name = spec["target"].rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot find the method {spec['target']}: {error}; install the package that holds it, "
                        "or put its folder on PYTHONPATH") from error
    if not (isinstance(target, type) and issubclass(target, Method)):
        raise UserError(f"{spec['target']} is not a method of xrvlm")
    return target


def read_class_text(values: dict[str, Any]) -> ClassText:
    """A ClassText from what `asdict` and JSON made of one."""
    return ClassText(**{name: _as_tuples(value) for name, value in values.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _model_file(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / "model.safetensors"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.exists():
        raise UserError(f"no model at {path}: name a run folder that `xrvlm adapt` has finished")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["xrvlm"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}    # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a model of xrvlm ({error}): adapt again with force=true") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has format {about.get('format')}, this version reads {FORMAT}: install the version "
                        "of xrvlm that wrote it, or adapt again")
    return about, tensors


def _load_tower(path: Path, backbone: dict[str, Any], options: dict[str, Any]) -> FrozenCLIP:
    if backbone["loader"] is None:
        raise UserError(f"{path} was adapted on {backbone['name']}, a tower made in memory: pass it as `clip`")
    module, _, name = backbone["loader"]["target"].rpartition(".")
    if module not in ("xrvlm.backbones", "xrvlm.demo") or not name.startswith("load_"):    # a file may come from anyone
        raise UserError(f"{path} names {backbone['loader']['target']} as the loader of its tower, which is none of "
                        "xrvlm's: do not use this file, or pass the tower as `clip`")
    return getattr(importlib.import_module(module), name)(**backbone["loader"]["arguments"], **options)


def class_order(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where each of the classes `wanted` stands in `known`; UserError that names those that do not."""
    missing = [name for name in wanted if name not in known]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise UserError(f"{len(missing)} of {len(wanted)} classes are unknown to this model ({shown}); it knows "
                        f"{len(known)}: {', '.join(known[:5])} ...; evaluate on a data set of those, or adapt again")
    return [list(known).index(name) for name in wanted]


load = Classifier.load
