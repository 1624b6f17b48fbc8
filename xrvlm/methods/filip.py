"""FILIP head (Yao et al., ICLR 2022, arXiv:2111.07783): late interaction of a photo's positions with words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP, Words
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, ClassFeatures, Recipe
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

RECIPE = Recipe("filip", epochs=30, batch_size=32, optimizer="adamw", learning_rate=0.01, weight_decay=0.01,
                warmup_epochs=1, by_step=True)
CELLS = 2**25                            # cosines at once, of images, positions and words


class FILIP(OnZeroShot):
    """Zero-shot logits plus the weighted late interaction of the photo's positions with the words of each class.

    With v_p the positions of a photo and w_t the words of a class, both of unit norm,

        score = 1/2 mean over p of max over t of v_p . w_t  +  1/2 mean over t of max over p of v_p . w_t
        logit = zero-shot + alpha * scale * score,        v_p = normalize(x_p + A x_p)

    with x_p (d,) the states of the image tower at its last layer, projected as the pooled feature is, a class token
    among them; w_t the states of the text tower at the words (`FrozenCLIP.encode_words`); and scale the tower's factor
    of a cosine. The words are those of all sentences of a class: its descriptions, or its name in each template.

    The paper trains both towers by this score alone, with the mean of the two directions' losses. A CLIP that was
    trained by pooled features has no reason to lay a word where it stands in the photo. So, unlike the paper, zero-shot
    stays beside the score, and A (d, d) and alpha are learned from the labels. Both start at zero: the untrained method
    is zero-shot. Not in the paper either: one loss, over the classes of an image. Weight decay draws A to zero. The
    recipe is our own, chosen on drawn birds (world 0).

    Args:
        labelled: learn A and alpha; False: A is zero and alpha is `weight`, no label is used.
        weight: alpha where nothing is learned.
    """

    label = "FILIP head"
    recipe, needs, open_classes = RECIPE, frozenset({"pooled", "tokens"}), True
    words: Tensor                        # (c, t, d) of all sentences of a class; 0 where a class has fewer
    there: Tensor                        # (c, t) bool

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, labelled: bool = True, weight: float = 1.0):
        super().__init__(clip, classes)
        if not weight > 0:
            raise UserError(f"{option('method.weight')} must be above 0, found {weight}")
        self.learns = labelled
        self.map = nn.Parameter(torch.zeros(clip.embed_dim, clip.embed_dim), requires_grad=labelled)    # (d, d) A
        self.weight = nn.Parameter(torch.tensor(0.0 if labelled else weight), requires_grad=labelled)   # () alpha
        if not labelled:
            self.recipe, self.label = TRAINING_FREE, "FILIP zero-shot"
        self.logit_scale = clip.logit_scale
        self.register_buffer("words", torch.zeros(len(classes.names), 0, clip.embed_dim))
        self.register_buffer("there", torch.zeros(len(classes.names), 0, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_allocate)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        super().prepare(clip, support)
        self._read(clip, self.classes)

    def turn(self, clip: FrozenCLIP, classes: ClassText) -> None:
        super().turn(clip, classes)
        self._read(clip, classes)

    @property
    def learned_parameters(self) -> int:
        return super().learned_parameters if self.learns else 0

    def logits(self, x: Features, class_features: ClassFeatures) -> Tensor:
        zero_shot = self.zero_shot.logits(x, class_features)                               # (b, c)
        return zero_shot + self.weight * self.logit_scale * self.score(x)

    def score(self, x: Features) -> Tensor:
        """(b, c) the late interaction with the words of each class."""
        positions = self.positions(x)                                                      # (b, p, d)
        if torch.compiler.is_compiling():    # the batch size of an exported graph varies, the number of chunks cannot
            return self._score(positions)
        at_once = max(1, CELLS // (positions.shape[1] * self.there.numel()))
        return torch.cat([self._score(chunk) for chunk in positions.split(at_once)])

    def positions(self, x: Features) -> Tensor:
        """(b, p, d) what is compared with the words, of unit norm."""
        assert x.tokens is not None
        return F.normalize(x.tokens + x.tokens @ self.map, dim=-1)

    def terms(self, x: Features, label: int) -> tuple[Tensor, Tensor]:
        """What the words of a class, t of them, add to its logit for one photo, beside zero-shot.

        Returns:
            (p, t) cosines of positions and words, and (2, t) terms that add to `weight * logit_scale * score`: of each
            word at its own best position, and as the best word of positions.
        """
        cosines = self.positions(x)[0] @ self.words[label, self.there[label]].T            # (p, t)
        best, chosen = cosines.max(dim=1)                                                  # (p,), (p,)
        as_best = torch.zeros_like(cosines[0]).index_add(0, chosen, best) / len(cosines)   # (t,)
        terms = torch.stack([cosines.amax(dim=0) / cosines.shape[1], as_best]) / 2         # (2, t)
        return cosines, self.weight * self.logit_scale * terms

    def _score(self, positions: Tensor) -> Tensor:
        cosines = torch.einsum("bpd,ctd->bpct", positions, self.words)                     # (b, p, c, t)
        # a word that is not there is nobody's best, and counts nothing; `max` sends a gradient to one of equal cosines
        best_word = cosines.masked_fill(~self.there, -torch.inf).max(dim=3).values         # (b, p, c)
        best_place = cosines.max(dim=1).values                                             # (b, c, t), 0 if not there
        to_photo = (best_place * self.there).sum(dim=2) / self.there.sum(dim=1)            # (b, c)
        return (best_word.mean(dim=1) + to_photo) / 2

    @torch.no_grad()
    def _read(self, clip: FrozenCLIP, classes: ClassText) -> None:
        read = [class_words(clip, classes, label) for label in range(len(classes.names))]
        longest = max(len(words.features) for words in read)
        self.words = torch.stack([F.pad(words.features, (0, 0, 0, longest - len(words.features))) for words in read])
        self.there = self.words.any(dim=2)                                                 # (c, t)


def class_words(clip: FrozenCLIP, classes: ClassText, label: int) -> Words:
    """The words of all sentences of one class, one after the other: features (t, d), all there, spelt in one row."""
    words = clip.encode_words(classes.prompts[label])
    spelt = tuple(word for sentence in words.spelt for word in sentence)
    return Words(words.features[words.there], words.there[words.there], (spelt,))


def _allocate(method: FILIP, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: make room for as many words as the saved model has."""
    for name in ("words", "there"):
        if f"{prefix}{name}" in state:
            setattr(method, name, getattr(method, name).new_empty(state[f"{prefix}{name}"].shape))
