"""The interface of a frozen CLIP: features of images, of sentences and of learnable prompts.

Letters: `b` batch, `p` positions, `d` joint dimension, `e` width of the image tower, `f` width before its projection,
`q` width of a second tower's feature, `w` width of the text tower, `c` classes, `g` text parts, `l` learned vectors in
a prompt, `t` tokens in a prompt.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xrvlm.errors import UserError, check_fields

Need = Literal["pooled", "tokens", "mid_tokens", "unprojected", "second"]
Interpolation = Literal["bicubic", "bilinear"]
NamePosition = Literal["end", "front", "middle"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
# for errors of what cannot be fetched
OFFLINE = "the photo tower, which needs none (backbone=photo, xrvlm.load_photo; pip install 'xrvlm[photo]')"


@dataclass(frozen=True)
class Features:
    """Image features, all that a method sees of an image; float32 unless read from a half-precision bank."""

    pooled: Tensor                       # (b, d) unit norm
    tokens: Tensor | None = None         # (b, p, d) last block, each position projected to the joint space
    mid_tokens: Tensor | None = None     # (b, p, e) input of the second-last block (ViT) or the last
                                         # (convolutions of timm), last map (CLIP's ResNet)
    unprojected: Tensor | None = None    # (b, f) input of the last linear map, whose output is `pooled`
    second: Tensor | None = None         # (b, q) of a second tower, or of a second look; not normalised

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """Apply `change` to each tensor that is not None."""
        return Features(**{name: change(value) for name, value in vars(self).items() if value is not None})

    def to(self, device: torch.device) -> "Features":
        return self.map(lambda value: value.to(device))

    def __len__(self) -> int:
        return len(self.pooled)


@dataclass(frozen=True)
class ImageTransform:
    """The image preprocessing of a checkpoint: sizes in pixels, `mean` and `std` of RGB in 0..1."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"    # shorter side and centre crop, or both sides
    resize_to: int | None = None         # shorter side before the centre crop; None: image_size

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size < 1 or (self.resize_to is not None and self.resize_to < 1):
            raise UserError(f"a transform has sizes of at least 1 pixel, found image_size={self.image_size}, "
                            f"resize_to={self.resize_to}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(f"a transform has a finite mean and a std above 0, found mean={self.mean}, std={self.std}")
        if self.resize == "squash" and self.resize_to is not None:
            raise UserError(f"a transform that squashes has no centre crop: leave resize_to={self.resize_to} out")

    def scaled(self, image_size: int) -> "ImageTransform":
        """The same part of a photo in `image_size` pixels."""
        resize_to = self.resize_to and round(self.resize_to * image_size / self.image_size)
        return replace(self, image_size=image_size, resize_to=resize_to)


@dataclass(frozen=True)
class PromptLayout:
    """Token ids of each class prompt and the positions of its learned vectors. Made by `FrozenCLIP.layout`."""

    tokens: Tensor                       # (c, t) token ids, padded after [EOS]; ids at a slot are ignored
    slots: Tensor                        # (c, l) positions of the learned vectors
    ends: Tensor                         # (c,) position of [EOS]
    shared: int = 0                      # the first `shared` of the l vectors are the same for all classes


@dataclass(frozen=True)
class Words:
    """The words of n sentences, each of them at most t. Made by `FrozenCLIP.encode_words`."""

    features: Tensor                     # (n, t, d) unit norm, 0 where there is no word
    there: Tensor                        # (n, t) bool: the words of a sentence, before what fills its row
    spelt: tuple[tuple[str, ...], ...]   # the words, as the tokenizer spells them


class FrozenCLIP(nn.Module, ABC):
    """A CLIP whose parameters and buffers never change: no gradients, always in eval mode."""

    name: str                            # for people: "ViT-B-16-quickgelu/openai"
    embed_dim: int                       # d
    image_width: int                     # e; 0 for a tower without positions
    unprojected_width: int = 0           # f; 0 for a tower that ends in no linear projection
    second_width: int = 0                # q; 0 for a tower without a second one (xrvlm.backbones.composed)
    second_name: str = "second tower"    # for people: what the second feature is of
    text_width: int                      # w
    context_length: int                  # positions of the text window
    transform: ImageTransform            # the checkpoint's evaluation transform, or what the user set instead
    logit_scale: Tensor                  # () exponentiated, float32
    logit_bias: Tensor                   # () 0 except for SigLIP
    fingerprint: str                     # hash of weights, activation, image size and changes of the transform;
                                         # not of device or precision
    precision: Precision                 # the tower computes in it; features are always float32
    text_path: str = "plain"             # or "fast": how text is computed; the two round differently
    loader: Mapping[str, Any] | None     # {"name", "options"} for `registry.load_tower`; None: wrapped in memory

    @abstractmethod
    def state_hash(self) -> str:
        """sha256 of all current parameters and buffers; training must not change it."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        """Features of `images` (b, 3, h, w), which are normalised by `transform`. float32, no gradients."""

    def windows(self, images: Tensor) -> Tensor | None:
        """(b, k, 4) left, top, right and bottom of where a tower looks again, as shares of a side; None: nowhere."""
        return None

    @abstractmethod
    def image_projection(self) -> tuple[Tensor, Tensor]:
        """(f, d) weight and (d,) bias of the image tower's last linear map, as float32 copies; a missing bias is 0.

        `normalize(unprojected @ weight + bias)` is `pooled`.

        Raises:
            UserError: the tower does not end in a linear map.
        """

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit norm, float32, no gradients. UserError if a text does not fit the window."""

    @abstractmethod
    def text_lengths(self, texts: Sequence[str]) -> Tensor:
        """(n,) norms of the text features before `encode_text` normalises them."""

    @abstractmethod
    def encode_words(self, texts: Sequence[str]) -> Words:
        """A feature for each word: its state after the last layer, projected as a whole text is. float32, no gradients.

        Of a word of several tokens, the state of the last. Tokens without a letter or digit are no words.
        UserError if a text has no word or does not fit the window.
        """

    @abstractmethod
    def layout(self, names: Sequence[str], length: int, position: NamePosition = "end",
               full_stop: bool = True) -> PromptLayout:
        """`[SOS] v_1 ... v_length Name . [EOS]` for each name, or with the name in front or in the middle.

        `_` in a name becomes a space. UserError if a prompt does not fit the window; it names the class.
        """

    @abstractmethod
    def sentence_layout(self, sentences: Sequence[str]) -> tuple[PromptLayout, Tensor]:
        """Layout of n sentences with a learned vector for each word, and the word embeddings (n, l, w) to start from.

        l is the number of word tokens in the longest sentence; the extra slots of a shorter one are at its padding.
        UserError if a sentence has no word or does not fit the window.
        """

    @abstractmethod
    def encode_prompts(self, context: Tensor, layout: PromptLayout) -> Tensor:
        """(g, c, d) unit norm, float32, differentiable in `context` (g, c or 1, l, w), which is float32."""

    @abstractmethod
    def embed_words(self, text: str) -> Tensor:
        """(t, w) token embeddings of `text` without [SOS] and [EOS], float32; used to initialise learned vectors."""

    @abstractmethod
    def nearest_words(self, vectors: Tensor, count: int) -> list[list[tuple[str, float]]]:
        """For each of `vectors` (n, w) the `count` words with the nearest token embeddings, as (word, distance).

        Euclidean, nearest first, without special tokens. CoOp interprets its learned prompts like this.
        """
