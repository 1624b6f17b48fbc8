"""open_clip models as a FrozenCLIP: chooses image encoder, text encoder, tokenizer and transform."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, get_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from xrvlm.backbones.base import DeviceName, FrozenCLIP, ImageTransform, Interpolation, PrecisionName
from xrvlm.backbones.causal_text_encoder import CausalTextEncoder, projected
from xrvlm.backbones.library_text_encoder import LibraryTextEncoder
from xrvlm.backbones.openclip_image import Encode, image_side
from xrvlm.backbones.text_encoder import TextEncoder, TextPath, Tokens
from xrvlm.backbones.tower import (
    Components,
    ImageEncoder,
    Reading,
    Tower,
    adjusted,
    at_each_position,
    captured,
)
from xrvlm.errors import UserError, check_has, typed

log = logging.getLogger(__name__)


@typed
def wrap_openclip(model: Any, tokenizer: Any, *, name: str, transform: ImageTransform | None = None,
                  resize_to: int | None = None, interpolation: Interpolation | None = None,
                  text: TextPath = "fast", text_memory_gb: float | None = None,
                  device: DeviceName = "auto", precision: PrecisionName = "auto",
                  loader: Mapping[str, Any] | None = None) -> FrozenCLIP:
    """Freeze an open_clip model in memory. The model itself is moved and converted, not a copy.

    Args:
        tokenizer: what `open_clip.get_tokenizer` returns for the model.
        name: what runs and reports call the tower.
        transform: None: the transform that open_clip keeps with the model.
        resize_to: pixels of the shorter side before the centre crop; None: as in the checkpoint's transform.
        interpolation: `bicubic` or `bilinear`, for training crops too; None: the checkpoint's.
        text: `fast` computes only the necessary positions of a causal text tower; `plain` calls open_clip's encoder,
            which computes every position in every block. Features and gradients differ by rounding only.
        text_memory_gb: GiB for activations that the backward pass of the text tower needs; classes that do not fit
            are recomputed. None: 4 on a CPU, half of a GPU's memory.
        loader: how `registry.load_tower` loads this tower for a saved classifier; None if the user must pass it.

    Raises:
        UserError: the tokenizer or the image transform is not supported, or the device is not available.
    """
    check_has("model", model, "a model of open_clip", "visual", "encode_image", "encode_text", "logit_scale")
    chosen, adjustment = adjusted(transform or _transform(model), resize_to, interpolation)
    components = Components(
        image=image_encoder(model), text=_text_encoder(model, text, text_memory_gb), tokens=_tokens(tokenizer),
        word_states=partial(_word_states, model), transform=chosen, adjustment=adjustment, embed_dim=_embed_dim(model),
        logit_scale=_number(model.logit_scale).exp(),
        logit_bias=torch.zeros(()) if model.logit_bias is None else _number(model.logit_bias),
        activation=" ".join(sorted(_activations(model))))
    return Tower(model, components, name=name, device=device, precision=precision, loader=loader)


def _text_encoder(model: Any, path: TextPath, memory_gb: float | None) -> TextEncoder:
    text: Any = model if isinstance(model, CLIP) else model.text
    if path == "fast" and not isinstance(text, HFTextEncoder) and _is_plain_causal(text):
        log.debug("text side: fast, no padding, the common prefix once, the last block at [EOS] only")
        return CausalTextEncoder(text, memory_gb=memory_gb)
    log.debug("text side: plain, open_clip's encoder over the full window")
    embedding = text.transformer.get_input_embeddings() if isinstance(text, HFTextEncoder) else text.token_embedding
    return LibraryTextEncoder(partial(model.encode_text, normalize=False), embedding, memory_gb=memory_gb)


def _word_states(model: Any, tokens: Tensor) -> Tensor:
    """(n, t) -> (n, t, d)"""
    text: Any = model if isinstance(model, CLIP) else model.text
    if isinstance(text, HFTextEncoder):
        seen = (tokens != text.transformer.config.pad_token_id).long()
        return text.proj(text.transformer(input_ids=tokens, attention_mask=seen).last_hidden_state)
    with captured(text.transformer, "output") as states:
        model.encode_text(tokens)
    return projected(text, text.ln_final(states[0][:, :tokens.shape[1]]))      # CoCa appends a class token


def _is_plain_causal(text: Any) -> bool:
    pool, class_token = (text.text_pool_type, None) if isinstance(text, CLIP) else (text.pool_type, text.cls_emb)
    plain = all(isinstance(block.attn, nn.MultiheadAttention) for block in text.transformer.resblocks)
    return text.attn_mask is not None and class_token is None and pool in ("argmax", "eos") and plain


def _embed_dim(model: Any) -> int:
    if not isinstance(model, CLIP):
        return model.text.output_dim
    projection: Any = model.text_projection
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _number(value: Tensor) -> Tensor:
    return value.detach().float().reshape(())


def _activations(model: nn.Module) -> set[str]:
    """{"QuickGELU"}, {"GELU", "ReLU"} ..."""
    leaves = (module for module in model.modules() if not any(True for _ in module.children()))
    return {type(leaf).__name__ for leaf in leaves if "LU" in type(leaf).__name__}


def _tokens(tokenizer: Any) -> Tokens:
    if isinstance(tokenizer, SimpleTokenizer):
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return Tokens(lambda text: [start, *tokenizer.encode(text), end], window=_window(tokenizer), pad=0, end=end,
                      decode=tokenizer.decode, special=tokenizer.all_special_ids,
                      tokenizer="open_clip SimpleTokenizer")
    if isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode:
        return _hf_tokens(tokenizer)
    if isinstance(tokenizer, SigLipTokenizer):
        return Tokens.of_hf(tokenizer.tokenizer, window=_window(tokenizer),
                            clean=lambda text: canonicalize_text(basic_clean(text)))
    raise UserError(f"tokenizers of type {type(tokenizer).__name__} (mode "
                    f"{getattr(tokenizer, 'tokenizer_mode', None)!r}) are not supported; pass what "
                    "open_clip.get_tokenizer returns for the model, or use another model")


def _hf_tokens(tokenizer: HFTokenizer) -> Tokens:
    tokens = Tokens.of_hf(tokenizer.tokenizer, window=_window(tokenizer), clean=tokenizer.clean_fn)
    if not tokenizer.strip_sep_token:
        return tokens

    def encode(text: str) -> list[int]:
        return [0 if token == tokens.end else token for token in tokens.encode(text)]

    return Tokens(encode, window=tokens.window, pad=tokens.pad, end=0, decode=tokens.decode, special=tokens.special,
                  pads_left=tokens.pads_left, tokenizer=tokens.tokenizer)


def _window(tokenizer: Any) -> int:
    return tokenizer.context_length


def _transform(model: Any) -> ImageTransform:
    given = get_model_preprocess_cfg(model)
    try:
        config = PreprocessCfg(**given)
        height, width = config.input_size[1:]
        (red, green, blue), (red_std, green_std, blue_std) = config.mean, config.std
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint prepares images with {given}, which is not supported; pass a `transform` to "
                        "wrap_openclip") from error
    if height != width:
        raise UserError(f"the image tower reads {height} x {width} pixels; only square images are supported")
    if config.interpolation not in ("bicubic", "bilinear") or config.resize_mode not in ("shortest", "squash"):
        raise UserError(f"the checkpoint has resize_mode={config.resize_mode}, interpolation={config.interpolation}, "
                        "which are not supported; pass a `transform` to wrap_openclip")
    return ImageTransform(height, (red, green, blue), (red_std, green_std, blue_std), config.interpolation,
                          config.resize_mode)


def image_encoder(model: Any) -> ImageEncoder:
    """The ImageEncoder for the image tower of an open_clip model."""
    visual = model.visual
    if isinstance(visual, VisionTransformer) and len(visual.transformer.resblocks) > 1:
        return ViT(partial(model.encode_image, normalize=False), visual)
    return image_side(model)


class ViT(ImageEncoder):
    """open_clip's ViT, pooled at the class token, by the mean of the patches, or by an attention pool (CoCa)."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.conv1.out_channels
        # the class token is a position only if the image feature is read there
        self.first = 0 if visual.attn_pool is None and visual.pool_type == "tok" else 1

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        blocks = self.visual.transformer.resblocks
        with captured(blocks[-2], "input") as entered, captured(blocks[-1], "output") as left:
            pooled = self.encode(images)
        return Reading(pooled, left[0][:, self.first:], entered[0][:, self.first:])

    def project(self, states: Tensor) -> Tensor:
        if self.visual.attn_pool is not None:
            return at_each_position(self._pool, states, copies=2)
        projected = self.visual.ln_post(states)
        return projected if self.visual.proj is None else projected @ self.visual.proj

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        return None if self.visual.proj is None else (self.visual.proj, None)

    def unprojected(self, images: Tensor, run: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
        with captured(self.visual.transformer.resblocks[-1], "output") as left:
            result = run(images)
        return result, self.visual._pool(left[0])[0]

    def _pool(self, states: Tensor) -> Tensor:
        pooled = self.visual._pool(states)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj
