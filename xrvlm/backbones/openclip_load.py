"""Load an open_clip model by name, with published weights or a file, and check for errors that would be silent."""

import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, TypeVar

import open_clip
import torch
import torch.nn.functional as F
from open_clip import IMAGENET_CLASSNAMES
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from xrvlm.backbones.base import OFFLINE, DeviceName, FrozenCLIP, Interpolation, PrecisionName
from xrvlm.backbones.openclip import wrap_openclip
from xrvlm.backbones.text_encoder import TextPath
from xrvlm.errors import UserError, option, typed, unknown

log = logging.getLogger(__name__)
Result = TypeVar("Result")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")
BRINGS_WEIGHTS = ("hf-hub:", "local-dir:")
RESNET_STRIDE = 32


@typed
def load_openclip(model: str, pretrained: str | Path | None = None, *, image_size: int | None = None,
                  quick_gelu: bool | None = None, resize_to: int | None = None,
                  interpolation: Interpolation | None = None, text: TextPath = "fast",
                  text_memory_gb: float | None = None, allow_random: bool = False, device: DeviceName = "auto",
                  precision: PrecisionName = "auto") -> FrozenCLIP:
    """Load a model of open_clip and freeze it.

    Args:
        model: a name of `open_clip.list_models()`; or `hf-hub:owner/name` or `local-dir:/folder`, with their weights.
        pretrained: a tag of `open_clip.list_pretrained()`, or a weights file.
        image_size: pixels; None: the checkpoint's. For another size the position embedding is interpolated.
        quick_gelu: whether the activation is QuickGELU; None: as the published weights need, else the model's default.
        resize_to: pixels of the shorter side before the centre crop; None: as in the checkpoint's transform.
        interpolation: `bicubic` or `bilinear`, for training crops too; None: the checkpoint's.
        text, text_memory_gb: how text is computed; see `wrap_openclip`.
        allow_random: with `pretrained=None` use random weights (for tests and benchmarks).

    Raises:
        UserError: the name is unknown, or the weights cannot be downloaded, are damaged or do not fit.
    """
    pretrained = None if pretrained is None else str(pretrained)
    options = {"model": model, "pretrained": pretrained, "image_size": image_size, "quick_gelu": quick_gelu,
               "resize_to": resize_to, "interpolation": interpolation, "allow_random": allow_random}
    model = _known_model(model)
    config: Any = _fetched(lambda: open_clip.get_model_config(model), f"the configuration of {model}")
    _check_image_size(model, config["vision_cfg"], image_size)
    known = quick_gelu is not None or bool(config.get("quick_gelu"))
    creation = _weights(model, pretrained, allow_random, activation_known=known)
    if quick_gelu is not None:
        creation["quick_gelu"] = quick_gelu
    network = _create(model, creation, image_size, resnet=_is_resnet(config["vision_cfg"]))
    tokenizer = _fetched(lambda: open_clip.get_tokenizer(model), f"the tokenizer of {model}")
    suffix = "-quickgelu" if creation.get("quick_gelu") and "quickgelu" not in model else ""
    weights = f"/{Path(pretrained).stem}" if pretrained else "" if model.startswith(BRINGS_WEIGHTS) else "/random"
    return wrap_openclip(network, tokenizer, name=f"{model}{suffix}{weights}", device=device, precision=precision,
                         resize_to=resize_to, interpolation=interpolation, text=text, text_memory_gb=text_memory_gb,
                         loader={"name": "openclip", "options": options})


