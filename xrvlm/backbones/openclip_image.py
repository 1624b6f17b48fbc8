"""Image towers of open_clip other than its own ViT, which openclip.py reads: its ResNets, and trunks of timm."""

import ctypes
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.layers.conv2d_same import Conv2dSame
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xrvlm.backbones.tower import ImageEncoder, Reading, at_each_position, captured
from xrvlm.errors import UserError

Encode = Callable[[Tensor], Tensor]      # (b, 3, h, w) -> (b, d), open_clip's method
# of glibc's mallopt: its numbers, and the bytes from which a block, and free memory in all, goes back to the system
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = (-3, 2 ** 30), (-1, 2 ** 31 - 1)


def image_side(model: Any) -> ImageEncoder:
    """The ImageEncoder for the image tower of an open_clip model that is no ViT of open_clip's own."""
    encode, visual = partial(model.encode_image, normalize=False), model.visual
    if isinstance(visual, ModifiedResNet):
        return ResNet(encode, model)
    if isinstance(visual, TimmModel):
        return timm_encoder(encode, visual)
    return WithoutPositions(encode, type(visual).__name__)


class WithoutPositions(ImageEncoder):
    """A tower that gives only one feature per image."""

    width = 0

    def __init__(self, encode: Callable[[Tensor], Tensor], kind: str):
        self.encode, self.kind = encode, kind

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        raise UserError(f"the image tower {self.kind} has no positions to attend to; methods on pooled features "
                        "(zero_shot, linear_probe, coop ...) work with it, xr_vlm needs another backbone")

    def project(self, states: Tensor) -> Tensor:
        raise NotImplementedError


class ResNet(ImageEncoder):
    """CLIP's ResNet: a cell of the last map is projected by the attention pool's value and output projections."""

    def __init__(self, encode: Encode, model: Any):
        self.encode, self.model, self.width = encode, model, model.visual.attnpool.v_proj.in_features
        # docs/results/performance_log.md: faster on a CPU, and cells are contiguous rows, which `project` reads
        self.visual.to(memory_format=torch.channels_last)

    @property
    def visual(self) -> Any:
        return self.model.visual

    def tune_for_cpu(self, own: bool) -> None:
        if own:
            self.model.visual = without_batch_norms(self.visual, self.visual.image_size)

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

    def unprojected(self, images: Tensor, run: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
        # torch's attention uses the weights of c_proj without calling the module, so the pool is computed again
        with captured(self.visual.layer4, "output") as left:
            result = run(images)
        pool, cells = self.visual.attnpool, left[0].flatten(2).mT                      # (b, p, e)
        x = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + pool.positional_embedding
        heads = (projected.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)          # (b, heads, ..., e / heads)
                 for projected in (pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(x)))
        return result, F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1)


def timm_encoder(encode: Encode, visual: TimmModel) -> ImageEncoder:
    """The ImageEncoder for a trunk: of transformer blocks, or one that ends in a feature map."""
    trunk: Any = visual.trunk.eval()
    blocks = getattr(trunk, "blocks", ())
    if not isinstance(trunk, VisionTransformer | Eva):
        blank = next(trunk.parameters()).new_zeros(1, 3, *visual.image_size)
        with torch.no_grad():
            last, earlier = _maps(trunk, _last_block(trunk), blank)
        if not isinstance(last, Tensor):     # maps of several sizes, as of CoaT and CrossViT
            return WithoutPositions(encode, type(trunk).__name__)
        square = math.isqrt(last.shape[1]) ** 2 == last.shape[1]
        if last.ndim == 4 or (square and not blocks):
            return TimmMap(encode, visual, last, earlier)
    return TimmViT(encode, visual) if len(blocks) > 1 else WithoutPositions(encode, type(trunk).__name__)


class Timm(ImageEncoder):
    """Common to all trunks."""

    def __init__(self, encode: Encode, visual: Any):
        self.encode, self.visual, self.width = encode, visual, visual.trunk.num_features
        self.trunk: Any = visual.trunk

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def last_linear(self) -> nn.Linear | None:
        """The head's `proj`, or the trunk's classifier if open_clip projects by it; None for an MLP."""
        proj = getattr(self.visual.head, "proj", None)
        last = proj if proj is not None or len(self.visual.head) else self.trunk.get_classifier()
        return last if isinstance(last, nn.Linear) else None

    def pool(self, states: Tensor) -> Tensor:
        """The image feature (b, d) from what `forward_features` returns."""
        return self.visual.head(self.trunk.forward_head(states))


class TimmViT(Timm):
    """A trunk of transformer blocks, pooled at the class token, by the mean or by attention (MAP)."""

    def __init__(self, encode: Encode, visual: Any):
        super().__init__(encode, visual)
        self.prefix: int = getattr(self.trunk, "num_prefix_tokens", 0)
        self.first = 0 if getattr(self.trunk, "global_pool", "avg") == "token" else self.prefix

    def read(self, images: Tensor) -> Reading:
        with captured(self.trunk.blocks[-2], "input") as entered:
            states = self.trunk.forward_features(images)
        # CaiT's class token joins after all blocks, TNT's and Twins' blocks are nested: their last states stand in
        earlier = entered[0] if entered and entered[0].shape == states.shape else states
        return Reading(self.pool(states), states[:, self.first:], earlier[:, self.first:])

    def project(self, states: Tensor) -> Tensor:
        return at_each_position(self.pool, states, copies=self.prefix + 1)


