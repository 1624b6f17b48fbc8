"""CLIP and SigLIP models of Hugging Face transformers as a FrozenCLIP."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from xrvlm.backbones.base import (
    OFFLINE,
    DeviceName,
    FrozenCLIP,
    ImageTransform,
    Interpolation,
    PrecisionName,
)
from xrvlm.backbones.library_text_encoder import LibraryTextEncoder
from xrvlm.backbones.text_encoder import TextPath, Tokens
from xrvlm.backbones.tower import Components, ImageEncoder, Reading, Tower, adjusted, at_each_position, captured
from xrvlm.errors import UserError, check_has, fits, option, typed
from xrvlm.files import user_path

log = logging.getLogger(__name__)
KINDS = ("clip", "siglip")               # fixed-size SigLIP 2 checkpoints are of kind siglip too
FLAGS = frozenset({"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"})    # those read here
INTERPOLATION: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}    # by Pillow's numbers


@typed
def load_hf(model: str | Path, *, image_size: int | None = None, resize_to: int | None = None,
            interpolation: Interpolation | None = None, text: TextPath = "fast", text_memory_gb: float | None = None,
            device: DeviceName = "auto", precision: PrecisionName = "auto") -> FrozenCLIP:
    """Load a CLIP or SigLIP model of the Hugging Face hub, or of a local folder in its format, and freeze it.

    Args:
        model: `owner/name` on the hub, or a folder.
        image_size: pixels; None: the checkpoint's. For another size the position embedding is interpolated.
        resize_to: pixels of the shorter side before the centre crop; None: as in the checkpoint's transform.
        interpolation: `bicubic` or `bilinear`, for training crops too; None: the checkpoint's.
        text: `fast` cuts CLIP's prompts to the longest, `plain` computes the full window.
        text_memory_gb: see `wrap_openclip`.

    Raises:
        UserError: the model cannot be downloaded or read, is of another kind, or its weights are incomplete.
    """
    model = str(model)
    options = {"model": model, "image_size": image_size, "resize_to": resize_to, "interpolation": interpolation}
    source = folder_or_name(model, "backbone.model")
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        _check_kind(model, kind)
        network, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        tokenizer, processor = AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:    # the hub, JSON, safetensors and the tokenizers raise various types
        reason = shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise UserError(f"cannot load {model} with transformers: {reason}; check the name and the network, use "
                        f"{OFFLINE}, or pass a folder with config.json, weights, tokenizer and "
                        "preprocessor_config.json") from error
    if missing := sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]):
        raise UserError(f"{model} lacks {len(missing)} of its weights ({', '.join(missing[:3])} ...), which would stay "
                        "random; download a complete checkpoint")
    return wrap_hf(network, tokenizer, name=model, transform=_transform(model, processor), image_size=image_size,
                   resize_to=resize_to, interpolation=interpolation, text=text, text_memory_gb=text_memory_gb,
                   device=device, precision=precision,
                   loader={"name": "hf", "options": options})


@typed
def wrap_hf(model: Any, tokenizer: Any, *, name: str, transform: ImageTransform | None = None,
            image_size: int | None = None, resize_to: int | None = None, interpolation: Interpolation | None = None,
            text: TextPath = "fast", text_memory_gb: float | None = None,
            device: DeviceName = "auto", precision: PrecisionName = "auto",
            loader: Mapping[str, Any] | None = None) -> FrozenCLIP:
    """Freeze a CLIPModel or SiglipModel in memory. The model itself is moved and converted, not a copy.

    `transform=None`: the usual one of its kind. `name`, `loader`: as in `wrap_openclip`. The rest: as in `load_hf`.
    """
    check_has("model", model, "a CLIPModel or SiglipModel of transformers", "config", "text_model", "vision_model")
    check_has("tokenizer", tokenizer, "a tokenizer of transformers", "get_vocab", "encode")
    _check_kind(name, model.config.model_type)
    transform = _resized(name, model.config.vision_config.patch_size, transform or _usual_transform(model), image_size)
    transform, adjustment = adjusted(transform, resize_to, interpolation)
    interpolates = transform.image_size != model.config.vision_config.image_size
    clip = model.config.model_type == "clip"
    image = HFImage(model, interpolates)
    # SigLIP is not causal and is read at the last position, so it needs the full window
    shortens = clip and text == "fast"
    text_encoder = LibraryTextEncoder(partial(_text_features, model), model.text_model.embeddings.token_embedding,
                                      shortens=shortens, memory_gb=text_memory_gb)
    log.debug("text side: plain, transformers' encoder over %s",
              "the length of the longest prompt" if shortens else "the full window")
    # the classes of some tokenizers, such as Gemma's for SigLIP 2, leave this to whoever calls them
    lowers = bool(getattr(tokenizer, "init_kwargs", {}).get("do_lower_case"))
    tokens = Tokens.of_hf(tokenizer, window=model.config.text_config.max_position_embeddings,
                          clean=str.lower if lowers else str)
    if clip:
        _check_end(name, model, tokens.end, max(tokenizer.get_vocab().values()))
    components = Components(
        image=image, text=text_encoder, tokens=tokens, word_states=partial(_word_states, model),
        transform=transform, adjustment=adjustment, embed_dim=image.embed_dim,
        logit_scale=model.logit_scale.detach().float().exp(),
        logit_bias=torch.zeros(()) if clip else model.logit_bias.detach(),
        activation=f"{model.config.vision_config.hidden_act} {model.config.text_config.hidden_act}"
                   f"{' lower-cased' if lowers and _keeps_capitals(tokenizer) else ''}")
    return Tower(model, components, name=name, device=device, precision=precision, loader=loader)


class HFImage(ImageEncoder):
    """CLIP is read at the class token, SigLIP by an attention pool (MAP head) over all positions."""

    def __init__(self, model: Any, interpolates: bool):
        self.model, self.interpolates = model, interpolates
        self.width = model.config.vision_config.hidden_size
        self.pools = model.config.model_type == "siglip"
        self.embed_dim = self.width if self.pools else model.visual_projection.out_features

    def pooled(self, images: Tensor) -> Tensor:
        return self._encode(images).pooler_output

    def read(self, images: Tensor) -> Reading:
        with captured(self.model.vision_model.encoder.layers[-2], "input") as entered:
            output = self._encode(images)
        return Reading(output.pooler_output, output.last_hidden_state, entered[0])

    def project(self, states: Tensor) -> Tensor:
        if self.pools:    # these states follow the final norm, CLIP's precede it
            return at_each_position(self.model.vision_model.head, states)
        return self.model.visual_projection(self.model.vision_model.post_layernorm(states))

    def last_linear(self) -> nn.Linear | None:
        return None if self.pools else self.model.visual_projection

    def _encode(self, images: Tensor) -> Any:
        return self.model.get_image_features(images, interpolate_pos_encoding=self.interpolates)


def _text_features(model: Any, tokens: Tensor) -> Tensor:
    # no attention mask: a causal tower ignores what follows [EOS], and SigLIP was trained with visible padding
    return model.get_text_features(tokens).pooler_output


def _word_states(model: Any, tokens: Tensor) -> Tensor:
    """(n, t) -> (n, t, d)"""
    states = model.text_model(tokens).last_hidden_state
    return model.text_projection(states) if model.config.model_type == "clip" else model.text_model.head(states)


def _keeps_capitals(tokenizer: Any) -> bool:
    return tokenizer("A Photo of THE Bird").input_ids != tokenizer("a photo of the bird").input_ids


def _check_end(name: str, model: Any, end: int, largest: int) -> None:
    """UserError where transformers reads a text at another token than at its last, `end`."""
    reads = model.text_model.eos_token_id
    if reads == 2 and end != largest:        # 2 is of old checkpoints, in which the end is the largest id
        raise UserError(f"{name} has eos_token_id=2, for which transformers reads a text at its largest id, but "
                        f"its tokenizer ends a text with {end} and has ids up to {largest}; load the checkpoint with "
                        "open_clip, or use the tokenizer that belongs to it")
    if reads not in (2, end):
        raise UserError(f"{name} reads texts at token {reads}, its tokenizer ends them with {end}; use the tokenizer "
                        "that belongs to the checkpoint")


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"{name} is a model of type {kind!r}; supported of transformers: {', '.join(KINDS)}; "
                        "open_clip has other kinds")


def _usual_transform(model: Any) -> ImageTransform:
    size = model.config.vision_config.image_size
    if model.config.model_type == "siglip":
        return ImageTransform(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="squash")
    return ImageTransform(size, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _transform(name: str, processor: Any) -> ImageTransform:
    """The image processor's options as an ImageTransform; UserError if that cannot represent them."""
    size, crops = dict(processor.size), bool(getattr(processor, "do_center_crop", False))
    crop = dict(processor.crop_size) if crops else size
    square = crop.get("height") == crop.get("width") is not None and (not crops or list(size) == ["shortest_edge"])
    unread = {flag: value for flag, value in processor.to_dict().items()
              if value and (flag.startswith("do_") or flag in ("crop_pct", "rescale_offset")) and flag not in FLAGS}
    unread |= {} if processor.do_resize else {"do_resize": False}
    if not square or processor.resample not in INTERPOLATION or unread:
        raise UserError(f"{name} prepares images with size={size}, crop={crop}, resample={processor.resample}"
                        f"{''.join(f', {flag}={value}' for flag, value in unread.items())}, which "
                        "is not supported; load it yourself and pass a `transform` to xrvlm.backbones.wrap_hf")
    mean, std = mean_and_std(name, processor)
    return ImageTransform(crop["height"], mean, std, interpolation=INTERPOLATION[processor.resample],
                          resize="shortest" if crops else "squash", resize_to=size["shortest_edge"] if crops else None)


