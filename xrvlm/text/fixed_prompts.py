"""The text parts of a class without a learned context: part descriptions, fixed or learned on, and free vectors."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, unknown
from xrvlm.text.class_text import ClassText
from xrvlm.text.learned_prompts import ClassPrompts, encode_prompts

PartPrompts = Literal["learned", "descriptions", "learned_from_descriptions", "vectors"]


class PartDescriptions(ClassPrompts):
    """One fixed sentence a part and class, encoded once."""

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
        turned = PartDescriptions(clip, classes)
        if turned.text_parts != self.text_parts or turned.part_names != self.part_names:
            raise UserError(f"the model was trained with the parts {self._named()}; the new classes have "
                            f"{turned._named()}; describe them by the same parts in the same order")
        turned.to(clip.device).prepare(clip)
        return turned

    def _named(self) -> str:
        return ", ".join(self.part_names or ()) or f"{self.text_parts} without names"

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return self.features


class ClassSentences(ClassPrompts):
    """One prompt a class: the mean of its sentences, as zero-shot reads them."""

    open_classes = True
    features: Tensor                     # (1, c, d)

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__()
        self.classes, self.label, self.text_parts = classes, classes.kind, 1
        self.register_buffer("features", torch.zeros(1, len(classes.names), clip.embed_dim))

    def prepare(self, clip: FrozenCLIP) -> None:
        self.features[0] = ensemble(clip, self.classes)                                   # (c, d)

    def for_classes(self, clip: FrozenCLIP, classes: ClassText) -> "ClassSentences":
        turned = ClassSentences(clip, classes).to(clip.device)
        turned.prepare(clip)
        return turned

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return self.features


class LearnedDescriptions(ClassPrompts):
    """Learned vectors in place of the words of each part sentence, which start as those words.

    All prompts have as many vectors as the longest sentence has words. Those that a shorter one does not need stand
    where its padding is: a causal tower never reads them, any other starts from the padding that it knows.
    """

    label = "learned_from_descriptions"

    def __init__(self, clip: FrozenCLIP, classes: ClassText):
        super().__init__()
        sentences = _sentences(clip, classes)
        self.text_parts = len(sentences)
        # each part has sentences of its own, so that a prompt of a part and a class is a "class" to the tower
        self.layout, start = clip.sentence_layout([text for part in sentences for text in part])    # (g * c, l, w)
        self.vectors = nn.Parameter(start.unflatten(0, (self.text_parts, -1)))             # (g, c, l, w)

    def forward(self, clip: FrozenCLIP) -> Tensor:
        features = encode_prompts(clip, self.vectors.flatten(0, 1)[None], self.layout)     # (1, g * c, d)
        return features.unflatten(1, self.vectors.shape[:2]).squeeze(0)                    # (g, c, d)


class FreeVectors(ClassPrompts):
    """Learned points of the joint space and no language at all: what the text tower adds is measured against them."""

    label = "vectors"

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, text_parts: int):
        super().__init__()
        self.text_parts = text_parts
        self.vectors = nn.Parameter(F.normalize(torch.randn(text_parts, len(classes.names), clip.embed_dim), dim=-1))

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return F.normalize(self.vectors, dim=-1)


class NoPrompts(ClassPrompts):
    """For a head that reads the image alone."""

    label = "none"

    def __init__(self, *, text_parts: int):
        super().__init__()
        self.text_parts = text_parts

    def forward(self, clip: FrozenCLIP) -> Tensor:
        return torch.zeros(0, device=clip.device)


def ensemble(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) unit norm: the mean over the sentences of a class, each of unit norm before."""
    return F.normalize(sentence_means(clip, classes), dim=-1)


def sentence_means(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) the mean over the sentences of a class, each of unit norm: the shorter, the less they agree."""
    sentences, counts = _in_a_row(classes)
    return torch.stack([features.mean(dim=0) for features in clip.encode_text(sentences).split(counts)])


def tower_length(clip: FrozenCLIP, classes: ClassText) -> Tensor:
    """(c, d) as `ensemble`, but as long as the tower makes the sentences of a class on average."""
    sentences, counts = _in_a_row(classes)
    lengths = torch.stack([part.mean() for part in clip.text_lengths(sentences).split(counts)])        # (c,)
    return lengths[:, None] * ensemble(clip, classes)


def _in_a_row(classes: ClassText) -> tuple[list[str], list[int]]:
    """The sentences of all classes, and how many each has."""
    return ([sentence for prompts in classes.prompts for sentence in prompts],
            [len(prompts) for prompts in classes.prompts])


def described_parts(kind: PartPrompts, clip: FrozenCLIP, classes: ClassText) -> ClassPrompts:
    """The prompts of a `kind` that is made from part descriptions."""
    kinds = {"descriptions": PartDescriptions, "learned_from_descriptions": LearnedDescriptions}
    if kind not in kinds:
        raise unknown("method.part_prompts", kind, get_args(PartPrompts))
    return kinds[kind](clip, classes)


def _sentences(clip: FrozenCLIP, classes: ClassText) -> tuple[tuple[str, ...], ...]:
    """The part sentences as g rows of c; UserError where there are none, or one that the text tower cannot read."""
    if classes.parts is None:
        raise UserError("method.part_prompts with descriptions needs a sentence for each part of each class: name a "
                        "file with text.parts=FILE.json ({class: {part: sentence}}) or a shipped one with "
                        "text.parts=NAME, or use method.part_prompts=learned")
    part_names = classes.part_names or [f"number {part + 1}" for part in range(len(classes.parts[0]))]
    for name, sentences in zip(classes.names, classes.parts, strict=True):
        for part, sentence in zip(part_names, sentences, strict=True):
            try:
                clip.sentence_layout([sentence])
            except UserError as error:
                raise UserError(f"part {part!r} of class {name!r}: {error}") from error
    return tuple(zip(*classes.parts, strict=True))
