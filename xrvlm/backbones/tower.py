"""The one FrozenCLIP there is: an image side, a text side and a tokenizer of whatever library, frozen together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbone import (
    DeviceName,
    Features,
    FrozenCLIP,
    ImageTransform,
    Interpolation,
    NamePosition,
    Need,
    Precision,
    PrecisionName,
    PromptLayout,
    hash_state,
)
from xrvlm.backbones.image_side import ImageSide
from xrvlm.backbones.tokens import Tokens
from xrvlm.causal_text import CausalText
from xrvlm.errors import UserError, unknown
from xrvlm.text_tower import TextTower

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Parts:
    """What a library has to show of a model."""

    image: ImageSide
    text: TextTower
    tokens: Tokens
    transform: ImageTransform
    embed_dim: int
    logit_scale: Tensor                  # () exponentiated
    logit_bias: Tensor                   # ()
    activation: str                      # QuickGELU or GELU: the same weights, another function
    adjustment: str = ""                 # what of `transform` a user set, in words; nothing: the checkpoint's own


class Tower(FrozenCLIP):
    """`model` with its `parts`, moved to `device` and converted once to `precision`."""

    def __init__(self, model: nn.Module, parts: Parts, *, name: str, device: DeviceName = "auto",
                 precision: PrecisionName = "auto", loader: Mapping[str, Any] | None = None):
        super().__init__()
        self.transform, self.loader = parts.transform, loader
        self.name = f"{name} ({parts.adjustment})" if parts.adjustment else name
        self.embed_dim, self.image_width = parts.embed_dim, parts.image.width
        self.text_width, self.context_length = parts.text.embedding.embedding_dim, parts.tokens.window
        self.image, self.text, self.tokens = parts.image, parts.text, parts.tokens
        self.text_path = "fast" if isinstance(parts.text, CausalText) else "plain"
        seen = f"{parts.transform.image_size} {parts.adjustment}".rstrip()
        self.fingerprint = hash_state(model, f"{parts.activation} {seen}")
        place = choose_device(device)
        self.precision = choose_precision(precision, place)
        self.model = model.to(place, DTYPES[self.precision])
        self.register_buffer("logit_scale", parts.logit_scale.detach().float().reshape(()).to(place))
        self.register_buffer("logit_bias", parts.logit_bias.detach().float().reshape(()).to(place))
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @torch.no_grad()
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        images = images.to(self.device, DTYPES[self.precision])
        pooled = unprojected = None
        if "unprojected" in needs:
            self._projection()
            pooled, before = self.image.unprojected(images)                                            # (b, d), (b, f)
            unprojected = before.float()
        if not {"tokens", "mid_tokens"} & set(needs):
            pooled = self.image.pooled(images) if pooled is None else pooled
            return Features(F.normalize(pooled.float(), dim=-1), unprojected=unprojected)
        reading = self.image.read(images)
        return Features(
            pooled=F.normalize(reading.pooled.float(), dim=-1),                                        # (b, d)
            tokens=self.image.project(reading.states).float() if "tokens" in needs else None,          # (b, p, d)
            mid_tokens=reading.mid_tokens.float() if "mid_tokens" in needs else None,                  # (b, p, e)
            unprojected=unprojected)

    def image_projection(self) -> tuple[Tensor, Tensor]:
        weight, bias = self._projection()
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias
        return weight.detach().float().clone(), bias.detach().float().clone()

    def _projection(self) -> tuple[Tensor, Tensor | None]:
        """(f, d) and (d,)"""
        found = self.image.projection()
        if found is None:
            raise UserError(f"the image tower of {self.name} ends in no linear projection (SigLIP's attention pool and "
                            "MLP heads have none), so that method=prolip has nothing to train; choose a CLIP tower, or "
                            "another method such as clip_adapter")
        return found

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(self._text_features(texts), dim=-1)

    def text_lengths(self, texts: Sequence[str]) -> Tensor:
        return self._text_features(texts).norm(dim=-1)                                                 # (n,)

    @torch.no_grad()
    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens, ends = self.tokens.sentences(texts)
        return self.text.encode_tokens(tokens, ends).float()                                           # (n, d)

    def layout(self, names: Sequence[str], length: int, position: NamePosition = "end") -> PromptLayout:
        return self.tokens.layout(names, length, position)

    @torch.no_grad()
    def sentence_layout(self, sentences: Sequence[str]) -> tuple[PromptLayout, Tensor]:
        layout = self.tokens.sentence_layout(sentences)
        ids = layout.tokens.gather(1, layout.slots).to(self.device)                                    # (n, l)
        return layout, self.text.embedding(ids).float()                                                # (n, l, w)

    def encode_prompts(self, context: Tensor, layout: PromptLayout) -> Tensor:
        features = self.text.encode_prompts(context, layout.tokens, layout.slots, layout.ends,
                                            shared=layout.shared)                                      # (g, c, d)
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def embed_words(self, text: str) -> Tensor:
        ids = torch.tensor(self.tokens.words(text), dtype=torch.long, device=self.device)
        return self.text.embedding(ids).float()                                                        # (t, w)

    @torch.no_grad()
    def nearest_words(self, vectors: Tensor, count: int) -> list[list[tuple[str, float]]]:
        embeddings = self.text.embedding.weight.float()                                                # (v, w)
        found = []
        for row in torch.cdist(vectors.to(self.device), embeddings).cpu():                             # (v,)
            near = ((self.tokens.word(token), row[token].item()) for token in row.argsort().tolist())
            found.append(list(islice((pair for pair in near if pair[0]), count)))
        return found


def adjusted(own: ImageTransform, resize_to: int | None, interpolation: Interpolation | None,
             ) -> tuple[ImageTransform, str]:
    """`own` with what a user sets in its place (None keeps it), and in words what that changed."""
    if interpolation not in (None, "bicubic", "bilinear"):
        raise unknown("interpolation", interpolation, ("bicubic", "bilinear"))
    if resize_to is not None and resize_to < own.image_size:
        raise UserError(f"resize_to={resize_to} is less than the {own.image_size} pixels that the centre crop leaves: "
                        f"use {own.image_size} at least")
    changed, words = own, []
    if resize_to is not None and (own.resize, own.resize_to or own.image_size) != ("shortest", resize_to):
        changed, words = replace(own, resize="shortest", resize_to=resize_to), [f"resize {resize_to}"]
    if interpolation is not None and interpolation != own.interpolation:
        changed, words = replace(changed, interpolation=interpolation), [*words, interpolation]
    return changed, ", ".join(words)


def choose_device(wanted: DeviceName) -> torch.device:
    """The device called `wanted`; UserError where this machine has none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if wanted not in available:
        raise unknown("device", wanted, ("auto", *available))
    if not available[wanted]:
        raise UserError(f"device={wanted} is not available on this machine; use device=auto or device=cpu")
    return torch.device(wanted)


def choose_precision(wanted: PrecisionName, device: torch.device) -> Precision:
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if wanted not in DTYPES:
        raise unknown("precision", wanted, ("auto", *DTYPES))
    return wanted

