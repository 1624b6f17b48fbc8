"""The text encoder of a frozen CLIP: from prompts of constant tokens and learned vectors to features at [EOS].

There are two implementations with equal values and gradients. `LibraryTextEncoder` calls the encoder of any library.
`CausalTextEncoder` computes only the positions that a causal transformer needs. Both encode any number of classes in
bounded memory. Letters as in base.py; `n` prompts. docs/design/text_tower.md shows that each step is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xrvlm.backbones.base import NamePosition, PromptLayout
from xrvlm.errors import UserError, option, unknown

TextPath = Literal["fast", "plain"]
PROMPTS_AT_ONCE = 256                    # bounds the memory without gradients
GIB = 2**30
CPU_MEMORY = 4.0                         # GiB for saved activations: constants rather than the free memory,
GPU_SHARE = 0.5                          # because the chunks decide the order in which floats are summed


class Prompts(NamedTuple):
    """c prompts, on the CPU."""

    tokens: Tensor                       # (c, t) ids
    slots: Tensor                        # (c, l) positions of the learned vectors
    ends: Tensor                         # (c,) position of [EOS]
    shared: int = 0                      # the first `shared` of the l vectors are the same in all prompts

    def split(self, sizes: list[int]) -> Iterator["Prompts"]:
        chunks = zip(self.tokens.split(sizes), self.slots.split(sizes), self.ends.split(sizes), strict=True)
        return (Prompts(tokens, slots, ends, self.shared) for tokens, slots, ends in chunks)


class TextEncoder(ABC):
    """Encodes sentences and learned prompts. Not a module: it refers to modules of the model.

    Args:
        memory_gb: GiB for activations saved for the backward pass; classes that do not fit are encoded in chunks,
            which the backward pass recomputes. None: 4 on a CPU, half of a GPU's memory.
    """

    def __init__(self, embedding: nn.Embedding, *, memory_gb: float | None = None):
        if memory_gb is not None and not memory_gb > 0:
            raise UserError(f"{option('backbone.text_memory_gb', memory_gb)} leaves no memory to the text encoder; "
                            "pass a positive number of GiB, or "
                            f"{option('backbone.text_memory_gb', None)} for the default")
        self.embedding, self.memory_gb = embedding, memory_gb
        self.bytes_per_position: dict[torch.dtype, float] = {}

    def encode_tokens(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """(n, t) token ids with [EOS] at `ends` (n,) -> (n, d), not normalised."""
        no_context = self.embedding.weight.new_zeros(1, 1, 0, self.embedding.embedding_dim)
        return self.encode_prompts(no_context, tokens, tokens[:, :0], ends)[0]

    @abstractmethod
    def encode_window(self, tokens: Tensor) -> Tensor:
        """(n, t) token ids -> (n, d), not normalised, by the library's own encoder, which finds [EOS] itself.

        Unlike `encode_tokens` it computes the full window without a look at the ids, and so it can be traced.
        """

    def encode_prompts(self, context: Tensor, tokens: Tensor, slots: Tensor, ends: Tensor, *,
                       shared: int = 0) -> Tensor:
        """Encode `tokens` (c, t) with the learned vectors `context` (g, c or 1, l, w) at `slots` (c, l) -> (g, c, d).

        Differentiable in `context`; not normalised. The first `shared` of the l vectors are the same for all classes;
        with a context (g, 1, l, w) all are. If the classes do not fit the memory, they are encoded in chunks: all but
        the last without a graph, recomputed in the backward pass. The common prefix is computed once for all chunks.
        """
        prompts = Prompts(tokens, slots, ends, context.shape[2] if context.shape[1] == 1 else shared)
        sizes = self._chunks(context, prompts)
        if len(sizes) == 1:
            return self._features(prompts, context)
        prefix = self._prefix(prompts, context)
        contexts = context.split(sizes, dim=1) if context.shape[1] > 1 else (context,) * len(sizes)
        *before, last = zip(prompts.split(sizes), contexts, strict=True)
        features: list[Any] = [Recomputed.apply(self._features, chunk, vectors, prefix) for chunk, vectors in before]
        return torch.cat([*features, self._features(*last, prefix)], dim=1)            # (g, c, d)

    def _chunks(self, context: Tensor, prompts: Prompts) -> list[int]:
        """Number of classes in each chunk: as many as fit, the remainder in the first chunk.

        Only the last chunk is not recomputed, so it should be full.
        """
        needs, room = torch.ones_like(prompts.ends), PROMPTS_AT_ONCE / len(context)    # (c,) prompts
        if torch.is_grad_enabled() and context.requires_grad:
            common, needs = self._positions(prompts)                                   # (c,) positions per text part
            room = self._memory() / self._bytes_per_position(prompts) / len(context) - common
        total = needs.flip(0).cumsum(0)                                                # (c,) from the last class on
        chunk = (total / max(room, 1)).ceil().long() - 1
        return [size for size in chunk.bincount().flip(0).tolist() if size]

    def _memory(self) -> float:
        """In bytes."""
        if self.memory_gb is not None:
            return self.memory_gb * GIB
        device = self.embedding.weight.device
        if device.type == "cuda":
            return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
        return CPU_MEMORY * GIB

    def _bytes_per_position(self, prompts: Prompts) -> float:
        """Activation bytes that autograd saves per position, from the difference between 4 prompts and 2."""
        weight = self.embedding.weight
        if weight.dtype not in self.bytes_per_position:
            saved, (first, *_) = [], prompts.split([1] * len(prompts.ends))
            for count in (2, 4):
                tokens, slots, ends = (rows.expand(count, *rows.shape[1:]) for rows in first[:3])
                copies = Prompts(tokens, slots, ends)
                context = weight.new_zeros(1, count, first.slots.shape[1], weight.shape[1], requires_grad=True)
                saved.append(saved_bytes(lambda vectors=context, same=copies: self._features(same, vectors)))
            positions = int(self._positions(copies)[1][:2].sum())
            self.bytes_per_position[weight.dtype] = (saved[1] - saved[0]) / positions
        return self.bytes_per_position[weight.dtype]

    @abstractmethod
    def _positions(self, prompts: Prompts) -> tuple[int, Tensor]:
        """Number of positions computed once for all prompts, and (c,) those of each prompt."""

    def _prefix(self, prompts: Prompts, context: Tensor) -> Tensor | None:
        """What `_features` needs of the prefix that all `prompts` have in common; None: nothing."""
        return None

    @abstractmethod
    def _features(self, prompts: Prompts, context: Tensor, prefix: Tensor | None = None) -> Tensor:
        """(g, c or 1, l, w) -> (g, c, d)."""


class Recomputed(torch.autograd.Function):
    """`encode(prompts, *inputs)`, recomputed in the backward pass, which saves only the inputs."""

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


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes of all tensors that autograd saves for the backward pass of `compute()`, including weights."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()           # an output saved in its own graph would never be freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        alive = compute()                # while the graph lives, no address is reused
    del alive
    return sum(sizes.values())


class Tokens:
    """A tokenizer with known special tokens.

    Args:
        encode: text -> token ids with the special ones, neither padded nor truncated.
        window: number of positions of the text tower.
        pad: the id of padding.
        end: the id of [EOS].
        decode: ids -> text.
        special: the ids of special tokens.
        pads_left: padding precedes the text.
        tokenizer: what it is, for people.
    """

    def __init__(self, encode: Callable[[str], list[int]], *, window: int, pad: int, end: int,
                 decode: Callable[[list[int]], str], special: Collection[int], pads_left: bool = False,
                 tokenizer: str = ""):
        self.tokenizer = tokenizer
        self.encode, self.window, self.pad, self.end, self.pads_left = encode, window, pad, end, pads_left
        self.decode = decode
        empty = encode("")
        if not empty or empty[-1] != end:
            raise UserError(f"the tokenizer ends a text with {empty[-1:]}, not with its [EOS] id {end}, at which "
                            "learned prompts are read; use the tokenizer that belongs to the checkpoint")
        self.start = empty[:-1]                                          # [SOS], or empty (SigLIP)
        self.special = frozenset({*special, *self.start, end})

    @classmethod
    def of_hf(cls, tokenizer: Any, *, window: int, clean: Callable[[str], str] = str) -> "Tokens":
        """From a tokenizer of transformers; `clean` is applied to the text first."""
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        return cls(lambda text: tokenizer(clean(text)).input_ids, window=window, pad=tokenizer.pad_token_id, end=end,
                   decode=tokenizer.decode, special=tokenizer.all_special_ids,
                   pads_left=tokenizer.padding_side == "left", tokenizer=f"transformers {type(tokenizer).__name__}")

    def words(self, text: str) -> list[int]:
        """The ids of `text` without special tokens."""
        ids = self.encode(text)
        return ids[len(self.start):len(ids) - 1]

    def spoken(self, text: str) -> list[tuple[str, int]]:
        """The words of `text`, and for each how far its last token stands before [EOS]. UserError: it has none."""
        ids, found = self.words(text), []
        for last, token in enumerate(ids):
            if not any(map(str.isalnum, self.decode([token]))):
                continue
            # one word with the token before it where nothing stands between the two
            joined = found and found[-1][1] == last - 1 and " " not in self.decode(ids[last - 1:last + 1]).strip()
            first = found.pop()[2] if joined else last
            found.append((self.decode(ids[first:last + 1]).strip(), last, first))
        if not found:
            raise UserError(f"the text {text!r} has no word that the tokenizer knows; write another")
        return [(word, len(ids) - last) for word, last, _ in found]

    def word(self, token: int) -> str:
        """The text of a token id; empty for a special token and for a part of a character."""
        text = "" if token in self.special else self.decode([token]).strip()
        return "" if "\ufffd" in text else text

    def sentences(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded ids (n, t) and the positions of [EOS] (n,). UserError if a text does not fit the window."""
        rows = [self.encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.window:
                raise UserError(f"the text {text!r} has {len(row)} tokens with [SOS] and [EOS], the text tower reads "
                                f"{self.window}; shorten it by {len(row) - self.window}")
        return self._padded(rows), self._first(rows) + _lengths(rows) - 1

    def layout(self, names: Sequence[str], length: int, position: NamePosition,
               full_stop: bool = True) -> PromptLayout:
        """See `FrozenCLIP.layout`."""
        prompts = [self._prompt(name, length, position, full_stop) for name in names]
        rows = [ids for ids, _ in prompts]
        slots = torch.tensor([positions for _, positions in prompts], dtype=torch.long).reshape(len(prompts), length)
        first = self._first(rows)                                                      # (c,)
        return PromptLayout(self._padded(rows), slots + first[:, None], first + _lengths(rows) - 1)

    def sentence_layout(self, texts: Sequence[str]) -> PromptLayout:
        """See `FrozenCLIP.sentence_layout`: a slot at each word; slots at padding make their number equal."""
        tokens, ends = self.sentences(texts)
        counts = [len(self.words(text)) for text in texts]
        slots = []
        for text, end, count in zip(texts, ends.tolist(), counts, strict=True):
            if not count:
                raise UserError(f"the text {text!r} has no word that the tokenizer knows; write another")
            spare = max(counts) - count
            begin = end - count - len(self.start) - spare if self.pads_left else end + 1
            slots.append([*range(end - count, end), *range(begin, begin + spare)])
        return PromptLayout(tokens, torch.tensor(slots, dtype=torch.long), ends)

    def _prompt(self, name: str, length: int, position: NamePosition, full_stop: bool) -> tuple[list[int], list[int]]:
        """Ids of one class prompt and the positions of its `length` learned vectors."""
        text = name.replace("_", " ").strip()
        named, stop = self.words(text), self.words(".") if full_stop else []
        if not named:
            raise UserError(f"class name {name!r} has no word that the tokenizer knows; give the class another name")
        segments: dict[NamePosition, tuple[list[int], int, list[int], int, list[int]]] = {
            "end": ([], length, self.words(f"{text}.") if full_stop else named, 0, []),
            "front": (named, length, stop, 0, []),
            "middle": ([], length // 2, named, length - length // 2, stop),
        }
        if position not in segments:
            raise unknown("position of the class name", position, segments)
        ids, slots = [*self.start], []
        for segment in segments[position]:
            if isinstance(segment, int):    # the number of learned vectors
                slots += range(len(ids), len(ids) + segment)
                # any id but a special one: some towers find [EOS] or padding by those
                segment = named[:1] * segment
            ids += segment
        ids.append(self.end)
        if len(ids) > self.window:
            raise UserError(f"the prompt of class {name!r} has {len(ids)} tokens ({length} of them learned), the text "
                            f"tower reads {self.window}; shorten the name or the context by {len(ids) - self.window}")
        return ids, slots

    def _padded(self, rows: list[list[int]]) -> Tensor:
        tokens = torch.full((len(rows), self.window), self.pad, dtype=torch.long)
        for row, first, target in zip(rows, self._first(rows).tolist(), tokens, strict=True):
            target[first:first + len(row)] = torch.tensor(row, dtype=torch.long)
        return tokens

    def _first(self, rows: list[list[int]]) -> Tensor:
        """(n,) the position of the first token of each text."""
        lengths = _lengths(rows)
        return self.window - lengths if self.pads_left else torch.zeros_like(lengths)


def _lengths(rows: list[list[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.long)
