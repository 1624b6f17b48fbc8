"""The interface of image parts, and the parts of XR-VLM+, which are computed. XR-VLM's are learned."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.distributed import generator
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling

POSITIONS = 20_000                       # that k-means clusters
SOFTNESS = 0.16                          # temperature of the assignment, in squared distance per dimension
ABSENT = 0.01                            # positions; a part with fewer counts as absent
TINY = 1e-6                              # added to what is divided by


class ImageParts(nn.Module, ABC):
    """m parts of an image."""

    @abstractmethod
    def part_maps(self, x: Features) -> Tensor:
        """(b, m, p) non-negative weights of the positions."""

    @abstractmethod
    def of(self, x: Features) -> Tensor:
        """(b, m, d) part features; of parts that differ in width (b, f), one after the other."""

    def names(self) -> Iterator[str]:
        """What to call the parts."""
        part = 0
        while True:
            part += 1
            yield f"part {part}"


class FoundParts(ImageParts):
    """The whole image, m soft clusters of positions, the pairs of channels of an earlier block (bilinear pooling), and
    what a second tower, or a second look, says of the image.

    Each position is assigned to the cluster centres near it. The pairs are the mean over the positions z of z z^T, once
    as they are and once less the image's mean position, each to unit length: which channels occur together (Lin et al.,
    ICCV 2015, arXiv:1504.07889). Call `fit` with the training images before use; nothing here is trained.

    Args:
        image_parts: m; 0: no clusters.
        inputs, scaling: of the whole image's feature, see `ImageInputs`.
        pairs: k, the directions of the earlier block whose pairs are taken, its largest; 0: no pairs.
    """

    mean: Tensor                         # (d,) of the positions of the training images
    deviation: Tensor
    centres: Tensor                      # (m, d) of standardised positions
    directions: Tensor                   # (e, k) orthonormal
    offset: Tensor                       # (f,) mean over the training images of the features of all parts in a row
    scale: Tensor                        # (f,) what these are multiplied with then

    def __init__(self, clip: FrozenCLIP, image_parts: int, *, inputs: Inputs = "auto", scaling: Scaling = "auto",
                 pairs: int = 0):
        super().__init__()
        self.inputs, pairs = ImageInputs(clip, inputs, scaling, second=False), min(pairs, clip.image_width)
        self.second = ImageInputs(clip, "second", scaling) if clip.second_width else None
        self.second_name = clip.second_name
        self.widths = (self.inputs.width, *[clip.embed_dim] * image_parts, *[2 * pairs ** 2] * (pairs > 0),
                       *[clip.second_width] * (self.second is not None))
        # of parts: the whole image, clusters, pairs; and a second tower, if there is one
        self.groups = (1, image_parts, int(pairs > 0), *[1] * (self.second is not None))
        positions: frozenset[Need] = frozenset({"tokens", "mid_tokens"} if pairs else {"tokens"})
        self.needs = self.inputs.needs | positions | (self.second.needs if self.second else frozenset())
        for name, value in (("mean", torch.zeros(clip.embed_dim)), ("deviation", torch.ones(clip.embed_dim)),
                            ("centres", torch.zeros(image_parts, clip.embed_dim)),
                            ("directions", torch.eye(clip.image_width, pairs)),
                            ("offset", torch.zeros(sum(self.widths))), ("scale", torch.ones(sum(self.widths)))):
            self.register_buffer(name, value)
        self.register_load_state_dict_pre_hook(_of_revision_1)

    def names(self) -> Iterator[str]:
        yield "whole image"
        yield from (f"part {part + 1}" for part in range(len(self.centres)))
        yield from ["pairs of channels"] * self.groups[2]
        yield from [self.second_name] * len(self.groups[3:])

    @torch.no_grad()
    def fit(self, support: FeatureSource, device: torch.device) -> Tensor:
        """Take all that the parts need from the training images; returns their features (n, f).

        The features of the whole image, of all clusters together, of the pairs and of the second tower then each have
        mean 0 and mean squared length 1.
        """
        self.inputs.fit(support)
        if self.second:
            self.second.fit(support)
        self._find(support, device)
        rows = torch.cat([self._unscaled(x.to(device)) for x, _ in support.in_order()])    # (n, f)
        self.offset.copy_(rows.mean(dim=0))
        rows -= self.offset
        clusters = self.blocks()[1]
        self.scale[clusters] = 1 / (rows[:, clusters].square().mean(dim=0).sqrt() + TINY)
        rows *= self.scale
        for some in self.blocks():
            factor = rows[:, some].square().sum(dim=1).mean().clamp(min=TINY).rsqrt()
            self.scale[some] *= factor
            rows[:, some] *= factor
        return rows

    def blocks(self) -> list[slice]:
        """The columns of the whole image, the clusters and the pairs, empty where there are none; then those of the
        second tower, if there is one.
        """
        widths = iter(self.widths)
        ends = [0]
        for count in self.groups:
            ends.append(ends[-1] + sum(next(widths) for _ in range(count)))
        return [slice(*ends[index:index + 2]) for index in range(len(self.groups))]

    def weigh(self, weights: tuple[float, ...]) -> Tensor:
        """Multiply the mean squared lengths of the blocks by `weights`; returns each column's factor (f,)."""
        factor = torch.ones_like(self.scale)
        for some, weight in zip(self.blocks(), weights, strict=True):
            factor[some] = weight ** 0.5
        self.scale *= factor
        return factor

    def part_maps(self, x: Features) -> Tensor:
        """(b, 1 + m + 1 + 1, p); the maps of the whole image and of the second tower are uniform, that of the pairs is
        the squared length.

        Zero on a class token, and near zero everywhere for a part that the image does not show.
        """
        assert x.tokens is not None
        maps = self._maps(x.tokens, self._standard(x.tokens))                              # (b, m, p)
        on_grid = torch.zeros_like(x.tokens[:, None, :, 0])                                # (b, 1, p)
        on_grid[:, :, x.tokens.shape[1] - patches(x.tokens).shape[1]:] = 1
        uniform = on_grid / on_grid.sum(dim=2, keepdim=True)
        found = [uniform, maps]
        if self.groups[2]:
            assert x.mid_tokens is not None
            energy = on_grid * (x.mid_tokens @ self.directions).square().sum(dim=2)[:, None]
            found.append(energy / energy.sum(dim=2, keepdim=True).clamp(min=TINY))
        return torch.cat([*found, *[uniform] * len(self.groups[3:])], dim=1)

    def of(self, x: Features) -> Tensor:
        """(b, f)"""
        return (self._unscaled(x) - self.offset) * self.scale

    def _unscaled(self, x: Features) -> Tensor:
        found = [self.inputs(x)]
        if self.groups[1]:
            assert x.tokens is not None
            standard = self._standard(x.tokens)                                            # (b, p, d)
            found.append((self._maps(x.tokens, standard) @ standard).flatten(1))           # (b, m * d)
        if self.groups[2]:
            assert x.mid_tokens is not None
            found += _pairs(patches(x.mid_tokens) @ self.directions)
        if self.second:
            found.append(self.second(x))
        return torch.cat(found, dim=1)

    def _find(self, support: FeatureSource, device: torch.device) -> None:
        """Cluster centres, and the directions of the earlier block along which its positions are longest."""
        from sklearn.cluster import KMeans

        share = POSITIONS / len(support.labels)
        draws, chosen = generator(0, "positions"), []
        products = torch.zeros(len(self.directions), len(self.directions), dtype=torch.float64)    # (e, e)
        for x, _ in support.in_order():
            if self.groups[1]:
                assert x.tokens is not None
                rows = patches(x.tokens).flatten(0, 1).cpu()                               # (b * h * w, d)
                chosen.append(rows[torch.randperm(len(rows), generator=draws)[:max(1, round(share * len(x)))]])
            if self.groups[2]:
                assert x.mid_tokens is not None
                rows = patches(x.mid_tokens).flatten(0, 1).to(device).float()
                products += (rows.mT @ rows).cpu().double()
        if self.groups[2]:
            largest = torch.linalg.eigh(products).eigenvectors.flip(1)[:, :self.directions.shape[1]]
            self.directions.copy_(largest * largest.sum(dim=0).sign())
        if not self.groups[1]:
            return
        positions = torch.cat(chosen).to(device)                                           # (n, d)
        if len(positions) < (wanted := len(self.centres)):
            raise UserError(f"{option('method.image_parts', wanted)} is more than the {len(positions)} positions of "
                            "all training images: use fewer parts, or more shots")
        self.mean.copy_(positions.mean(dim=0))
        self.deviation.copy_(positions.std(dim=0) + TINY)
        found = KMeans(wanted, n_init="auto", random_state=0).fit(self._standard(positions).cpu().numpy())
        self.centres.copy_(torch.from_numpy(found.cluster_centers_))

    def _standard(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) / self.deviation

    def _maps(self, tokens: Tensor, standard: Tensor) -> Tensor:
        nearness = 2 * standard @ self.centres.T - self.centres.square().sum(dim=1)        # (b, p, m)
        share = (nearness / (SOFTNESS * standard.shape[-1])).softmax(dim=-1)               # (b, p, m)
        before = tokens.shape[1] - patches(tokens).shape[1]
        share = share * (torch.arange(tokens.shape[1], device=tokens.device) >= before)[:, None]
        return (share / (share.sum(dim=1, keepdim=True) + ABSENT)).transpose(1, 2)


def _pairs(positions: Tensor) -> list[Tensor]:
    """Two (b, k * k) from (b, p, k); an image's product of the two together has mean length 1."""
    centred = positions - positions.mean(dim=1, keepdim=True)
    return [0.5 ** 0.5 * F.normalize((rows.mT @ rows).flatten(1), dim=1) for rows in (positions, centred)]


def _of_revision_1(module: FoundParts, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: the features of all parts had one width and stood in rows."""
    if f"{prefix}part_mean" in state:
        state[f"{prefix}offset"] = state.pop(f"{prefix}part_mean").flatten()
        state[f"{prefix}scale"] = 1 / state.pop(f"{prefix}part_deviation").flatten()
        del state[f"{prefix}length"]
        state[f"{prefix}directions"] = module.directions


def patches(tokens: Tensor) -> Tensor:
    """(b, h * w, d) the positions of the grid, from (b, p, d); a class token before them is left out."""
    return tokens[:, -math.isqrt(tokens.shape[1]) ** 2:]


def grid(maps: Tensor) -> Tensor:
    """(..., h, w) from maps (..., p) of a square image; a class token before the grid is left out."""
    side = math.isqrt(maps.shape[-1])
    return maps[..., -side * side:].unflatten(-1, (side, side))
