"""The image towers of open_clip: its own ViT and ResNet, and those of timm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from xrvlm.backbones.image_side import ImageSide, Reading, WithoutPositions, at_each_position, captured

Encode = Callable[[Tensor], Tensor]      # (b, 3, h, w) -> (b, d), the library's own call


def image_side(model: Any) -> ImageSide:
    """How to read the image tower of an open_clip model."""
    encode, visual = partial(model.encode_image, normalize=False), model.visual
    if isinstance(visual, ModifiedResNet):
        return ResNet(encode, visual)
    if isinstance(visual, VisionTransformer) and len(visual.transformer.resblocks) > 1:
        return ViT(encode, visual)
    if isinstance(visual, TimmModel):
        return _timm_side(encode, visual)
    return WithoutPositions(encode, type(visual).__name__)


def _timm_side(encode: Encode, visual: TimmModel) -> ImageSide:
    trunk: Any = visual.trunk
    blocks = getattr(trunk, "blocks", None)
    if blocks is None:
        return TimmMap(encode, visual)
    return TimmViT(encode, visual) if len(blocks) > 1 else WithoutPositions(encode, type(trunk).__name__)


class ViT(ImageSide):
    """open_clip's ViT, read at the class token, by the mean of the patches, or by an attention pool (CoCa)."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.conv1.out_channels
        # what the class token does not decide is read without it
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

    def unprojected(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with captured(self.visual.transformer.resblocks[-1], "output") as left:
            pooled = self.encode(images)
        return pooled, self.visual._pool(left[0])[0]

    def _pool(self, alone: Tensor) -> Tensor:
        pooled = self.visual._pool(alone)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


class ResNet(ImageSide):
    """CLIP's ResNet: value and output projection of the attention pool at every cell of the last map."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.attnpool.v_proj.in_features
        # measured (docs/performance.md): less work on a CPU, and the cells of a map are rows, as `project` wants them
        visual.to(memory_format=torch.channels_last)

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        with captured(self.visual.layer4, "output") as left:
            pooled = self.encode(images)
        cells = left[0].flatten(2).mT                                                  # (b, p, e)
        return Reading(pooled, cells, cells)

    def project(self, states: Tensor) -> Tensor:
        pool = self.visual.attnpool
        return pool.c_proj(pool.v_proj(states + pool.positional_embedding[1:]))        # without the mean token

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        projection = self.visual.attnpool.c_proj
        return projection.weight.T, projection.bias

    def unprojected(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # c_proj is never called as a module, torch's attention takes its weights: the pool is done once more
        with captured(self.visual.layer4, "output") as left:
            pooled = self.encode(images)
        pool, cells = self.visual.attnpool, left[0].flatten(2).mT                      # (b, p, e)
        x = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + pool.positional_embedding
        heads = (projected.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)          # (b, heads, ..., e / heads)
                 for projected in (pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(x)))
        return pooled, F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1)


class Timm(ImageSide):
    """What is the same for all trunks of timm."""

    visual: Any

    def last_linear(self) -> nn.Linear | None:
        """The head's `proj`, or the trunk's own classifier where open_clip uses it as such; an MLP is none."""
        own = getattr(self.visual.head, "proj", None)
        last = own if own is not None or len(self.visual.head) else self.visual.trunk.get_classifier()
        return last if isinstance(last, nn.Linear) else None


class TimmViT(Timm):
    """A timm trunk of blocks over tokens, whatever its pooling: class token, mean or attention (MAP)."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.trunk.num_features
        self.prefix: int = getattr(visual.trunk, "num_prefix_tokens", 0)
        self.first = 0 if visual.trunk.global_pool == "token" else self.prefix

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        with captured(self.visual.trunk.blocks[-2], "input") as entered:
            states = self.visual.trunk.forward_features(images)
        pooled = self.visual.head(self.visual.trunk.forward_head(states))
        return Reading(pooled, states[:, self.first:], entered[0][:, self.first:])

    def project(self, states: Tensor) -> Tensor:
        return at_each_position(self._pool, states, copies=self.prefix + 1)

    def _pool(self, alone: Tensor) -> Tensor:
        return self.visual.head(self.visual.trunk.forward_head(alone))


class TimmMap(Timm):
    """A timm trunk that ends in a map (ConvNeXt, Swin, FastViT): its cells are the positions."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.trunk.num_features
        self.channels_last = getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC"

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        last = self.visual.trunk.forward_features(images)
        pooled = self.visual.head(self.visual.trunk.forward_head(last))
        cells = last.flatten(1, 2) if self.channels_last else last.flatten(2).mT       # (b, p, e)
        return Reading(pooled, cells, cells)

    def project(self, states: Tensor) -> Tensor:
        return at_each_position(self._pool, states)

    def _pool(self, alone: Tensor) -> Tensor:                                          # (n, 1, e) -> (n, d)
        cell = alone[:, None] if self.channels_last else alone.mT[..., None]           # an image of one cell
        return self.visual.head(self.visual.trunk.forward_head(cell))
