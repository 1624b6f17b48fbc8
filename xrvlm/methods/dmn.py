"""DMN (Zhang et al., CVPR 2024, arXiv:2403.17589): a memory of the shots and a memory of the test images."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.memory import most_certain, nearness
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

CAPACITY = 50                            # test images that a class keeps
WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)    # candidates of b2 and b3


class DMN(OnZeroShot):
    """The class probabilities of zero-shot plus those that two memories of images give.

        p = p_text + b2 * p_dynamic + b3 * p_static        normalised; `logits` are its logarithm
        p_memory = softmax over classes of scale * x . normalize(sum over m of exp(-beta * (1 - x . m)) * m)

    m are the features that a class has in the memory: in the static one, of its text and its shots; in the dynamic one,
    of these and of the test images that zero-shot predicts as the class, at most 50, those of lowest entropy. So each
    class gets a prototype that depends on the image. The memory (c, 1 + s + 50, d) is stored, s shots at most.

    This is the paper's variant that trains nothing. Memories, beta = 5.5, 50 and the candidates of the weights are
    those of the authors' program (YBZh/DMN), which takes the two weights that are best on the test images. Here they
    are the best on the validation images where there are any; else on the shots, each asked with itself out of the
    memories, where every class has two; else 1. Ties go to the smaller b2, then b3. Other deviations: a test image has
    one view, where the program predicts it by the most certain tenth of 32; the text is that of `zero_shot`; the
    paper's projections, trained on the shots, are not there; nor its form without shots. The paper predicts each test
    image when it arrives. Here the memory is filled from all test images first, which ends in the same memory in any
    order, and every image, a test image or a new one (`predict`, `eval` on others), is scored by it; it does not
    change. On equal features and images the program's functions give each of the three shares to 4e-7.

    Args:
        beta: sharpness: how fast the weight of an image in a memory falls with its distance.
    """

    recipe, transductive, label = TRAINING_FREE, True, "DMN"
    memory: Tensor                       # (c, m, d) of the text, the shots, the test images; 0 where there are fewer
    there: Tensor                        # (c, m) bool
    static: Tensor                       # () how many of the m are text and shots
    weights: Tensor                      # (2,) b2, b3

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, beta: float = 5.5):
        super().__init__(clip, classes)
        if not beta > 0:
            raise UserError(f"{option('method.beta')} must be above 0, found {beta}")
        self.beta, self.logit_scale, count = beta, clip.logit_scale, len(classes.names)
        self.register_buffer("memory", torch.zeros(count, 1, clip.embed_dim))
        self.register_buffer("there", torch.ones(count, 1, dtype=torch.bool))
        self.register_buffer("static", torch.tensor(1))
        self.register_buffer("weights", torch.ones(2))
        self.register_load_state_dict_pre_hook(_allocate)

    @torch.no_grad()
    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        super().prepare(clip, support)
        pooled, y = pooled_features(support, self.memory.device)                           # (n, d), (n,)
        slots = _slots(y)                                                                  # (n,)
        self.static = self.static.new_tensor(int(slots.max()) + 1)
        self.memory = self.memory.new_zeros(len(self.memory), int(self.static), pooled.shape[1])
        self.there = torch.zeros(self.memory.shape[:2], dtype=torch.bool, device=pooled.device)
        self.memory[:, 0], self.there[:, 0] = self.zero_shot.weights, True
        self.memory[y, slots], self.there[y, slots] = pooled, True

    @torch.no_grad()
    def transduce(self, clip: FrozenCLIP, unlabelled: Features, support: FeatureSource | None,
                  val: FeatureSource | None = None) -> None:
        pooled = unlabelled.pooled.to(self.memory)                                         # (q, d)
        rows, there = most_certain(self.zero_shot.logits(Features(pooled), self.zero_shot.weights), CAPACITY)
        self.memory = torch.cat([self.memory, pooled[rows] * there[..., None]], dim=1)
        self.there = torch.cat([self.there, there], dim=1)
        self._choose(support, val)

    @property
    def learned_parameters(self) -> int:
        return self.weights.numel()      # a memory holds the images, nothing is fitted to them

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        text, *memories = self.log_shares(x, class_features)
        shifted = [shares + weight.log() for shares, weight in zip(memories, self.weights, strict=True)]
        return torch.stack([text, *shifted]).logsumexp(dim=0)                              # (b, c)

    def log_shares(self, x: Features, class_features: Tensor, but: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """(b, c) each: log-probabilities of the text, of the dynamic and of the static memory.

        Args:
            but: for each image the class and the slot in the memory that it must not see: its own.
        """
        cosines = torch.einsum("bd,cmd->bcm", x.pooled, self.memory)                       # (b, c, m)
        near = nearness(cosines, self.beta) * self.there
        if but is not None:
            near[torch.arange(len(near)), but[0], but[1]] = 0
        shots = torch.arange(near.shape[2], device=near.device) < self.static              # (m,)
        return [self.zero_shot.logits(x, class_features).log_softmax(dim=1),
                *((self.logit_scale * self._prototypes(cosines, weights)).log_softmax(dim=1)
                  for weights in (near, near * shots))]

    def _prototypes(self, cosines: Tensor, weights: Tensor) -> Tensor:
        """(b, c) cosines with the normalised weighted sum of a class's memory, from the cosines with its members."""
        alike = torch.einsum("cmd,cnd->cmn", self.memory, self.memory)                     # (c, m, m)
        squares = (torch.einsum("bcm,cmn->bcn", weights, alike) * weights).sum(dim=2)      # (b, c)
        return (cosines * weights).sum(dim=2) / squares.clamp(min=1e-12).sqrt()

    def _choose(self, support: FeatureSource | None, val: FeatureSource | None) -> None:
        """Set the two weights."""
        assert support is not None
        if val is not None:
            pooled, y = pooled_features(val, self.memory.device)
            but = None
        else:
            pooled, y = pooled_features(support, self.memory.device)
            but = y, _slots(y)
            if y.bincount(minlength=len(self.memory)).min() < 2:
                return
        each = [shares.exp() for shares in self.log_shares(Features(pooled), self.zero_shot.weights, but)]
        text, dynamic, static = each                                                       # (n, c) each
        right = {pair: int(((text + pair[0] * dynamic + pair[1] * static).argmax(dim=1) == y).sum())
                 for pair in product(WEIGHTS, WEIGHTS)}
        self.weights = self.weights.new_tensor(max(right, key=lambda pair: right[pair]))


def _slots(labels: Tensor) -> Tensor:
    """(n,) where each shot stands in the memory of its class, behind the text."""
    before = F.one_hot(labels).cumsum(dim=0)                                               # (n, c)
    return before.gather(1, labels[:, None]).squeeze(1)


def _allocate(method: DMN, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the memory the size that it has in the saved model."""
    for name in ("memory", "there"):
        if f"{prefix}{name}" in state:
            setattr(method, name, getattr(method, name).new_empty(state[f"{prefix}{name}"].shape))
