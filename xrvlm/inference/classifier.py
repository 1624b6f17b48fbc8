"""An adapted tower that labels images, and its file: the learned tensors and all that is needed to use them again."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.backbones.registry import load_tower
from xrvlm.backbones.tower import choose_precision
from xrvlm.errors import UserError, check_options, fits, option, plain_text, typed, unknown
from xrvlm.evaluation.calibration import Scaling
from xrvlm.files import parsed, user_path, write_atomically
from xrvlm.inference.calibration import Calibration, CalibrationHeader
from xrvlm.methods.base import Method
from xrvlm.text.class_text import ClassText
from xrvlm.views import evaluation_view, read_image

OTHER_FORMATS = (".bin", ".ckpt", ".onnx", ".pkl", ".pt", ".pth")
LARGEST = 1e12                           # weights beyond this are no result of training
FORMAT = 2                               # 1: before methods and towers were saved by registry name
MethodFactory = Callable[[FrozenCLIP, ClassText], Method]    # a Method class, or a partial of one with its options


@dataclass(frozen=True)
class BackboneHeader:
    name: str
    fingerprint: str
    image_size: int
    loader: Mapping[str, Any] | None     # {"name": of a loader, "options": ...}; None: a tower made in memory


@dataclass(frozen=True)
class MethodHeader:
    """A method by its registry name, with all its options, those at their defaults too."""

    name: str                            # "xr_vlm"; of a class that is not registered, its dotted path
    options: Mapping[str, Any]
    revision: int = 1

    @classmethod
    def of(cls, factory: MethodFactory) -> "MethodHeader":
        """UserError where `factory` is neither a subclass of Method nor a partial of one."""
        method = factory.func if isinstance(factory, partial) else factory
        given = factory.keywords if isinstance(factory, partial) else {}
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise UserError("a method is the name of a registered one, a subclass of xrvlm.Method or a "
                            f"functools.partial of one, found {factory!r}")
        if lacks := ", ".join(sorted(method.__abstractmethods__)):
            raise UserError(f"{method.__name__} lacks {lacks}: every method has it, see docs/guides/own_method.md")
        check_options(method, given, "method", f"option of {method.__name__}")
        return cls(method.registered_name(), defaults_of(method) | given, method.revision)

    def changed(self, method: type[Method]) -> dict[str, Any]:
        """The options that are not the defaults of `method`: a new option at its default changes no identity."""
        defaults = defaults_of(method)
        return {name: value for name, value in self.options.items() if name not in defaults or value != defaults[name]}


@dataclass(frozen=True)
class ModelHeader:
    """What a model's file says of the model, beside its tensors."""

    backbone: BackboneHeader
    method: MethodHeader
    classes: ClassText
    split: str = ""                      # fingerprint of the split that the model was trained on
    precision: str | None = None         # of the tower in the run, where it was not the default of its device
    metrics: Mapping[str, float] = field(default_factory=dict)
    calibration: CalibrationHeader | None = None
    hierarchy: Mapping[str, str] | None = None       # {node: the one above it}, see evaluation/hierarchy.py
    joint: bool = False                  # whether its topmost nodes are domains, see evaluation/domains.py

    @classmethod
    def of(cls, clip: FrozenCLIP, factory: MethodFactory, classes: ClassText, split: str = "",
           hierarchy: Mapping[str, str] | None = None, joint: bool = False) -> "ModelHeader":
        precision = None if clip.precision == choose_precision("auto", clip.device) else clip.precision
        backbone = BackboneHeader(clip.name, clip.fingerprint, clip.transform.image_size, clip.loader)
        return cls(backbone, MethodHeader.of(factory), classes, split, precision, hierarchy=hierarchy, joint=joint)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "ModelHeader":
        """Also of format 1. UserError for another format, ValueError and its like for what is no header."""
        values = plain_text(parsed(text))
        found = values.pop("format", None)
        if found not in (1, FORMAT):
            raise UserError(f"{path} has format {found}, this version reads 1 and {FORMAT}: install the version of "
                            "xrvlm that wrote it, or adapt again")
        if found == 1:
            from xrvlm.inference.former import of_format_1
            values = of_format_1(values, path)
        calibration = values.get("calibration")
        classes = ClassText(**{name: _as_tuples(value) for name, value in values["classes"].items()})
        return _checked(cls(_checked(BackboneHeader(**values["backbone"])), _checked(MethodHeader(**values["method"])),
                            _checked(classes), values.get("split", ""), values.get("precision"),
                            values.get("metrics", {}), calibration and _calibration(calibration, len(classes.names)),
                            values.get("hierarchy"), values.get("joint", False)))


