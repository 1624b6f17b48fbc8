"""Reading a frozen image tower at every position, whatever library it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xrvlm.errors import UserError

POSITIONS_AT_ONCE = 512                  # bounds the memory of heads that widen what they pool


@dataclass(frozen=True)
class Reading:
    """What one pass of the image tower leaves behind, in the tower's own precision."""

    pooled: Tensor                       # (b, d) as the library returns it
    states: Tensor                       # (b, p, e) what the pooling head sees
    mid_tokens: Tensor                   # (b, p, e)


class ImageSide(ABC):
    """One kind of image tower. Holds references to its modules, owns nothing."""

    width: int                           # e; 0 for a tower without positions

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, d), the library's own image feature."""

    @abstractmethod
    def read(self, images: Tensor) -> Reading: ...

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """(b, p, e) -> (b, p, d): what the tower would return if every position were as this one."""


    def last_linear(self) -> nn.Linear | None:
        """What makes the image feature in the end, where that is one linear module."""
        return None

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        """(f, d) weight and (d,) bias of the last linear map; None for a tower that ends in none."""
        linear = self.last_linear()
        return None if linear is None else (linear.weight.T, linear.bias)

    def unprojected(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, d) as `pooled`, and (b, f) what the last linear map reads, of one pass; with a `projection` alone."""
        linear = self.last_linear()
        assert linear is not None
        with captured(linear, "input") as entered:
            pooled = self.pooled(images)
        return pooled, entered[0]


class WithoutPositions(ImageSide):
    """A tower that shows nothing but one feature an image."""

    width = 0

    def __init__(self, encode: Callable[[Tensor], Tensor], what: str):
        self.encode, self.what = encode, what

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def read(self, images: Tensor) -> Reading:
        raise UserError(f"the image tower {self.what} shows no positions to attend to; methods on pooled features "
                        "(zero_shot, linear_probe, coop ...) work with it, xr_vlm needs another backbone")

    def project(self, states: Tensor) -> Tensor:
        raise NotImplementedError


@contextmanager
def captured(module: nn.Module, side: Literal["input", "output"]) -> Iterator[list[Tensor]]:
    """The tensors that enter or leave `module` during the block, in this thread."""
    seen: list[Tensor] = []
    caller = get_ident()

    def keep_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() == caller:
            seen.append(inputs[0])

    def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if get_ident() == caller:
            seen.append(output[0] if isinstance(output, tuple) else output)

    if side == "input":
        hook = module.register_forward_pre_hook(keep_input)
    else:
        hook = module.register_forward_hook(keep_output)
    try:
        yield seen
    finally:
        hook.remove()


def at_each_position(head: Callable[[Tensor], Tensor], states: Tensor, copies: int = 1) -> Tensor:
    """`head`, which pools (n, copies, e) to (n, d), at each of the positions (b, p, e) alone -> (b, p, d)."""
    alone = states.flatten(0, 1)[:, None].expand(-1, copies, -1)                       # (b * p, copies, e)
    if torch.compiler.is_compiling():    # an exported graph has any number of images, not one number of pieces
        return head(alone).unflatten(0, states.shape[:2])
    return torch.cat([head(part) for part in alone.split(POSITIONS_AT_ONCE)]).unflatten(0, states.shape[:2])
