"""Class prompts without a learned context: part descriptions, fixed or fine-tuned, and free vectors."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, option, unknown
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ClassPrompts, check_told_apart, encode_prompts

PartPrompts = Literal["learned", "descriptions", "learned_from_descriptions", "vectors"]


class PartDescriptions(ClassPrompts):
    """One fixed sentence for each part of each class, encoded once."""

    label, open_classes = "part_descriptions", True

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__()
        self.sentences, self.part_names = _sentences(clip, classes), classes.part_names
        self.text_parts = len(self.sentences)
        self.features: Tensor
        self.register_buffer("features", torch.zeros(self.text_parts, len(classes.names), clip.embed_dim))

    def prepare(self, clip: FrozenCLIP) -> None:
        for part, sentences in enumerate(self.sentences):
            self.features[part] = clip.encode_text(sentences)                              # (c, d)

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> "PartDescriptions":
        converted = PartDescriptions(clip, classes)
        if converted.text_parts != self.text_parts or converted.part_names != self.part_names:
            raise UserError(f"the model was trained with the parts {self._named()}; the new classes have "
                            f"{converted._named()}; describe them by the same parts in the same order")
        converted.to(clip.device).prepare(clip)
        return converted

    def _named(self) -> str:
        return ", ".join(self.part_names or ()) or f"{self.text_parts} without names"

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return self.features


class ClassSentences(ClassPrompts):
    """One feature per class: the mean of its sentences, as in zero-shot classification."""

    open_classes = True
    features: Tensor                     # (1, c, d)

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__()
        self.classes, self.label, self.text_parts = classes, classes.kind, 1
        self.register_buffer("features", torch.zeros(1, len(classes.names), clip.embed_dim))

    def prepare(self, clip: FrozenCLIP) -> None:
        self.features[0] = ensemble(clip, self.classes)                                   # (c, d)

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> "ClassSentences":
        converted = ClassSentences(clip, classes).to(clip.device)
        converted.prepare(clip)
        return converted

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return self.features


class LearnedDescriptions(ClassPrompts):
    """Learned vectors in place of the words of each part sentence, initialised with the word embeddings.

    The number of vectors is that of the words in the longest sentence. In a shorter one the extra vectors replace
    padding: a causal tower ignores them, and for others they are initialised with the embedding of padding.
    """

    label = "learned_from_descriptions"

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__()
        sentences = _sentences(clip, classes)
        self.text_parts = len(sentences)
        # the sentences differ by part too, so the tower treats each pair of part and class as a class
        self.layout, start = clip.sentence_layout([text for part in sentences for text in part])    # (g * c, l, w)
        self.vectors = nn.Parameter(start.unflatten(0, (self.text_parts, -1)))             # (g, c, l, w)

    def forward(self, clip: FrozenCLIP) -> Tensor:
        features = encode_prompts(clip, self.vectors.flatten(0, 1)[None], self.layout)     # (1, g * c, d)
        return features.unflatten(1, self.vectors.shape[:2]).squeeze(0)                    # (g, c, d)


class FreeVectors(ClassPrompts):
    """Learned points of the joint space without text: a baseline that shows what the text tower contributes."""

    label = "vectors"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, text_parts: int):
        super().__init__()
        self.text_parts = text_parts
        self.vectors = nn.Parameter(F.normalize(torch.randn(text_parts, len(classes.names), clip.embed_dim), dim=-1))

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return F.normalize(self.vectors, dim=-1)


class NoPrompts(ClassPrompts):
    """For a head that uses only the image."""

    label = "none"

    def __init__(self, *, text_parts: int):
        super().__init__()
        self.text_parts = text_parts

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return torch.zeros(0, device=clip.device)


def ensemble(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) unit norm: the normalised mean over the unit-norm features of a class's sentences."""
    return F.normalize(sentence_means(clip, classes), dim=-1)


def sentence_means(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) the mean over the unit-norm features of a class's sentences, not normalised."""
    sentences, counts = _flattened(clip, classes)
    return torch.stack([features.mean(dim=0) for features in clip.encode_text(sentences).split(counts)])


def raw_means(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) the mean over the features of a class's sentences, each at the length that the tower gives it."""
    sentences, counts = _flattened(clip, classes)
    features = clip.text_lengths(sentences)[:, None] * clip.encode_text(sentences)                     # (s, d)
    return torch.stack([of_class.mean(dim=0) for of_class in features.split(counts)])


def _flattened(clip: FrozenCLIP, classes: ClassText) -> tuple[list[str], list[int]]:
    """The sentences of all classes in one list, and the number of each class."""
    if classes.kind == "names":
        check_told_apart(clip, classes.names)
    return ([sentence for prompts in classes.prompts for sentence in prompts],
            [len(prompts) for prompts in classes.prompts])


def described_parts(kind: PartPrompts, clip: FrozenCLIP, classes: ClassText) -> ClassPrompts:
    """The prompts of a `kind` that needs part descriptions."""
    kinds = {"descriptions": PartDescriptions, "learned_from_descriptions": LearnedDescriptions}
    if kind not in kinds:
        raise unknown(option("method.part_prompts"), kind, get_args(PartPrompts))
    return kinds[kind](clip, classes)


def _sentences(clip: FrozenCLIP, classes: ClassText) -> tuple[tuple[str, ...], ...]:
    """The part sentences as g rows of c; UserError if they are missing or the text tower cannot read one."""
    if classes.parts is None:
        raise UserError(f"{option('method.part_prompts')} with descriptions needs a sentence for each part of each "
                        f"class: pass {option('text.parts', 'FILE.json')} ({{class: {{part: sentence}}}}) or a shipped "
                        f"{option('text.parts', 'NAME')}, or use {option('method.part_prompts', 'learned')}")
    part_names = classes.part_names or [f"number {part + 1}" for part in range(len(classes.parts[0]))]
    for name, sentences in zip(classes.names, classes.parts, strict=True):
        for part, sentence in zip(part_names, sentences, strict=True):
            try:
                clip.sentence_layout([sentence])
            except UserError as error:
                raise UserError(f"part {part!r} of class {name!r}: {error}") from error
    return tuple(zip(*classes.parts, strict=True))
