"""TransCLIP (Zanella et al., NeurIPS 2024, arXiv:2406.01837): Gaussian classes fitted to the unlabelled test images.

The updates were derived again from the objective of the paper (section 3), and a test compares them with its gradients;
no code of the authors' program, which is under AGPL, is in this file. f are features of unit norm, Q the test images,
S the shots, y the zero-shot probabilities, z the class assignments (of a shot: its label) and p_ik = N(f_i; mu_k,
Sigma), with one diagonal Sigma for all classes. Minimised over z of Q, mu and Sigma:

    L = - a sum over Q of z_i . log p_i - a gamma |Q| / |S| sum over S of z_i . log p_i
        - b sum over i and j of w_ij z_i . z_j + sum over Q of z_i . (log z_i - lambda log y_i)

w_ij is the cosine of i and j where j is among the 3 nearest neighbours of i in Q and S, else 0. The derivative of L in
each block is set to zero in turn, the third term linearised at the z before, mu held at the norm of the features:

    z_i  ~  y_i ** lambda * exp(a log p_i + b sum over j of (w_ij + w_ji) z_j)                        test images only
    mu_k ~  mean over Q of z_ik f_i  +  gamma * mean over S of z_ik f_i        normalised
    Sigma = (mean over Q of sum_k z_ik (f_i - mu_k)**2  +  gamma * the same over S) / (1 + gamma)      diagonal, shared

lambda is the paper's. a = 1/50, b = 1/6 (the mean over both ends of three neighbours), ten rounds, the eight images of
an initial mean and the four gammas are figures of the authors' experiments. y is that of `zero_shot`, the ensemble of a
class's sentences. The authors choose gamma for each data set on validation images, each classified as its nearest test
image. Here validation images are assigned as new images are; without validation images gamma is 1: the shots together
weigh as much as the test images together.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.features.source import FeatureSource, pooled_features
from xrvlm.methods.base import TRAINING_FREE
from xrvlm.methods.zero_shot import OnZeroShot
from xrvlm.text.class_text import ClassText

NEIGHBOURS = 3
DENSITY_WEIGHT = 1 / 50
ROUNDS, SHARE_STEPS = 10, 5              # updates of the classes, and of z before each
CONFIDENT = 8                            # images of the initial mean of a class, without shots
SHOT_WEIGHTS = 0.1, 0.5, 1.0, 10.0       # gamma
SMALLEST = 1e-6                          # variance
SAME = 1e-4                              # at a smaller distance it is the same image with another rounding, or a copy
TIE = 1e-5                               # similarities that differ by less count as equal
ROWS = 4096                              # of the matrix of similarities at once


class TransCLIP(OnZeroShot):
    """Gaussian classes, fitted to all test images at once, with the zero-shot probabilities as a prior.

    The method stores the features and assignments of the images it was fitted to. The prediction for one of them is its
    assignment after one more update. A new image (`predict`, `eval` on other images) is assigned by the same update,
    from the fitted classes and its neighbours among the stored images, and does not change them.

    Args:
        labelled: use the shots; False: no label is used, and the run counts as zero-shot.
        text_weight: lambda; None: the paper's, 0.5 with shots and 1 without.
        shots_weight: gamma; None: chosen on the validation images, 1 where there are none.
    """

    recipe, transductive = TRAINING_FREE, True
    label = "TransCLIP"
    centres: Tensor                      # (c, d) mu
    variance: Tensor                     # (d,) the diagonal of Sigma
    seen: Tensor                         # (n, d) features of the test images, then of the shots
    shares: Tensor                       # (n, c) z, of the same
    reach: Tensor                        # (n,) similarity of the third neighbour of each

    def __init__(self, clip: FrozenCLIP, classes: ClassText, *, labelled: bool = True,
                 text_weight: float | None = None, shots_weight: float | None = None):
        super().__init__(clip, classes)
        for name, weight in (("text_weight", text_weight), ("shots_weight", shots_weight)):
            if weight is not None and not weight >= 0:
                raise UserError(f"{option(f'method.{name}')} must be at least 0 where it is set, found {weight}")
        self.learns, self.label = labelled, "TransCLIP" if labelled else "TransCLIP zero-shot"
        self.text_weight = (0.5 if labelled else 1.0) if text_weight is None else text_weight
        self.shots_weight = shots_weight
        count, width = len(classes.names), clip.embed_dim
        for name, value in (("centres", torch.zeros(count, width)), ("variance", torch.full((width,), 1 / width)),
                            ("seen", torch.zeros(0, width)), ("shares", torch.zeros(0, count)),
                            ("reach", torch.zeros(0))):
            self.register_buffer(name, value)
        self.register_load_state_dict_pre_hook(_allocate)

    @torch.no_grad()
    def transduce(self, clip: FrozenCLIP, unlabelled: Features, support: FeatureSource | None,
                  val: FeatureSource | None = None) -> None:
        queries = unlabelled.pooled.to(self.centres)                                       # (q, d)
        shots, labels = queries[:0], self.shares[:0]                                       # (s, d), (s, c)
        if self.learns and support is not None:
            shots, of_class = pooled_features(support, queries.device)
            labels = F.one_hot(of_class, len(self.centres)).to(queries)
        self.seen = torch.cat([queries, shots])                                            # (n, d)
        weights = [self.shots_weight if self.shots_weight is not None else 1.0]
        if self.shots_weight is None and val is not None and len(shots):
            weights = list(SHOT_WEIGHTS)
        graph = self._graph()
        scores = []
        for weight in weights if len(weights) > 1 else ():
            self._fit(queries, shots, labels, weight, graph)
            scores.append(self._accuracy(val))
        self._fit(queries, shots, labels, weights[scores.index(max(scores))] if scores else weights[0], graph)

    @property
    def learned_parameters(self) -> int:
        return self.centres.numel() + self.variance.numel() if self.learns else 0

    def logits(self, x: Features, class_features: Tensor) -> Tensor:
        similarity = self._similarity(x.pooled)                                            # (b, n)
        furthest = similarity.topk(min(NEIGHBOURS, len(self.seen)), dim=1).values[:, -1:]  # (b, 1) of x's neighbours
        # ties with the third neighbour count too: which of them topk returns differs between runtimes
        near = (similarity >= (furthest - TIE).clamp(min=TIE)).to(similarity)            # (b, n)
        chosen = (similarity >= (self.reach - TIE).clamp(min=TIE)).to(similarity)        # (b, n) x is their neighbour
        prior = self.zero_shot.logits(x, class_features).log_softmax(dim=1)                # (b, c)
        votes = (similarity * (near + chosen)) @ self.shares                               # (b, c)
        return self._log_shares(self.text_weight * prior, x.pooled, votes)

    def _fit(self, queries: Tensor, shots: Tensor, labels: Tensor, weight: float, graph: tuple[Tensor, Tensor]) -> None:
        """Fit classes and assignments to `queries` (q, d) and `shots` (s, d) of `labels` (s, c)."""
        log_prior = self.zero_shot.logits(Features(queries), self.zero_shot.weights).log_softmax(dim=1)
        self.shares = torch.cat([log_prior.exp(), labels])                                 # (n, c)
        self._start(queries, shots, labels, log_prior.exp())
        each = torch.cat([queries.new_full((len(queries),), 1 / len(queries)),
                          queries.new_full((len(shots),), weight / max(1, len(shots)))])[:, None]          # (n, 1)
        for turn in range(ROUNDS + 1):
            for _ in range(SHARE_STEPS):
                votes = _votes(self.shares, *graph)[:len(queries)]                         # (q, c)
                shares = self._log_shares(self.text_weight * log_prior, queries, votes).softmax(dim=1)
                self.shares = torch.cat([shares, labels])
            if turn < ROUNDS:
                self._move_classes(each * self.shares)

    def _start(self, queries: Tensor, shots: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        """The classes before the first round, from the zero-shot `probabilities` (q, c) and from the shots."""
        self.variance = torch.full_like(self.variance, 1 / len(self.variance))
        self.centres = F.normalize(labels.T @ shots if len(shots) else _confident(probabilities, queries), dim=1)

    def _move_classes(self, shares: Tensor) -> None:
        """Update the classes from weighted assignments `shares` (n, c)."""
        sums, mass = shares.T @ self.seen, shares.sum(dim=0)                               # (c, d), (c,)
        self.centres = F.normalize(sums, dim=1)
        self.variance = (self._squares(shares, sums, mass) / mass.sum()).clamp(min=SMALLEST)

    def _squares(self, shares: Tensor, sums: Tensor, mass: Tensor) -> Tensor:
        """(d,) the weighted sum of squared distances of the images from the centres, along each axis."""
        squares = shares.sum(dim=1) @ self.seen.square() - 2 * (sums * self.centres).sum(dim=0)
        return squares + mass @ self.centres.square()

    def _log_shares(self, log_prior: Tensor, pooled: Tensor, votes: Tensor) -> Tensor:
        """(b, c) log assignments, up to a constant of each image."""
        precise = self.centres / self.variance                                             # (c, d)
        density = pooled @ precise.T - 0.5 * (precise * self.centres).sum(dim=1)           # (b, c)
        return log_prior + DENSITY_WEIGHT * density + votes / (2 * NEIGHBOURS)

    def _similarity(self, pooled: Tensor) -> Tensor:
        """(b, n) cosines with the stored images, 0 where negative and for the image itself."""
        cosine = pooled @ self.seen.T                                                      # (b, n)
        return cosine.clamp(min=0) * (cosine < 1 - SAME)

    def _graph(self) -> tuple[Tensor, Tensor]:
        """(n, 3) similarities of the neighbours of each image, and their indices; sets `reach`."""
        found = [self._similarity(rows).topk(min(NEIGHBOURS, len(self.seen)), dim=1) for rows in self.seen.split(ROWS)]
        values, near = (torch.cat(column) for column in zip(*found, strict=True))
        self.reach = values[:, -1]
        return values, near

    def _accuracy(self, source: FeatureSource | None) -> float:
        assert source is not None
        right = [(self.logits(x, self.zero_shot.weights).argmax(dim=1) == y.to(x.pooled.device)).float()
                 for x, y in _on(self.centres.device, source)]
        return torch.cat(right).mean().item()


def _on(device: torch.device, source: FeatureSource) -> Iterator[tuple[Features, Tensor]]:
    for x, y in source.in_order():
        yield x.to(device), y


def _confident(probabilities: Tensor, queries: Tensor) -> Tensor:
    """(c, d) the sum of the most probable images of each class, weighted by their probability."""
    chances, rows = probabilities.topk(min(CONFIDENT, len(queries)), dim=0)                # (8, c)
    return torch.einsum("ic,icd->cd", chances, queries[rows])


def _votes(shares: Tensor, values: Tensor, near: Tensor) -> Tensor:
    """(n, c) assignments of the neighbours of each image and of those it is a neighbour of, weighted by similarity."""
    votes = torch.zeros_like(shares)
    for value, other in zip(values.T[..., None], near.T, strict=True):                     # (n, 1), (n,)
        votes = (votes + value * shares[other]).index_add(0, other, value * shares)
    return votes


def _allocate(method: TransCLIP, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the stored images the number that they have in the saved model."""
    for name in ("seen", "shares", "reach"):
        if f"{prefix}{name}" in state:
            setattr(method, name, getattr(method, name).new_empty(state[f"{prefix}{name}"].shape))