class Classifier:
    """A frozen tower with an adapted method; the class features are computed once."""

    @typed
    def __init__(self, clip: FrozenCLIP, method: Method, header: ModelHeader, calibration: Calibration | None = None):
        self.clip, self.method, self.header, self.calibration = clip, method.eval(), header, calibration
        self.names: tuple[str, ...] = header.classes.names
        if header.calibration is not None:
            method.scaling = header.calibration.scaling
        with torch.no_grad():
            self.class_features = method.class_features(clip)

    def from_features(self, x: Features) -> Tensor:
        """(b, c) probabilities on the CPU. UserError where the model's numbers are so large that they are none."""
        return self.checked(self.method.class_probabilities(x, self.class_features).cpu())

    def checked(self, chances: Tensor) -> Tensor:
        if not chances.isfinite().all():
            raise UserError(f"the model {self.header.method.name} gives numbers that are not finite: {_again()}")
        return chances

    def probabilities(self, images: Tensor) -> Tensor:
        """(b, c) on the CPU, of `images` (b, 3, s, s) as the tower's evaluation transform makes them."""
        side = self.clip.transform.image_size
        if not isinstance(images, Tensor) or images.shape[1:] != (3, side, side) or not images.is_floating_point():
            raise UserError(f"images must be a tensor of floats (b, 3, {side}, {side}), normalised for the tower; "
                            "`predict` takes files and PIL images")
        return self.from_features(self.clip.encode_image(images.to(self.clip.device), self.method.needs))

    @typed
    def predict(self, image: Image.Image | str | Path, topk: int = 5) -> list[tuple[str, float]]:
        """The `topk` most probable classes of one image (a PIL image or a file) with their probabilities."""
        if topk < 1:
            raise UserError(f"topk must be at least 1, found {topk}")
        chances = self.probabilities(evaluation_view(read_image(image), self.clip.transform)[None])[0]       # (c,)
        first = chances.argsort(descending=True, stable=True)[:topk]       # of equal ones the first class, as `predict`
        return [(self.names[index], chances[index].item()) for index in first.tolist()]

    def for_classes(self, classes: ClassText) -> "Classifier":
        """This model, as trained, for other classes (`class_text` makes them); it can be saved and loaded as any.

        Raises UserError where the method is bound to the classes that it was trained on.
        """
        own = self.header.calibration
        header = replace(self.header, classes=classes, metrics={}, hierarchy=None, joint=False)
        if own is not None:              # of its own classes, but the temperature
            header = replace(header, calibration=replace(own, scaling=Scaling(own.scaling.temperature)))
        return Classifier(self.clip, self.method.for_classes(self.clip, classes), header)

    @typed
    def save(self, path: Path | str) -> Path:
        """Write `path`, a file ending in .safetensors, or a folder's model.safetensors. UserError for other formats."""
        if not str(path).strip() or Path(path).suffix in OTHER_FORMATS or str(path).startswith("hf:"):
            raise UserError(f"{path} must end in .safetensors, or be a folder; `xrvlm.export` writes .onnx, and "
                            "`xrvlm.push` sends a run to the hub")
        path = model_file(path)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.method.state_dict().items()}
        tensors |= {} if self.calibration is None else self.calibration.tensors
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"xrvlm": self.header.to_json()}))
        return path

    @classmethod
    @typed
    def load(cls, path: Path | str, clip: FrozenCLIP | None = None, **tower_options: Any) -> "Classifier":
        """Read what `save` wrote, or fetch what `xrvlm.push` sent: "hf:owner/name".

        Without `clip` the tower is loaded as the file's header says; `tower_options` are device and precision, of which
        "auto" means the precision that the run was given.

        Raises:
            UserError: the file is missing or damaged, the tower is another one than the model was adapted on, or the
                method's class or options are not what they were.
        """
        for name in set(tower_options) - {"device", "precision"}:
            raise unknown("argument", name, ("path", "clip", "device", "precision"))
        path = model_file(path)
        header, tensors, calibration = read_model(path)
        try:
            return cls._restored(path, header, tensors, calibration, clip or _load_tower(path, header, tower_options))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged or was changed by hand ({type(error).__name__}: {error}): {_again()}"
                            ) from error

    @classmethod
    def _restored(cls, path: Path, header: ModelHeader, tensors: dict[str, Tensor], calibration: Calibration | None,
                  clip: FrozenCLIP) -> "Classifier":
        before = header.backbone
        if clip.fingerprint != before.fingerprint:
            named = (before.name, before.image_size) == (clip.name, clip.transform.image_size)
            what = "the weights, the transform or the tokens of this one are others than they were then (fingerprint " \
                   f"{before.fingerprint[:8]}, now {clip.fingerprint[:8]})" if named else \
                   f"not on {clip.name} at {clip.transform.image_size}"
            raise UserError(f"{path} was adapted on {before.name} at {before.image_size} pixels, {what}: load that "
                            "tower, with the same transform, or adapt again")
        method = build_method(header, clip, path)
        broken = [name for name, value in tensors.items()
                  if value.is_floating_point() and not (value.abs() < LARGEST).all()]
        if broken:
            raise UserError(f"{path} holds numbers that are not finite or beyond {LARGEST:g} ({', '.join(broken)}): "
                            f"{_again()}")
        try:
            method.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} does not fit its method {header.method.name}: {reason}; use the version of the "
                            f"method that it was saved with, or {_again()}") from error
        return cls(clip, method.to(clip.device), header, calibration)


