"""What every composed tower shares: the text side of the tower it is made of, and pixels shown at another size."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP, ImageTransform, NamePosition, PromptLayout, Words
from xrvlm.backbones.text_encoder import TextEncoder, Tokens


class OnTower(FrozenCLIP):
    """Base of the towers that see images otherwise than `clip` and read text as it does."""

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        self.clip = clip
        self.embed_dim, self.image_width, self.unprojected_width = clip.embed_dim, clip.image_width, \
            clip.unprojected_width
        self.second_width, self.second_name = clip.second_width, clip.second_name
        self.text_width, self.context_length = clip.text_width, clip.context_length
        self.transform, self.precision, self.text_path = clip.transform, clip.precision, clip.text_path
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias
        self.loader = None

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def state_hash(self) -> str:
        return self.clip.state_hash()

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @property
    def text(self) -> TextEncoder:
        """The text side of a `Tower`, for what exports it."""
        return self._inner.text

    @property
    def tokens(self) -> Tokens:
        return self._inner.tokens

    @property
    def _inner(self) -> Any:
        return self.clip

    def image_projection(self) -> tuple[Tensor, Tensor]:
        return self.clip.image_projection()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.clip.encode_text(texts)

    def encode_words(self, texts: Sequence[str]) -> Words:
        return self.clip.encode_words(texts)

    def text_lengths(self, texts: Sequence[str]) -> Tensor:
        return self.clip.text_lengths(texts)

    def layout(self, names: Sequence[str], length: int, position: NamePosition = "end",
               full_stop: bool = True) -> PromptLayout:
        return self.clip.layout(names, length, position, full_stop)

    def sentence_layout(self, sentences: Sequence[str]) -> tuple[PromptLayout, Tensor]:
        return self.clip.sentence_layout(sentences)

    def encode_prompts(self, context: Tensor, layout: PromptLayout) -> Tensor:
        return self.clip.encode_prompts(context, layout)

    def embed_words(self, text: str) -> Tensor:
        return self.clip.embed_words(text)

    def nearest_words(self, vectors: Tensor, count: int) -> list[list[tuple[str, float]]]:
        return self.clip.nearest_words(vectors, count)


class Shown(nn.Module):
    """Square images of `side` pixels, normalised for `given`, as a tower with the transform `wanted` sees them.

    A resize is linear, and the same along both sides: two products with a matrix, which any runtime can do, equal to
    Pillow's up to its rounding to 8 bits.
    """

    matrix: Tensor                       # (s, side)
    scale: Tensor                        # (3, 1, 1) from the one normalisation to the other; `offset` is added then
    offset: Tensor
    low: Tensor                          # (3, 1, 1) black and white as they are given
    high: Tensor

    def __init__(self, side: int, given: ImageTransform, wanted: ImageTransform):
        super().__init__()
        self.resizes, size = wanted.image_size != side, wanted.image_size
        self.renormalises = (given.mean, given.std) != (wanted.mean, wanted.std)
        mean, std, wanted_mean, wanted_std = (torch.tensor(values)[:, None, None] for values in (
            given.mean, given.std, wanted.mean, wanted.std))
        self.register_buffer("matrix", resize_matrix(side, 0, side, size, given.interpolation), persistent=False)
        for name, value in (("scale", std / wanted_std), ("offset", (mean - wanted_mean) / wanted_std),
                            ("low", -mean / std), ("high", (1 - mean) / std)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, side, side) -> (b, 3, s, s)"""
        if self.resizes:
            images = self.clamped(self.matrix @ images @ self.matrix.mT)
        return images * self.scale + self.offset if self.renormalises else images

    def clamped(self, images: Tensor) -> Tensor:
        """Within what a pixel can be: a bicubic resize goes beyond it."""
        return images.maximum(self.low).minimum(self.high)


def resize_matrix(side: int, start: int, end: int, size: int, interpolation: str) -> Tensor:
    """(size, side) what resizes pixels `start` to `end` of `side` to `size`, antialiased as Pillow does it."""
    window = torch.eye(end - start)[None, None]                                            # (1, 1, k, k)
    matrix = F.interpolate(window, (size, end - start), mode=interpolation, antialias=True)[0, 0]
    return F.pad(matrix, (start, side - end))