def folder_or_name(model: str, named: str) -> str:
    """What transformers loads `model` from. UserError, which names the option `named`, for a folder that is not there.

    `owner/name` may be either; what is absolute, or begins with `.` or `~`, is a folder.
    """
    folder = user_path(model) if model.strip() else None
    if folder is not None and folder.is_dir():
        return str(folder)
    if folder is None or folder.is_absolute() or model[0] == ".":
        raise UserError(f"there is no folder {model!r}; {option(named)} is a folder of a model or its name on the hub")
    return model


def mean_and_std(name: str, processor: Any) -> tuple[Any, Any]:
    """For pixels in 0..1, whatever the processor multiplies those in 0..255 with; UserError for what are no numbers."""
    given = {"rescale_factor": (processor.rescale_factor, float)} if processor.do_rescale else {}
    if processor.do_normalize:
        given |= {word: (getattr(processor, word), tuple[float, float, float]) for word in ("image_mean", "image_std")}
    if wrong := [f"{word}={value}" for word, (value, kind) in given.items() if not fits(value, kind) or not value]:
        raise UserError(f"{name} prepares images with {', '.join(wrong)}, which is not supported; load it yourself and "
                        "pass a `transform` to xrvlm.backbones.wrap_hf")
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if abs(scale - 1) < 1e-6:                # 0.00392156862745098 of a file is 1 / 255
        scale = 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _resized(name: str, patch: int, transform: ImageTransform, image_size: int | None) -> ImageTransform:
    if image_size is None or image_size == transform.image_size:
        return transform
    if image_size < 1 or image_size % patch:
        raise UserError(f"{option('backbone.image_size', image_size)} does not fit {name}: use a multiple of {patch}")
    return transform.scaled(image_size)
