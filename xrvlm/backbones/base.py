"""What the rest of the project sees of a frozen CLIP: features of images, of sentences, of learnable prompts.

Letters: `b` batch, `p` positions, `d` joint dimension, `e` width of the image tower, `f` width in front of its
projection, `w` width of the text tower, `c` classes, `g` text parts, `l` learned vectors in a prompt, `t` tokens in a
prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Need = Literal["pooled", "tokens", "mid_tokens", "unprojected"]
Interpolation = Literal["bicubic", "bilinear"]
NamePosition = Literal["end", "front", "middle"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Features:
    """All that an image side may see of the frozen tower; float32 unless read from a half-precision bank."""

    pooled: Tensor                       # (b, d) unit norm
    tokens: Tensor | None = None         # (b, p, d) last block, every position projected into the joint space
    mid_tokens: Tensor | None = None     # (b, p, e) what enters the second-last block (ViT), the last map (ResNet)
    unprojected: Tensor | None = None    # (b, f) what the last linear map reads that makes the pooled feature

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The same features with `change` applied to each tensor that is there."""
        return Features(**{name: change(value) for name, value in vars(self).items() if value is not None})

    def to(self, device: torch.device) -> "Features":
        return self.map(lambda value: value.to(device))

    def __len__(self) -> int:
        return len(self.pooled)


@dataclass(frozen=True)
class ImageTransform:
    """How a checkpoint wants its images: sizes in pixels, `mean` and `std` of RGB in 0..1."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"    # shorter side then centre crop, or both sides at once
    resize_to: int | None = None         # shorter side before the centre crop; None: image_size


@dataclass(frozen=True)
class PromptLayout:
    """Where the constant tokens and the learned vectors of each class prompt stand. Made by `FrozenCLIP.layout`."""

    tokens: Tensor                       # (c, t) token ids, padded behind [EOS]; ids under a slot are ignored
    slots: Tensor                        # (c, l) positions of the learned vectors
    ends: Tensor                         # (c,) position of [EOS]
    shared: int = 0                      # how many of the l vectors, from the first on, are the same for all classes


class FrozenCLIP(nn.Module, ABC):
    """A CLIP whose parameters and buffers never change: no gradients, always in eval mode."""

    name: str                            # as a person would call it: "ViT-B-16-quickgelu/openai"
    embed_dim: int                       # d
    image_width: int                     # e; 0 for a tower without positions
    text_width: int                      # w
    context_length: int                  # positions of the text window
    transform: ImageTransform            # the checkpoint's own evaluation transform, unless a user set another
    logit_scale: Tensor                  # () already exponentiated, float32
    logit_bias: Tensor                   # () 0 but for SigLIP
    fingerprint: str                     # hash of weights, activation, image size and a transform that is not the
                                         # checkpoint's own; not of device or precision
    precision: Precision                 # what the tower computes in; features are float32 all the same
    text_path: str = "plain"             # or "fast": how the text side is computed, which rounds otherwise
    loader: Mapping[str, Any] | None     # {"target": dotted path, "arguments": ...} of what made it; None: in memory

    @abstractmethod
    def state_hash(self) -> str:
        """sha256 of all parameters and buffers as they are now: the same before and after a training, or not frozen."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        """Features of `images` (b, 3, h, w), normalised as `transform` says. float32, no gradients."""

    @abstractmethod
    def image_projection(self) -> tuple[Tensor, Tensor]:
        """(f, d) weight and (d,) bias of the image tower's last linear map: copies, float32, zeros for no bias.

        `unprojected @ weight + bias`, brought to unit norm, is `pooled`. UserError for a tower that ends in none.
        """

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit norm, float32, no gradients. UserError for a text that does not fit the window."""

    @abstractmethod
    def text_lengths(self, texts: Sequence[str]) -> Tensor:
        """(n,) how long the tower makes their features, which `encode_text` brings to unit norm."""

    @abstractmethod
    def layout(self, names: Sequence[str], length: int, position: NamePosition = "end") -> PromptLayout:
        """`[SOS] v_1 ... v_length Name . [EOS]` for each name (`_` becomes a space), or with the name in front or
        in the middle. UserError that names the class whose prompt does not fit the window."""

    @abstractmethod
    def sentence_layout(self, sentences: Sequence[str]) -> tuple[PromptLayout, Tensor]:
        """Each of n sentences as a prompt whose words are all learned, and their embeddings (n, l, w) to start from.

        l is the number of word tokens in the longest; a shorter one has its further slots where its padding stands.
        UserError for a sentence without a word or one that does not fit the window.
        """

    @abstractmethod
    def encode_prompts(self, context: Tensor, layout: PromptLayout) -> Tensor:
        """(g, c, d) unit norm, float32, differentiable in `context` (g, c or 1, l, w), which is float32."""

    @abstractmethod
    def embed_words(self, text: str) -> Tensor:
        """(t, w) token embeddings of `text` without [SOS] and [EOS], float32: a start for learned vectors."""

    @abstractmethod
    def nearest_words(self, vectors: Tensor, count: int) -> list[list[tuple[str, float]]]:
        """For each of `vectors` (n, w) the `count` words whose token embeddings are nearest, with their Euclidean
        distances, nearest first (as CoOp reads its prompts); special tokens are left out."""
