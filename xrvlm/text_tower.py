"""The text side of a frozen CLIP: prompts of constant tokens and learned vectors in, features at [EOS] out.

Two ways, equal in value and gradient: `LibraryText` calls a library's own encoder whatever it is, `CausalText`
(causal_text.py) computes what a causal transformer needs. Both take any number of classes in bounded memory. Letters as
in xrvlm/backbone.py; `n` prompts. docs/text_tower.md says why each step is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xrvlm.errors import UserError, unknown

TextPath = Literal["fast", "plain"]
PROMPTS_AT_ONCE = 256                    # bounds the memory where no gradient is kept
GIB = 2**30
CPU_MEMORY = 4.0                         # GiB for what a backward pass needs: a constant, not what is free just now,
GPU_SHARE = 0.5                          # since the chunks decide in which order floats are summed


def check_text_path(path: TextPath) -> None:
    if path not in get_args(TextPath):
        raise unknown("path through the text tower", path, get_args(TextPath))


class Prompts(NamedTuple):
    """c prompts, on the CPU."""

    tokens: Tensor                       # (c, t) ids
    slots: Tensor                        # (c, l) positions of the learned vectors
    ends: Tensor                         # (c,) position of [EOS]
    shared: int = 0                      # how many of the l vectors, from the first on, are the same in all prompts

    def split(self, sizes: list[int]) -> Iterator["Prompts"]:
        parts = zip(self.tokens.split(sizes), self.slots.split(sizes), self.ends.split(sizes), strict=True)
        return (Prompts(tokens, slots, ends, self.shared) for tokens, slots, ends in parts)


class TextTower(ABC):
    """Holds references to modules of the tower, owns nothing: it is no module itself.

    Args:
        memory_gb: GiB that the activations kept for the backward pass may take; beyond it classes are computed in
            chunks, and again in the backward pass. None: 4 on a CPU, half of a GPU's memory.
    """

    def __init__(self, embedding: nn.Embedding, *, memory_gb: float | None = None):
        if memory_gb is not None and not memory_gb > 0:
            raise UserError(f"text_memory_gb={memory_gb} leaves no memory to the text side; give a number of GiB above "
                            "0, or null for the default")
        self.embedding, self.memory_gb = embedding, memory_gb
        self.bytes_a_position: dict[torch.dtype, float] = {}

    def encode_tokens(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """(n, t) token ids with [EOS] at `ends` (n,) -> (n, d), not normalised."""
        nothing = self.embedding.weight.new_zeros(1, 1, 0, self.embedding.embedding_dim)
        return self.encode_prompts(nothing, tokens, tokens[:, :0], ends)[0]

    def encode_prompts(self, context: Tensor, tokens: Tensor, slots: Tensor, ends: Tensor, *,
                       shared: int = 0) -> Tensor:
        """Learned vectors `context` (g, c or 1, l, w) at the positions `slots` (c, l) of `tokens` (c, t) -> (g, c, d).

        Differentiable in `context`; not normalised. `shared`: so many of the l vectors, from the first on, are the same
        for all classes; of a context (g, 1, l, w) all are. Of chunks that do not fit the memory together all but the
        last are computed without a graph, and once more in the backward pass; what all have in common is computed once.
        """
        prompts = Prompts(tokens, slots, ends, context.shape[2] if context.shape[1] == 1 else shared)
        sizes = self._chunks(context, prompts)
        if len(sizes) == 1:
            return self._features(prompts, context)
        beginning = self._beginning(prompts, context)
        contexts = context.split(sizes, dim=1) if context.shape[1] > 1 else (context,) * len(sizes)
        *before, last = zip(prompts.split(sizes), contexts, strict=True)
        features: list[Any] = [Recomputed.apply(self._features, part, vectors, beginning) for part, vectors in before]
        return torch.cat([*features, self._features(*last, beginning)], dim=1)         # (g, c, d)

    def _chunks(self, context: Tensor, prompts: Prompts) -> list[int]:
        """How many classes are computed together: as many as there is room for, the rest in the first chunk.

        The last chunk alone is not computed twice, so it should be the fullest.
        """
        needs, room = torch.ones_like(prompts.ends), PROMPTS_AT_ONCE / len(context)    # (c,) prompts
        if torch.is_grad_enabled() and context.requires_grad:
            common, needs = self._positions(prompts)                                   # (c,) positions of a text part
            room = self._memory() / self._bytes_a_position(prompts) / len(context) - common
        behind = needs.flip(0).cumsum(0)                                               # (c,) the last class first
        chunk = (behind / max(room, 1)).ceil().long() - 1
        return [size for size in chunk.bincount().flip(0).tolist() if size]

    def _memory(self) -> float:
        """Bytes."""
        if self.memory_gb is not None:
            return self.memory_gb * GIB
        device = self.embedding.weight.device
        if device.type == "cuda":
            return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
        return CPU_MEMORY * GIB

    def _bytes_a_position(self, prompts: Prompts) -> float:
        """What autograd keeps of each position, measured: what two prompts more add to two."""
        weight = self.embedding.weight
        if weight.dtype not in self.bytes_a_position:
            kept, (one, *_) = [], prompts.split([1] * len(prompts.ends))
            for count in (2, 4):
                tokens, slots, ends = (part.expand(count, *part.shape[1:]) for part in one[:3])
                several = Prompts(tokens, slots, ends)
                context = weight.new_zeros(1, count, one.slots.shape[1], weight.shape[1], requires_grad=True)
                kept.append(kept_bytes(lambda vectors=context, few=several: self._features(few, vectors)))
            positions = int(self._positions(several)[1][:2].sum())
            self.bytes_a_position[weight.dtype] = (kept[1] - kept[0]) / positions
        return self.bytes_a_position[weight.dtype]

    @abstractmethod
    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        """How many positions are computed once for all, and (c,) for each prompt alone."""

    def _beginning(self, prompts: Prompts, context: Tensor) -> Tensor | None:
        """What `_features` of any of `prompts` needs to know of the positions that all have in common."""
        return None

    @abstractmethod
    def _features(self, prompts: Prompts, context: Tensor, beginning: Tensor | None = None) -> Tensor:
        """(g, c or 1, l, w) -> (g, c, d)."""


class Recomputed(torch.autograd.Function):
    """`encode(prompts, *inputs)` that keeps nothing but its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, encode: Callable[..., Tensor], prompts: Prompts, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.encode, ctx.prompts = encode, prompts
        return encode(prompts, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:    # pyright: ignore
        needed = ctx.needs_input_grad[2:]
        inputs = [value if value is None else value.detach().requires_grad_(need)
                  for value, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            features = ctx.encode(ctx.prompts, *inputs)
        wanted = [value for value in inputs if value is not None and value.requires_grad]
        found = iter(torch.autograd.grad(features, wanted, gradient, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


def kept_bytes(compute: Callable[[], Tensor]) -> int:
    """Memory of all tensors that autograd keeps of `compute()` for its backward pass, the weights among them."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()           # an output that its own graph holds would never be freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        alive = compute()                # while its graph is, no address is given away twice
    del alive
    return sum(kept.values())


class LibraryText(TextTower):
    """Any tower: the library's own encoder, with the learned vectors put in behind its token embedding.

    Args:
        encode: (n, t) token ids -> (n, d).
        shortens: the tower is causal and its encoder takes fewer tokens than the window.
        memory_gb: see `TextTower`.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], embedding: nn.Embedding, *, shortens: bool = False,
                 memory_gb: float | None = None):
        super().__init__(embedding, memory_gb=memory_gb)
        self.encode, self.shortens = encode, shortens

    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        return 0, torch.full_like(prompts.ends, self._length(prompts))

    def _length(self, prompts: Prompts) -> int:
        return int(prompts.ends.max()) + 1 if self.shortens else prompts.tokens.shape[1]

    def _features(self, prompts: Prompts, context: Tensor, beginning: Tensor | None = None) -> Tensor:
        (g, _, length, width), c = context.shape, len(prompts.ends)
        tokens, slots = (part.repeat(g, 1).to(self.embedding.weight.device) for part in prompts[:2])    # (n, t), (n, l)
        tokens = tokens[:, :self._length(prompts)]
        if not length:
            return self.encode(tokens).unflatten(0, (g, c))

        vectors, caller = context.expand(g, c, length, width).flatten(0, 1), get_ident()    # (n, l, w)

        def put_in(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return _put(embedded, slots, vectors) if get_ident() == caller else embedded

        hook = self.embedding.register_forward_hook(put_in)
        try:
            return self.encode(tokens).unflatten(0, (g, c))                            # (g, c, d)
        finally:
            hook.remove()


def _put(embedded: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """(n, t, w) with `vectors` (n, l, w) at `slots` (n, l); those at positions that are not computed are left out."""
    at = slots[..., None].expand(-1, -1, embedded.shape[-1])
    length = embedded.shape[1]
    left_out = max(0, int(slots.max()) + 1 - length)
    return F.pad(embedded, (0, 0, 0, left_out)).scatter(1, at, vectors.to(embedded.dtype))[:, :length]