class TimmMap(Timm):
    """A trunk that ends in a feature map (ConvNeXt, EfficientNet, FastViT, RegNet, Swin); its cells are the positions.

    `mid_tokens` are what enters the last block, where that has as many cells; else they are the last map too.
    """

    revision = 2                         # 1: mid_tokens were the last map

    def __init__(self, encode: Encode, visual: Any, last: Tensor, earlier: Any):
        """`last` and `earlier`: what `_maps` gives for one image."""
        super().__init__(encode, visual)
        self.last_block: nn.Module | None = _last_block(self.trunk)
        self.layout = "NLC" if last.ndim == 3 else getattr(self.trunk, "output_fmt", "NCHW")
        with torch.no_grad():
            pooled = self.trunk.forward_head(last)
        first = next((module for module in visual.head.modules() if isinstance(module, nn.Linear)), None)
        # open_clip sizes the projection for the last map, even where the trunk widens the pooled map first (MobileNet)
        self.head_reads_mean = first is not None and pooled.ndim == 2 and first.in_features != pooled.shape[-1]
        earlier = self._cells(earlier) if isinstance(earlier, Tensor) and earlier.ndim == last.ndim else None
        if earlier is not None and earlier.shape[1] == self._cells(last).shape[1]:
            self.width = earlier.shape[2]
        else:
            self.last_block, self.width = None, self._cells(last).shape[2]

    def tune_for_cpu(self, own: bool) -> None:
        if own:
            self.trunk = self.visual.trunk = without_batch_norms(self.trunk, self.visual.image_size, "forward_features")
            self.last_block = self.last_block and _last_block(self.trunk)
        self.trunk.to(memory_format=torch.channels_last)
        keep_freed_memory()

    def pooled(self, images: Tensor) -> Tensor:
        return self.pool(self.trunk.forward_features(images)) if self.head_reads_mean else self.encode(images)

    def pool(self, states: Tensor) -> Tensor:
        return self.visual.head(self._cells(states).mean(1)) if self.head_reads_mean else super().pool(states)

    def read(self, images: Tensor) -> Reading:
        last, earlier = _maps(self.trunk, self.last_block, images)
        return Reading(self.pool(last), self._cells(last), self._cells(earlier))

    def project(self, states: Tensor) -> Tensor:
        return at_each_position(self._pool_cell, states)

    def _cells(self, feature_map: Tensor) -> Tensor:                                       # (b, p, e)
        if self.layout == "NLC":
            return feature_map
        return feature_map.flatten(1, 2) if self.layout == "NHWC" else feature_map.flatten(2).mT

    def _pool_cell(self, states: Tensor) -> Tensor:                                        # (n, 1, e) -> (n, d)
        maps = {"NLC": states, "NHWC": states[:, None], "NCHW": states.mT[..., None]}      # of 1 x 1
        return self.pool(maps[self.layout])


def _maps(trunk: Any, last_block: nn.Module | None, images: Tensor) -> tuple[Any, Any]:
    """The last feature map and what enters the last block; as the trunk has them, which need not be tensors."""
    if last_block is None:
        return (trunk.forward_features(images),) * 2
    with captured(last_block, "input") as entered:
        last = trunk.forward_features(images)
    return last, entered[0] if entered else last


def _last_block(trunk: Any) -> nn.Module | None:
    """The last block of the last stage by timm's own list of stages; None if the trunk has no such list."""
    stages = getattr(trunk, "feature_info", None)
    stage = dict(trunk.named_modules()).get(stages[-1]["module"]) if stages else None
    blocks = [] if stage is None else [*getattr(stage, "blocks", stage).children()]
    return blocks[-1] if blocks else None


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GiB that it frees: feature maps then find their memory where the last ones were.

    glibc gives large blocks back to the system at once, which must clear them when they are taken again: 40 % of the
    time of EfficientNet-Lite on two cores (docs/results/performance.md). Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, limit in M_MMAP_THRESHOLD, M_TRIM_THRESHOLD:
            libc.mallopt(parameter, limit)


@torch.no_grad()
def without_batch_norms(model: nn.Module, size: int | tuple[int, int], method: str = "forward") -> nn.Module:
    """A copy of `model`, frozen in eval mode, whose batch norms are folded into the convolutions before them.

    A run of `method` on noise of `size` pixels shows which convolution feeds which norm. Should the copy differ by more
    than rounding, as where something else reads a convolution too, `model` itself is returned.
    """
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    folded = deepcopy(model)
    parents = {child: (parent, name) for parent in folded.modules() for name, child in parent.named_children()}
    pairs, wanted = _fed_by_convolutions(folded, partial(getattr(folded, method), images))
    for norm, convolution in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        parent, name = parents[norm]
        after = (getattr(norm, part, nn.Identity()) for part in ("drop", "act"))           # of timm's BatchNormAct2d
        setattr(parent, name, nn.Sequential(*(part for part in after if not isinstance(part, nn.Identity))))
    found = getattr(folded, method)(images)
    return folded if (wanted - found).abs().max() <= 1e-3 * wanted.abs().max() else model


def _fed_by_convolutions(model: nn.Module, run: Callable[[], Tensor]
                         ) -> tuple[list[tuple[nn.BatchNorm2d, nn.Conv2d]], Tensor]:
    """The norms whose input is the output of a convolution, both called once by `run`; and what `run` returned."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}      # holds the tensors, so that an id is of one alone
    pairs, calls = [], Counter()

    def entered(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] += 1
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats and id(inputs[0]) in outputs:
            pairs.append((module, outputs[id(inputs[0])][0]))

    def left(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        # not of other classes: they change their weights as they run
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2dSame):
            outputs[id(output)] = module, output

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(entered).remove)
            hooks.callback(module.register_forward_hook(left).remove)
        output = run()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1], output
