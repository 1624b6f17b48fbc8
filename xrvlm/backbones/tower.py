"""The implementation of FrozenCLIP: image encoder, text encoder and tokenizer of any library, frozen together."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from threading import get_ident
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xrvlm.backbones.base import (
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
    Words,
)
from xrvlm.backbones.causal_text_encoder import CausalTextEncoder
from xrvlm.backbones.text_encoder import PROMPTS_AT_ONCE, TextEncoder, Tokens
from xrvlm.errors import UserError, option, unknown

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POSITIONS_AT_ONCE = 512                  # bounds the memory of pooling heads that widen their input


@dataclass(frozen=True)
class Reading:
    """The results of one forward pass of the image tower, in the tower's precision."""

    pooled: Tensor                       # (b, d) as the library returns it
    states: Tensor                       # (b, p, e) input of the pooling head
    mid_tokens: Tensor                   # (b, p, e)


class ImageEncoder(ABC):
    """One kind of image tower. Not a module: it refers to modules of the model."""

    revision = 1                         # raised where the features of a kind of tower change
    width: int                           # e, of mid_tokens; 0 for a tower without positions

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, d), the library's own image feature."""

    @abstractmethod
    def read(self, images: Tensor) -> Reading: ...

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """(b, p, e) -> (b, p, d): for each position the image feature of an image that shows it everywhere."""

    def last_linear(self) -> nn.Linear | None:
        """The module whose output is the image feature, if it is linear."""
        return None

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        """(f, d) weight and (d,) bias of the last linear map; None if the tower does not end in one."""
        linear = self.last_linear()
        return None if linear is None else (linear.weight.T, linear.bias)

    def tune_for_cpu(self, own: bool) -> None:      # noqa: B027
        """Make fp32 on a CPU faster; features change by rounding. `own`: no user holds the model."""

    def unprojected(self, images: Tensor, run: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
        """What `run`, `pooled` or `read`, returns, and (b, f) the input of the last linear map; with a `projection`."""
        linear = self.last_linear()
        assert linear is not None
        with captured(linear, "input") as entered:
            return run(images), entered[0]


@contextmanager
def captured(module: nn.Module, side: Literal["input", "output"]) -> Iterator[list[Tensor]]:
    """The inputs or outputs of `module` during the `with` block, in this thread only."""
    seen: list[Tensor] = []
    caller = get_ident()

    def keep_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() == caller:
            seen.append(inputs[0])

    def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if get_ident() == caller:
            seen.append(output[0] if isinstance(output, tuple) else output)

    hook = (module.register_forward_pre_hook(keep_input) if side == "input"
            else module.register_forward_hook(keep_output))
    try:
        yield seen
    finally:
        hook.remove()


def at_each_position(head: Callable[[Tensor], Tensor], states: Tensor, copies: int = 1) -> Tensor:
    """Apply `head`, which pools (n, copies, e) to (n, d), to each position by itself: (b, p, e) -> (b, p, d)."""
    alone = states.flatten(0, 1)[:, None].expand(-1, copies, -1)                       # (b * p, copies, e)
    if torch.compiler.is_compiling():    # the batch size of an exported graph varies, the number of chunks cannot
        return head(alone).unflatten(0, states.shape[:2])
    return torch.cat([head(chunk) for chunk in alone.split(POSITIONS_AT_ONCE)]).unflatten(0, states.shape[:2])


@dataclass(frozen=True)
class Components:
    """The pieces of a library's model that a Tower needs."""

    image: ImageEncoder
    text: TextEncoder
    tokens: Tokens
    word_states: Callable[[Tensor], Tensor]    # (n, t) token ids -> (n, t, d), each state projected as [EOS]'s is
    transform: ImageTransform
    embed_dim: int
    logit_scale: Tensor                  # () exponentiated
    logit_bias: Tensor                   # ()
    activation: str                      # QuickGELU or GELU: the weights do not show it
    adjustment: str = ""                 # what the user changed in `transform`, for the name; empty: nothing


class Tower(FrozenCLIP):
    """`model` with its components, moved to `device` and converted once to `precision`."""

    def __init__(self, model: nn.Module, components: Components, *, name: str, device: DeviceName = "auto",
                 precision: PrecisionName = "auto", loader: Mapping[str, Any] | None = None):
        super().__init__()
        self.transform, self.loader = components.transform, loader
        self.name = f"{name} ({components.adjustment})" if components.adjustment else name
        self.embed_dim, self.image_width = components.embed_dim, components.image.width
        projection = components.image.projection()
        self.unprojected_width = 0 if projection is None else len(projection[0])
        self.text_width, self.context_length = components.text.embedding.embedding_dim, components.tokens.window
        self.image, self.text, self.tokens = components.image, components.text, components.tokens
        self._word_states = components.word_states
        self.text_path = "fast" if isinstance(components.text, CausalTextEncoder) else "plain"
        kind = f"{components.activation} {components.transform.image_size} {components.adjustment}".rstrip()
        self.fingerprint = hash_state(model, kind + f" {components.image.revision}" * (components.image.revision > 1))
        chosen = choose_device(device)
        self.precision = choose_precision(precision, chosen)
        self.model = model.to(chosen, DTYPES[self.precision])
        self.register_buffer("logit_scale", components.logit_scale.detach().float().reshape(()).to(chosen))
        self.register_buffer("logit_bias", components.logit_bias.detach().float().reshape(()).to(chosen))
        self.requires_grad_(False).eval()
        if chosen.type == "cpu" and self.precision == "fp32":
            components.image.tune_for_cpu(own=loader is not None)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever `mode` is: batch statistics are frozen too."""
        return super().train(False)

    def state_hash(self) -> str:
        return hash_state(self)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @torch.no_grad()
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        images = images.to(self.device, DTYPES[self.precision])
        run = self.image.read if {"tokens", "mid_tokens"} & set(needs) else self.image.pooled
        if "unprojected" in needs:
            self._projection()
        reading, before = self.image.unprojected(images, run) if "unprojected" in needs else (run(images), None)
        unprojected = None if before is None else before.float()                                       # (b, f)
        if not isinstance(reading, Reading):
            return Features(F.normalize(reading.float(), dim=-1), unprojected=unprojected)
        return Features(
            pooled=F.normalize(reading.pooled.float(), dim=-1),                                        # (b, d)
            tokens=self.image.project(reading.states).float() if "tokens" in needs else None,          # (b, p, d)
            mid_tokens=reading.mid_tokens.float() if "mid_tokens" in needs else None,                  # (b, p, e)
            unprojected=unprojected)

    def image_projection(self) -> tuple[Tensor, Tensor]:
        weight, bias = self._projection()
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias
        return weight.detach().float().contiguous().clone(), bias.detach().float().clone()

    def _projection(self) -> tuple[Tensor, Tensor | None]:
        """(f, d) and (d,)"""
        found = self.image.projection()
        if found is None:
            raise UserError(f"the image tower of {self.name} ends in no linear projection (SigLIP's attention pool and "
                            "MLP heads have none): prolip has nothing to train, and there is no feature before it; "
                            "choose a CLIP tower, or another method such as clip_adapter")
        return found

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(self._text_features(texts), dim=-1)

    def text_lengths(self, texts: Sequence[str]) -> Tensor:
        return self._text_features(texts).norm(dim=-1)                                                 # (n,)

    @torch.no_grad()
    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens, ends = self.tokens.sentences(texts)
        return self.text.encode_tokens(tokens, ends).float()                                           # (n, d)

    @torch.no_grad()
    def encode_words(self, texts: Sequence[str]) -> Words:
        tokens, ends = self.tokens.sentences(texts)
        said = [self.tokens.spoken(text) for text in texts]
        at = pad_sequence([end - torch.tensor([back for _, back in words])
                           for end, words in zip(ends, said, strict=True)], batch_first=True, padding_value=-1)
        there = (at >= 0).to(self.device)                                                              # (n, t)
        chunks = zip(tokens.split(PROMPTS_AT_ONCE), at.split(PROMPTS_AT_ONCE), strict=True)
        states = torch.cat([self._word_states(ids.to(self.device)).float()[torch.arange(len(ids))[:, None], places]
                            for ids, places in chunks])                                                # (n, t, d)
        return Words(F.normalize(states, dim=-1) * there[..., None], there,
                     tuple(tuple(word for word, _ in words) for words in said))

    def layout(self, names: Sequence[str], length: int, position: NamePosition = "end",
               full_stop: bool = True) -> PromptLayout:
        return self.tokens.layout(names, length, position, full_stop)

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


def hash_state(module: nn.Module, also: str = "") -> str:
    """sha256 of the names, shapes and values in a module's state, and of `also`. Floats are hashed as float32."""
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).contiguous()
        if values.is_floating_point() and values.isnan().any():
            raise UserError(f"the weights {name} of the tower hold NaN: their file is damaged; fetch or save it again")
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adjusted(own: ImageTransform, resize_to: int | None, interpolation: Interpolation | None,
             ) -> tuple[ImageTransform, str]:
    """The checkpoint's `own` transform with the user's changes (None keeps it), and these changes as text."""
    if resize_to is not None and resize_to < own.image_size:
        raise UserError(f"{option('backbone.resize_to', resize_to)} is less than the {own.image_size} pixels of the "
                        f"centre crop: use {own.image_size} or more")
    changed, words = own, []
    if resize_to is not None and (own.resize, own.resize_to or own.image_size) != ("shortest", resize_to):
        changed, words = replace(own, resize="shortest", resize_to=resize_to), [f"resize {resize_to}"]
    if interpolation is not None and interpolation != own.interpolation:
        changed, words = replace(changed, interpolation=interpolation), [*words, interpolation]
    return changed, ", ".join(words)


def choose_device(wanted: DeviceName) -> torch.device:
    """The device named `wanted`; UserError if this machine has none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if wanted not in available:
        raise unknown("device", wanted, ("auto", *available))
    if not available[wanted]:
        raise UserError(f"{option('device', wanted)} is not available on this machine; use "
                        f"{option('device', 'auto')} or {option('device', 'cpu')}")
    return torch.device(wanted)


def choose_precision(wanted: PrecisionName, device: torch.device) -> Precision:
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if wanted not in DTYPES:
        raise unknown("precision", wanted, ("auto", *DTYPES))
    return wanted
