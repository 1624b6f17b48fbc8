"""Linear probe (Radford et al., ICML 2021, arXiv:2103.00020): logistic regression on frozen features."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.distributed import generator
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource
from xrvlm.methods.base import TRAINING_FREE, Method
from xrvlm.methods.inputs import ImageInputs, Inputs, Scaling
from xrvlm.text.class_text import ClassText

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-4, 11))    # C, the inverse of the L2 penalty, to 100,000
FOLDS = 5
PATIENCE = 3                             # stop after this many strengths in a row without an improvement
ROUGH = 1e-3                             # tolerance of the solutions that only choose C: a tenth of the time
LONE_STRENGTH = 30.0                     # with one image a class


class LinearProbe(Method):
    """Multinomial logistic regression by L-BFGS on the evaluation view.

    C, the inverse of the L2 penalty, is the one of lowest loss on the validation images where there are any, else in
    cross-validation on the training images; with one image a class nothing can be held out, and it is fixed. CLIP's
    protocol takes the features as they are and always sweeps C on validation images, by accuracy. Of its ViTs it takes
    those before the projection (appendix A.3 of the paper), as `inputs=auto` does.

    Args:
        inputs: the image feature: `auto`, `unprojected`, `pooled` or `pooled+mid`; see `ImageInputs`.
        scaling: of the feature: `auto`, `root_l2`, `l2`, `standard` or `none`; see `ImageInputs`.
        strength: C; None: chosen as above.
    """

    recipe = TRAINING_FREE
    label = "linear probe"
    prompts = "none"
    revision = 3                         # 2: unprojected, scaled, C by cross-validation; 3: as of `ImageInputs`

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, inputs: Inputs = "auto", scaling: Scaling = "auto",
                 strength: float | None = None):
        super().__init__(clip, classes)
        if strength is not None and not strength > 0:
            raise UserError(f"{option('method.strength')} must be above 0 or null, found {strength}")
        self.strength, self.chosen, self.inputs = strength, strength, ImageInputs(clip, inputs, scaling)
        self.needs = self.inputs.needs
        self.label = "linear probe" if inputs == "auto" else f"linear probe ({inputs.replace('+', ' + ')})"
        self.linear = nn.Linear(self.inputs.width, len(classes.names)).requires_grad_(False)

    @classmethod
    def options_of(cls, revision: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Revision 1 knew `inputs` alone, and its weights are those of unscaled features."""
        return {"inputs": "pooled", "scaling": "none"} | dict(options) if revision == 1 else dict(options)

    def prepare(self, clip: FrozenCLIP, support: FeatureSource | None, val: FeatureSource | None = None) -> None:
        assert support is not None
        train = self.inputs.fit(support)                                                   # (n, f), (n,)
        self.chosen = self.strength
        if self.chosen is None:
            splits = [(train, self.inputs.of(val))] if val is not None else folds(*train)
            self.chosen = best_strength(splits) if splits else LONE_STRENGTH
        weight, bias = next(path(*train, [self.chosen]))
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)

    def settle(self, trained: Any) -> None:
        self.strength = trained.chosen

    def class_features(self, clip: FrozenCLIP) -> Tensor:
        return self.linear.weight                                                          # (c, f)

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        return F.linear(self.inputs(x), class_features, self.linear.bias)                  # (b, c)


Examples = tuple[Tensor, Tensor]         # features (n, f) and labels (n,)


def folds(x: Tensor, y: Tensor) -> list[tuple[Examples, Examples]]:
    """(training, held out) pairs, stratified by class. The only image of a class is never held out."""
    fold = stratified(y, FOLDS)
    fold[F.one_hot(y).sum(dim=0)[y] == 1] = -1
    return [((x[fold != held], y[fold != held]), (x[fold == held], y[fold == held]))
            for held in range(int(fold.max()) + 1)]


def stratified(labels: Tensor, count: int) -> Tensor:
    """(n,) the fold of each image, from 0: those of a class are dealt out to `count` folds in a random order."""
    order = torch.randperm(len(labels), generator=generator(0, "folds")).to(labels.device)
    drawn = F.one_hot(labels[order]).cumsum(dim=0).gather(1, labels[order][:, None])[:, 0] - 1     # of its class
    return torch.empty_like(drawn).scatter(0, order, drawn % count)


def path(x: Tensor, y: Tensor, strengths: Sequence[float], tolerance: float = 1e-5) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights (c, f) and biases (c,) for each strength, each solution the start of the next.

    n images span at most n dimensions: where these are fewer, the problem is solved there, with the same result.
    """
    from sklearn.linear_model import LogisticRegression

    basis = torch.linalg.qr(x.T).Q if x.shape[1] > len(x) else None                        # (f, n)
    inside = (x if basis is None else x @ basis).numpy()
    solver = LogisticRegression(max_iter=5000, tol=tolerance, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():      # with one image a class it asks whether classes are meant
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            solver.set_params(C=strength).fit(inside, y.numpy())
        weight, bias = (torch.tensor(value) for value in (solver.coef_, solver.intercept_))
        weight = weight if basis is None else weight @ basis.T
        if len(weight) == 1:             # of two classes scikit-learn gives one row, for the second
            weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
        yield weight, bias


def best_strength(splits: list[tuple[Examples, Examples]]) -> float:
    """The C of lowest loss on the held-out images; each path of solutions goes from a strong penalty to a weak one."""
    paths = [path(x, y, STRENGTHS, ROUGH) for (x, y), _ in splits]
    best, lowest, worse = STRENGTHS[0], float("inf"), 0
    for strength, solutions in zip(STRENGTHS, zip(*paths, strict=True), strict=False):
        loss = sum(F.cross_entropy(x @ weight.T + bias, y, reduction="sum").item()
                   for (weight, bias), (_, (x, y)) in zip(solutions, splits, strict=True))
        best, lowest, worse = (strength, loss, 0) if loss < lowest else (best, lowest, worse + 1)
        if worse == PATIENCE:
            break
    return best