def defaults_of(method: type) -> dict[str, Any]:
    """The options of a method with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(method).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def build_method(header: ModelHeader, clip: FrozenCLIP, path: Path) -> Method:
    """The method that the header names, freshly allocated; UserError that says `path` where it cannot be built."""
    from xrvlm.methods.registry import class_called
    method = class_called(header.method.name)
    known = inspect.signature(method).parameters
    gone = sorted(header.method.options.keys() - known.keys())
    if gone and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise UserError(f"{path} has options that {header.method.name} does not know ({', '.join(gone)}), it was "
                        f"written by another version of xrvlm: install that version, or {_again()}")
    return method(clip, header.classes, **method.options_of(header.method.revision, header.method.options))


def _again() -> str:
    return f"adapt again with {option('force', True)}"


def _calibration(values: dict[str, Any], classes: int) -> CalibrationHeader:
    scaling = _checked(Scaling(**{name: _as_tuples(value) for name, value in values["scaling"].items()}))
    if not 0 < scaling.temperature < LARGEST or {len(scaling.weight), len(scaling.bias)} not in ({0}, {classes}):
        raise ValueError("a scaling that fits no class")
    return _checked(CalibrationHeader(**values | {"scaling": scaling}))


def _checked(header: Any) -> Any:
    """`header`, a dataclass; ValueError where a field has another type, or where the texts of classes do not fit."""
    hints = get_type_hints(type(header))
    if wrong := [each.name for each in fields(header) if not fits(getattr(header, each.name), hints[each.name])]:
        raise ValueError(f"{', '.join(wrong)}: of the wrong type")
    if isinstance(header, ClassText):
        rows = [header.prompts, *([] if header.parts is None else [header.parts])]
        if not header.names or {len(row) for row in rows} != {len(header.names)}:
            raise ValueError("another number of texts than of classes")
        if len({name for name in header.names if name.strip()}) < len(header.names):
            raise ValueError("two classes of one name, or one without a name")
    return header


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def model_file(path: Path | str) -> Path:
    """The file of a model: of a folder, and of a model on the hub, which is fetched."""
    if str(path).startswith("hf:"):
        from xrvlm.inference.hub import fetched
        path = fetched(path)
    path = user_path(path)
    return path if path.suffix == ".safetensors" else path / "model.safetensors"


def read_model(path: Path) -> tuple[ModelHeader, dict[str, Tensor], Calibration | None]:
    if not path.is_file():
        raise UserError(f"no model at {path}: name the folder of a run that `xrvlm adapt` has finished, or latest")
    try:
        with safe_open(path, framework="pt") as file:
            header = ModelHeader.from_json((file.metadata() or {})["xrvlm"], path)
            tensors = {key: file.get_tensor(key) for key in file.keys()}    # noqa: SIM118 (not a dict)
        return header, tensors, header.calibration and Calibration.read(header.calibration, tensors)
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a model of xrvlm ({type(error).__name__}: {error}): {_again()}"
                        ) from error


def _load_tower(path: Path, header: ModelHeader, options: dict[str, Any]) -> FrozenCLIP:
    if (loader := header.backbone.loader) is None:
        raise UserError(f"{path} was adapted on {header.backbone.name}, a tower made in memory: pass it as `clip`")
    if options.get("precision", "auto") == "auto":
        options = options | {"precision": header.precision or "auto"}
    return load_tower(loader, **options)


load = Classifier.load
