"""Token ids of texts and class prompts. Libraries cut what is too long without a word; here it is an error."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from xrvlm.backbone import NamePosition, PromptLayout
from xrvlm.errors import UserError, unknown


class Tokens:
    """A tokenizer whose special tokens are known.

    Args:
        encode: text -> its token ids with the special ones, neither padded nor cut.
        window: positions of the text tower.
        pad: the id behind [EOS].
        end: the id of [EOS].
        decode: ids -> their text.
        special: the ids that are no words.
        pads_left: the text stands at the end of the window.
    """

    def __init__(self, encode: Callable[[str], list[int]], *, window: int, pad: int, end: int,
                 decode: Callable[[list[int]], str], special: Collection[int], pads_left: bool = False):
        self.encode, self.window, self.pad, self.end, self.pads_left = encode, window, pad, end, pads_left
        self.decode = decode
        empty = encode("")
        if not empty or empty[-1] != end:
            raise UserError(f"the tokenizer ends a text with {empty[-1:]}, not with its [EOS] id {end}; "
                            "learnable prompts are read there: use the tokenizer that belongs to the checkpoint")
        self.start = empty[:-1]                                          # [SOS], or nothing (SigLIP)
        self.special = frozenset({*special, *self.start, end})

    @classmethod
    def of_hf(cls, tokenizer: Any, *, window: int, clean: Callable[[str], str] = str) -> "Tokens":
        """A tokenizer of transformers, behind `clean`."""
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        return cls(lambda text: tokenizer(clean(text)).input_ids, window=window, pad=tokenizer.pad_token_id, end=end,
                   decode=tokenizer.decode, special=tokenizer.all_special_ids,
                   pads_left=tokenizer.padding_side == "left")

    def words(self, text: str) -> list[int]:
        """The ids of `text` without special tokens."""
        ids = self.encode(text)
        return ids[len(self.start):len(ids) - 1]

    def word(self, token: int) -> str:
        """What a token id stands for; empty for a special one and for a piece of a letter."""
        text = "" if token in self.special else self.decode([token]).strip()
        return "" if "\ufffd" in text else text

    def sentences(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded ids (n, t) and the positions of [EOS] (n,). UserError for a text longer than the window."""
        rows = [self.encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.window:
                raise UserError(f"the text {text!r} has {len(row)} tokens with [SOS] and [EOS], the text tower reads "
                                f"{self.window}; shorten it by {len(row) - self.window}")
        return self._padded(rows), self._first(rows) + _lengths(rows) - 1

    def layout(self, names: Sequence[str], length: int, position: NamePosition) -> PromptLayout:
        """See `FrozenCLIP.layout`."""
        prompts = [self._prompt(name, length, position) for name in names]
        rows = [ids for ids, _ in prompts]
        slots = torch.tensor([places for _, places in prompts], dtype=torch.long).reshape(len(prompts), length)
        first = self._first(rows)                                                      # (c,)
        return PromptLayout(self._padded(rows), slots + first[:, None], first + _lengths(rows) - 1)

    def sentence_layout(self, texts: Sequence[str]) -> PromptLayout:
        """See `FrozenCLIP.sentence_layout`: a slot under each word, and further ones under padding, as many for all."""
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

    def _prompt(self, name: str, length: int, position: NamePosition) -> tuple[list[int], list[int]]:
        """Ids of one class prompt and the positions of its `length` learned vectors."""
        text = name.replace("_", " ").strip()
        named = self.words(text)
        if not named:
            raise UserError(f"class name {name!r} has no word that the tokenizer knows; give the class another name")
        segments: dict[NamePosition, tuple[list[int], int, list[int], int, list[int]]] = {
            "end": ([], length, self.words(f"{text}."), 0, []),
            "front": (named, length, self.words("."), 0, []),
            "middle": ([], length // 2, named, length - length // 2, self.words(".")),
        }
        if position not in segments:
            raise unknown("position of the class name", position, segments)
        ids, slots = [*self.start], []
        for segment in segments[position]:
            if isinstance(segment, int):    # learned vectors
                slots += range(len(ids), len(ids) + segment)
                # ignored ids, but none that is special: towers look for those to find [EOS] or padding
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
        """Where each text begins in its window, (n,)."""
        lengths = _lengths(rows)
        return self.window - lengths if self.pads_left else torch.zeros_like(lengths)


def _lengths(rows: list[list[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.long)
