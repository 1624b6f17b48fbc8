"""Models of open_clip, in memory, as a FrozenCLIP: which text side, tokenizer and transform belong to one."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, get_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from xrvlm.backbone import DeviceName, FrozenCLIP, ImageTransform, Interpolation, PrecisionName
from xrvlm.backbones.openclip_image import image_side
from xrvlm.backbones.tokens import Tokens
from xrvlm.backbones.tower import Parts, Tower, adjusted
from xrvlm.causal_text import CausalText
from xrvlm.errors import UserError
from xrvlm.text_tower import LibraryText, TextPath, TextTower, check_text_path

log = logging.getLogger(__name__)


def wrap_openclip(model: Any, tokenizer: Any, *, name: str, transform: ImageTransform | None = None,
                  resize_to: int | None = None, interpolation: Interpolation | None = None,
                  text: TextPath = "fast", text_memory_gb: float | None = None,
                  device: DeviceName = "auto", precision: PrecisionName = "auto",
                  loader: Mapping[str, Any] | None = None) -> FrozenCLIP:
    """Freeze an open_clip model that stands in memory. The model itself is moved and converted, not a copy.

    Args:
        tokenizer: what `open_clip.get_tokenizer` returns for the model.
        transform: None takes what open_clip keeps with the model.
        resize_to: pixels of the shorter side before the centre crop; None: as the checkpoint's own transform.
        interpolation: `bicubic` or `bilinear`, of training crops too; None: the checkpoint's own.
        text: `fast` computes a causal text tower where it must be, `plain` by the library's own encoder, every
            position in every block: the same features and gradients but for the order of sums.
        text_memory_gb: GiB for what the backward pass needs of the text tower; classes beyond it are computed once
            more. None: 4 on a CPU, half of a GPU's memory.
        loader: how a saved classifier gets this tower again; None where it must be passed by hand.

    Raises:
        UserError: a tokenizer or an image transform that is not supported, or a device that is not there.
    """
    seen, adjustment = adjusted(transform or _transform(model), resize_to, interpolation)
    parts = Parts(
        image=image_side(model), text=_text_side(model, text, text_memory_gb), tokens=_tokens(tokenizer),
        transform=seen, adjustment=adjustment, embed_dim=_embed_dim(model),
        logit_scale=_number(model.logit_scale).exp(),
        logit_bias=torch.zeros(()) if model.logit_bias is None else _number(model.logit_bias),
        activation=" ".join(sorted(_activations(model))))
    return Tower(model, parts, name=name, device=device, precision=precision, loader=loader)


def _text_side(model: Any, path: TextPath, memory_gb: float | None) -> TextTower:
    check_text_path(path)
    text: Any = model if isinstance(model, CLIP) else model.text
    if path == "fast" and not isinstance(text, HFTextEncoder) and _is_plain_causal(text):
        log.info("text side: fast, real tokens alone, a common beginning once, the last block at [EOS]")
        return CausalText(text, memory_gb=memory_gb)
    log.info("text side: plain, the library's own encoder over its whole window")
    embedding = text.transformer.get_input_embeddings() if isinstance(text, HFTextEncoder) else text.token_embedding
    return LibraryText(partial(model.encode_text, normalize=False), embedding, memory_gb=memory_gb)


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
                      decode=tokenizer.decode, special=tokenizer.all_special_ids)
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
                  pads_left=tokens.pads_left)


def _window(tokenizer: Any) -> int:
    return tokenizer.context_length


def _transform(model: Any) -> ImageTransform:
    config = PreprocessCfg(**get_model_preprocess_cfg(model))
    height, width = config.input_size[1:]
    if height != width:
        raise UserError(f"the image tower reads {height} x {width} pixels; only square images are supported")
    if config.interpolation not in ("bicubic", "bilinear") or config.resize_mode not in ("shortest", "squash"):
        raise UserError(f"the checkpoint wants resize_mode={config.resize_mode}, interpolation={config.interpolation}, "
                        "which are not supported; pass a `transform` to wrap_openclip")
    (red, green, blue), (red_std, green_std, blue_std) = config.mean, config.std
    return ImageTransform(height, (red, green, blue), (red_std, green_std, blue_std), config.interpolation,
                          config.resize_mode)