def openclip_of_trunk(trunk: str, trunk_state: Mapping[str, Tensor] | None, projection: Tensor, bias: Tensor, *,
                      image_size: int, text: Mapping[str, Any],
                      text_state: Mapping[str, Tensor] | None = None) -> Any:
    """A CLIP of open_clip from any image trunk of timm and a text tower: `wrap_openclip` makes a frozen tower of it.

    Args:
        trunk: a name of `timm.list_models()`.
        trunk_state: its weights by timm's names, without a classifier; None: timm's own, from the hub.
        projection: (e, d) of the trunk's pooled feature into the joint space. `bias`: (d,) added after it.
        image_size: pixels.
        text: the text tower, as `text_cfg` of an open_clip configuration: `context_length`, `vocab_size`, `width`,
            `heads`, `layers`.
        text_state: the weights of the text tower and the `logit_scale`, by open_clip's names (`text.transformer...`);
            None: random.

    Raises:
        UserError: timm has no such trunk, its weights cannot be fetched, or weights do not fit.
    """
    vision = {"timm_model_name": trunk, "timm_model_pretrained": trunk_state is None, "timm_pool": "avg",
              "timm_proj": "linear", "timm_proj_bias": True, "image_size": image_size}
    model: Any = _fetched(lambda: CustomTextCLIP(projection.shape[1], CLIPVisionCfg(**vision), CLIPTextCfg(**text)),
                          f"the trunk {trunk} of timm")
    width = getattr(model.visual.trunk, "head_hidden_size", model.visual.trunk.num_features)
    if len(projection) != width:
        raise UserError(f"the feature of {trunk} has {width} numbers, the projection reads {len(projection)}; pass one "
                        f"of shape ({width}, d)")
    # open_clip's own reads the channels of the last map, which MobileNet changes once more
    model.visual.head.proj = nn.Linear(len(projection), projection.shape[1])
    own = {"visual.head.proj.weight": projection.T, "visual.head.proj.bias": bias} | dict(text_state or {})
    own |= {f"visual.trunk.{name}": value for name, value in (trunk_state or {}).items()}
    try:
        loaded = model.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise _unusable(trunk, "what was passed", error) from error
    missing = [name for name in loaded.missing_keys if (name.startswith("visual.") and trunk_state is not None)
               or (not name.startswith("visual.") and text_state is not None)]
    if missing or loaded.unexpected_keys:
        raise UserError(f"the weights do not fit {trunk}: missing {_some(missing)}; unknown "
                        f"{_some(loaded.unexpected_keys)}; pass the state of this trunk and of this text tower")
    return model.eval()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3) if names else "none"


def _known_model(model: str) -> str:
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"no open_clip_config.json in {folder}; pass a folder that open_clip can load")
        return f"local-dir:{folder}"
    if model.startswith("hf-hub:"):
        return model
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise unknown("model of open_clip", model, open_clip.list_models(), "or hf-hub:owner/name, local-dir:/folder")
    return name


def _weights(model: str, pretrained: str | None, allow_random: bool, *, activation_known: bool) -> dict[str, Any]:
    """The arguments of `open_clip.create_model` that select the weights and their activation and preprocessing."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if model.startswith(BRINGS_WEIGHTS):
        if pretrained is not None:
            raise UserError(f"{model} brings its own weights; leave out {option('backbone.pretrained', pretrained)}")
        return {"require_pretrained": True}
    if pretrained is None:
        if not allow_random:
            raise UserError(f"no weights for {model}: set {option('backbone.pretrained')} to one of {', '.join(tags)}, "
                            "or to a weights file")
        return {"pretrained_text": False, "force_preprocess_cfg": _usual_preprocessing(model, tags)}
    if pretrained not in tags and (pretrained.endswith(WEIGHT_FILES) or any(mark in pretrained for mark in "/\\~")):
        return _local_weights(model, Path(pretrained).expanduser(), tags, activation_known)
    if pretrained not in tags:
        raise unknown(f"weights of {model}", pretrained, tags, "or pass the path of a weights file")
    published = get_pretrained_cfg(model, pretrained)
    _fetched(lambda: open_clip.download_pretrained(published), f"the weights {pretrained} of {model}")
    if published.get("quick_gelu") and not activation_known:
        log.info("%s of %s was trained with QuickGELU, which is used", pretrained, model)
        return {"pretrained": pretrained, "quick_gelu": True}
    return {"pretrained": pretrained}


def _local_weights(model: str, path: Path, tags: list[str], activation_known: bool) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no weights file at {path}; check the path, or use a published tag: {', '.join(tags)}")
    options = {"pretrained": str(path), "force_preprocess_cfg": _usual_preprocessing(model, tags)}
    if _is_torchscript(path):    # only OpenAI published such archives
        return options | {"quick_gelu": True}
    if not activation_known and f"{model}-quickgelu" in open_clip.list_models():
        log.warning("%s is loaded without QuickGELU; weights of OpenAI, MetaCLIP or DFN need %s",
                    path.name, option("backbone.model", f"{model}-quickgelu"))
    return options


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unscripted(path: str, folder: str) -> str:
    """Copy the tensors of a TorchScript archive to safetensors: open_clip would unpickle the archive unchecked."""
    state = torch.jit.load(path, map_location="cpu").state_dict()
    weights = {name: tensor.contiguous() for name, tensor in state.items()
               if name not in ("input_resolution", "context_length", "vocab_size")}
    save_file(weights, f"{folder}/weights.safetensors")
    return f"{folder}/weights.safetensors"


def _usual_preprocessing(model: str, tags: list[str]) -> dict[str, Any]:
    """The preprocessing of most published weights of the model (SigLIP: mean 0.5, squashed): a file has none."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [get_pretrained_cfg(model, tag) for tag in tags]
    usual = Counter(tuple(config.get(key) for key in keys) for config in known).most_common(1)
    return dict(zip(keys, usual[0][0], strict=True)) if usual else {}


def _create(model: str, options: dict[str, Any], image_size: int | None, *, resnet: bool) -> Any:
    source = options.get("pretrained", "its own weights")
    try:
        with _quiet(), TemporaryDirectory() as scratch:
            if _is_torchscript(source):
                options = options | {"pretrained": _unscripted(source, scratch)}
            # open_clip interpolates the position embedding of a ViT on loading, but not that of a ResNet's pool
            network: Any = open_clip.create_model(model, force_image_size=None if resnet else image_size, **options)
    except Exception as error:    # pickle, zip, safetensors, the hub and load_state_dict raise various types
        raise _unusable(model, source, error) from error
    if resnet and image_size is not None:
        _resize_attention_pool(network.visual, image_size)
    return network


def _resize_attention_pool(visual: Any, image_size: int) -> None:
    pool, cells = visual.attnpool, image_size // RESNET_STRIDE
    mean, grid = pool.positional_embedding.detach().split([1, len(pool.positional_embedding) - 1])
    before = round(len(grid) ** 0.5)
    grid = grid.T.unflatten(1, (before, before))[None]                                 # (1, e, before, before)
    grid = F.interpolate(grid, size=(cells, cells), mode="bicubic", antialias=True)    # as open_clip does for ViTs
    pool.positional_embedding = nn.Parameter(torch.cat([mean, grid[0].flatten(1).T]))  # (1 + p, e)
    visual.image_size = image_size
    visual.preprocess_cfg["size"] = image_size


def _is_resnet(vision: dict[str, Any]) -> bool:
    return isinstance(vision.get("layers"), list | tuple) and "timm_model_name" not in vision


def _check_image_size(model: str, vision: dict[str, Any], image_size: int | None) -> None:
    step = RESNET_STRIDE if _is_resnet(vision) else vision.get("patch_size", 1)
    if image_size is not None and (image_size < 1 or image_size % step):
        raise UserError(f"{option('backbone.image_size', image_size)} does not fit {model}: use a multiple of {step}")


def _unusable(model: str, source: str, error: Exception) -> UserError:
    lines = [shorten(line, 160, placeholder=" ...") for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    if "state_dict" in lines[0] and len(lines) > 1:
        lines = lines[1:]
    reason = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more differences" if len(lines) > 3 else "")
    if "state_dict" in str(error) or isinstance(error, AssertionError):
        return UserError(f"{source} does not fit {model}: {reason}; choose the model that the weights were trained as")
    return UserError(f"cannot load {model} with {source}: {reason}; the file may be damaged or not a weights file: "
                     f"download it again, or pass {option('backbone.pretrained', '/path/to/weights')}")


def _fetched(fetch: Callable[[], Result], what: str) -> Result:
    try:
        with _quiet():
            return fetch()
    except Exception as error:    # each network library raises other types
        reason = shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise UserError(f"cannot fetch {what}: {reason}; check the network, use {OFFLINE}, or local files: "
                        f"{option('backbone.pretrained', '/path/to/weights')}, or "
                        f"{option('backbone.model', 'local-dir:/folder')} (with open_clip_config.json, weights and "
                        "tokenizer files)") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what open_clip logs on the root logger, and warnings about what this module handles."""
    def not_of_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    logging.root.addFilter(not_of_open_clip)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            warnings.filterwarnings("ignore", message="`torch.jit.load` is")
            yield
    finally:
        logging.root.removeFilter(not_of_open_clip)


def imagenet_classes() -> dict[str, str]:
    """ImageNet's 1,000 classes as {synset: name} in the order of the synsets, such as {"n01440764": "tench"}.

    The names are OpenAI's for CLIP, which give several points more accuracy than WordNet's. Two of them name two
    classes each (missile, sunglasses); those classes get the first WordNet name of their synset.
    """
    info = ImageNetInfo()
    synsets = info.label_names()
    seen = Counter(IMAGENET_CLASSNAMES)
    return {synset: name if seen[name] == 1 else info.label_name_to_description(synset).partition(",")[0]
            for synset, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
