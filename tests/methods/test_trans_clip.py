from functools import partial
from math import exp, log, pi, sqrt

import pytest
import torch
import torch.nn.functional as F
from banks import CLASSES, bank_of, features_of, prepared
from photos import photo_folder

from xrvlm import image_folder
from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features.source import FeatureSettings, without_labels
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import TransCLIP, trans_clip
from xrvlm.methods.base import probabilities
from xrvlm.reporting.tables import terminal_table


def wide(rows, clip) -> torch.Tensor:
    """The few numbers of `rows` as features."""
    return F.pad(torch.tensor(rows), (0, clip.embed_dim - len(rows[0])))


def clusters(clip, count=8, *, seed=0, spread=0.1):
    """Test images and shots around the first three axes."""
    draws = torch.Generator().manual_seed(seed)
    labels, axes = torch.arange(3).repeat(count), torch.eye(clip.embed_dim)

    def noisy(at):
        return F.normalize(axes[at] + spread * torch.randn(len(at), clip.embed_dim, generator=draws), dim=1)

    return bank_of(Features(noisy(labels)), labels), bank_of(Features(noisy(torch.arange(3))), torch.arange(3))


def near_the_axes(method) -> TransCLIP:
    """The text of each class reads its own axis best, and some of all others."""
    noise = torch.randn(method.zero_shot.weights.shape, generator=torch.Generator().manual_seed(4))
    method.zero_shot.weights.copy_(F.normalize(torch.eye(*noise.shape) + 0.3 * noise, dim=1))
    return method


def accuracy(method, clip, bank) -> float:
    return (probabilities(method, clip, bank).argmax(dim=1) == bank.labels).float().mean().item()


def test_classes_are_the_weighted_means_and_one_variance_by_hand(clip):
    method = prepared(TransCLIP, clip)
    method.seen = wide([[0.6, 0.8], [0.8, -0.6], [0.0, 1.0]], clip)
    method._move_classes(torch.tensor([[0.5, 0.0, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 1.0]]))
    first = (0.5, 0.25)                                      # 0.5 * (0.6, 0.8) + 0.25 * (0.8, -0.6)
    length = sqrt(first[0] ** 2 + first[1] ** 2)
    centres = [[first[0] / length, first[1] / length], [0.8, -0.6], [0.0, 1.0]]
    torch.testing.assert_close(method.centres, wide(centres, clip))
    (a, b), mass = centres[0], 2.0
    along = (0.5 * (0.6 - a) ** 2 + 0.25 * (0.8 - a) ** 2) / mass
    across = (0.5 * (0.8 - b) ** 2 + 0.25 * (-0.6 - b) ** 2) / mass
    torch.testing.assert_close(method.variance[:2], torch.tensor([along, across]), rtol=1e-4, atol=1e-6)
    assert torch.equal(method.variance[2:], torch.full((clip.embed_dim - 2,), 1e-6)), "never zero"


def test_shares_by_hand(clip):
    method = prepared(TransCLIP, clip, text_weight=0.5)
    method.centres = wide([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], clip)
    method.variance = wide([[0.5, 0.25]], clip)[0] + torch.tensor([0.0, 0.0] + [1.0] * (clip.embed_dim - 2))
    prior, votes = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[1.2, 0.0, 0.6]])
    shares = method._log_shares(0.5 * prior.log(), wide([[0.8, 0.6]], clip), votes).softmax(dim=1)

    def density(first, second):                              # of the two numbers that differ, each a Gaussian
        return (exp(-(0.8 - first) ** 2 / (2 * 0.5)) / sqrt(2 * pi * 0.5)
                * exp(-(0.6 - second) ** 2 / (2 * 0.25)) / sqrt(2 * pi * 0.25))

    weights = [sqrt(0.2) * exp(log(density(1.0, 0.0)) / 50 + 1.2 / 6), sqrt(0.3) * exp(log(density(0.0, 1.0)) / 50),
               sqrt(0.5) * exp(log(density(0.6, 0.8)) / 50 + 0.6 / 6)]
    torch.testing.assert_close(shares, torch.tensor([[weight / sum(weights) for weight in weights]]))


def test_every_update_is_a_stationary_point_of_the_objective(clip):
    """The gradients are autograd's: nothing of the updates' algebra is used."""
    method, gamma = prepared(TransCLIP, clip, text_weight=0.5).double(), 0.7
    near_the_axes(method)
    test, shots = (bank.shards[0]["pooled"][:, 0].double() for bank in clusters(clip, spread=0.3))
    labels = F.one_hot(torch.arange(3)).double()
    method.seen = torch.cat([test, shots])
    values, near = method._graph()
    w = torch.zeros(len(method.seen), len(method.seen), dtype=torch.double).scatter_(1, near, values)
    prior = method.zero_shot.logits(Features(test), method.zero_shot.weights).log_softmax(dim=1)

    def objective(z, centres, variance):
        gauss = torch.distributions.Independent(torch.distributions.Normal(centres, variance.sqrt()), 1)
        density = gauss.log_prob(method.seen[:, None])                                     # (n, c)
        weight = torch.cat([torch.ones(len(test)), torch.full((len(shots),), gamma * len(test) / len(shots))])
        every = torch.cat([z, labels])
        return (-(weight[:, None] * every * density).sum() / 50 - (w * (every @ every.T)).sum() / 6
                + (z * (z.log() - 0.5 * prior)).sum())

    method._fit(test, shots, labels, gamma, (values, near))
    for _ in range(200):                 # with fixed classes, until the assignments no longer move
        votes = trans_clip._votes(method.shares, values, near)[:len(test)]
        z = method._log_shares(0.5 * prior, test, votes).softmax(dim=1)
        method.shares = torch.cat([z, labels])
    slope, = torch.autograd.grad(objective(z.requires_grad_(), method.centres, method.variance), z)
    torch.testing.assert_close(slope, slope.mean(dim=1, keepdim=True).expand_as(slope), rtol=0, atol=1e-9)
    each = torch.cat([torch.full((len(test),), 1 / len(test)), torch.full((len(shots),), gamma / len(shots))])
    method.variance = torch.full_like(method.variance, 0.1)          # equal in all directions, as a bound on mu needs
    method._move_classes(each[:, None].double() * method.shares)
    centres = method.centres.clone().requires_grad_()
    slope, = torch.autograd.grad(objective(z.detach(), centres, torch.full_like(method.variance, 0.1)), centres)
    along = (slope * method.centres).sum(dim=1, keepdim=True) * method.centres
    torch.testing.assert_close(slope, along, rtol=0, atol=1e-7)      # only across the sphere would it fall
    variance = method.variance.clone().requires_grad_()
    slope, = torch.autograd.grad(objective(z.detach(), method.centres, variance), variance)
    assert slope[variance > 1e-6].abs().max() < 1e-6


def test_similarity_is_the_positive_cosine_with_other_images(clip):
    method = prepared(TransCLIP, clip)
    method.seen = wide([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]], clip)
    found = method._similarity(wide([[1.0, 0.0], [0.0, -1.0]], clip))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.6], [0.0, 0.0, 0.0]]))


def reference(method, queries, shots, labels, power, gamma, rounds=10, steps=5):
    """The paper's updates image by image, in double precision."""
    f = [row.double() for row in (*queries, *shots)]
    q, n, c = len(queries), len(queries) + len(shots), method.shares.shape[1]
    y = method.zero_shot.logits(Features(queries), method.zero_shot.weights).double().softmax(dim=1)
    z = [*y, *F.one_hot(labels, c).double()]
    w = torch.zeros(n, n).double()
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -float(f[i] @ f[j]))
        for j in others[:3]:
            w[i, j] = max(0.0, float(f[i] @ f[j]))
    if len(shots):
        mu = [sum(f[i] for i in range(q, n) if labels[i - q] == k) for k in range(c)]
    else:
        mu = [sum(y[i, k] * f[i] for i in y[:, k].argsort(descending=True)[:8].tolist()) for k in range(c)]
    mu, sigma = [m / m.norm() for m in mu], torch.ones(len(f[0])).double() / len(f[0])
    weight = [1 / q] * q + [gamma / max(1, n - q)] * (n - q)
    for turn in range(rounds + 1):
        for _ in range(steps):
            new = []
            for i in range(q):
                gauss = torch.stack([-0.5 * ((f[i] - m) ** 2 / sigma).sum() for m in mu])
                heard = sum((w[i, j] + w[j, i]) * z[j] for j in range(n))
                new.append((power * y[i].log() + gauss / 50 + heard / 6).softmax(dim=0))
            z[:q] = new
        if turn < rounds:
            mu = [sum(weight[i] * z[i][k] * f[i] for i in range(n)) for k in range(c)]
            mu = [m / m.norm() for m in mu]
            sigma = sum(weight[i] * z[i][k] * (f[i] - mu[k]) ** 2 for i in range(n) for k in range(c)) / sum(weight)
    return torch.stack(z[:q]), torch.stack(mu), sigma


@pytest.mark.parametrize("rounds", [10, 1])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_whole_is_the_papers_updates_one_image_after_another(clip, labelled, rounds, monkeypatch):
    """All of them, and so few that the first classes still show."""
    if rounds == 1:
        monkeypatch.setattr(trans_clip, "ROUNDS", 1)
        monkeypatch.setattr(trans_clip, "SHARE_STEPS", 1)
    steps = 5 if rounds == 10 else 1
    taken, take = [], TransCLIP._log_shares
    monkeypatch.setattr(TransCLIP, "_log_shares", lambda self, *given: taken.append(1) or take(self, *given))
    test, support = clusters(clip, 4, spread=0.3)
    method = prepared(TransCLIP, clip, labelled=labelled)
    x = features_of(test)
    method.transduce(clip, x, support if labelled else None)
    shots = features_of(support).pooled if labelled else x.pooled[:0]
    shares, centres, variance = reference(method, x.pooled, shots, support.labels if labelled else support.labels[:0],
                                          0.5 if labelled else 1.0, 1.0, rounds, steps)
    assert len(taken) == (rounds + 1) * steps
    torch.testing.assert_close(method.shares[:12].double(), shares, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.centres.double(), centres, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.variance.double(), variance, rtol=1e-3, atol=1e-5)
    if labelled:
        assert torch.equal(method.shares[12:], torch.eye(3)), "a shot keeps its label"


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_said_of_a_test_image_is_its_share(clip, labelled):
    test, support = clusters(clip, spread=0.3)
    method = prepared(TransCLIP, clip, labelled=labelled)
    method.transduce(clip, features_of(test), support if labelled else None)
    said = probabilities(method, clip, test)
    torch.testing.assert_close(said, method.shares[:len(said)], rtol=0.02, atol=0.01)
    moved = (method.shares[:len(said)] - probabilities(prepared(TransCLIP, clip), clip, test)).abs().max()
    assert moved > 0.05, "zero-shot says something else"


def test_equally_near_images_all_count_in_whatever_order_they_stand(clip):
    """Five images that are the same but for their shares: three of them would be the choice of a runtime."""
    method = prepared(TransCLIP, clip)
    method.seen, method.reach = wide([[0.6, 0.8]] * 5 + [[1.0, 0.0]], clip), torch.ones(6)
    method.shares = torch.eye(3)[[0, 0, 1, 2, 2, 1]]
    x = Features(wide([[0.0, 1.0]], clip))
    log_prior = method.zero_shot.logits(x, method.zero_shot.weights).log_softmax(dim=1)
    expected = method._log_shares(method.text_weight * log_prior, x.pooled, 0.8 * torch.tensor([[2.0, 1.0, 2.0]]))
    torch.testing.assert_close(method.logits(x, method.zero_shot.weights), expected)
    method.seen, method.shares = method.seen.flip(0), method.shares.flip(0)
    torch.testing.assert_close(method.logits(x, method.zero_shot.weights), expected)


@pytest.mark.parametrize("labelled", [True, False])
def test_unlabelled_images_help_themselves_and_new_ones_which_move_nothing(clip, labelled):
    (test, support), (new, _) = clusters(clip, 30), clusters(clip, 30, seed=7)
    method = near_the_axes(prepared(TransCLIP, clip, labelled=labelled))
    method.transduce(clip, features_of(test), support if labelled else None)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for bank in (test, new):
        assert accuracy(method, clip, bank) > accuracy(method.zero_shot, clip, bank)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_order_of_the_test_images_does_not_matter_and_is_not_told(clip):
    test, support = clusters(clip, spread=0.3)
    drawn = without_labels(test)
    assert isinstance(drawn, Features)
    assert not torch.equal(drawn.pooled, features_of(test).pooled)
    assert torch.equal(drawn.pooled.sort(dim=0).values, features_of(test).pooled.sort(dim=0).values)
    one, other = prepared(TransCLIP, clip), prepared(TransCLIP, clip)
    one.transduce(clip, features_of(test), support)
    other.transduce(clip, drawn, support)
    torch.testing.assert_close(probabilities(one, clip, test), probabilities(other, clip, test), rtol=1e-3, atol=1e-4)


def test_the_weight_of_the_shots_is_chosen_on_validation_images(clip):
    """The shots are mislabelled: the less they weigh, the better."""
    (test, support), (val, _) = clusters(clip, 30), clusters(clip, 10, seed=3)
    wrong = bank_of(features_of(support), (support.labels + 1) % 3)

    def fitted(val=None, **options):
        method = near_the_axes(prepared(TransCLIP, clip, **options))
        method.transduce(clip, features_of(test), wrong, val)
        return method

    assert accuracy(fitted(shots_weight=10.0), clip, test) < accuracy(fitted(shots_weight=0.1), clip, test) - 0.1
    assert torch.equal(fitted(val).centres, fitted(shots_weight=0.1).centres)
    assert torch.equal(fitted().centres, fitted(shots_weight=1.0).centres), "1 where there is nothing to choose on"
    assert torch.equal(fitted(val, shots_weight=10.0).centres, fitted(shots_weight=10.0).centres)


def test_saved_with_the_images_it_has_seen(clip, tmp_path):
    test, support = clusters(clip)
    method = prepared(TransCLIP, clip)
    method.transduce(clip, features_of(test), support)
    header = ModelHeader.of(clip, TransCLIP, CLASSES)
    loaded = Classifier.load(Classifier(clip, method, header).save(tmp_path), clip).method
    assert loaded.seen.shape == (27, clip.embed_dim)
    assert torch.equal(probabilities(loaded, clip, test), probabilities(method, clip, test))


@pytest.mark.parametrize(("labelled", "label", "shots"),
                         [(True, "TransCLIP †", 2), (False, "TransCLIP zero-shot †", 0)])
def test_a_run_is_marked_and_sees_no_label_of_the_test_part(tmp_path, clip, monkeypatch, labelled, label, shots):
    given = {}
    transduce = TransCLIP.transduce

    def spied(self, clip, unlabelled, support, val=None):
        given.update(unlabelled=unlabelled, support=support, val=val)
        return transduce(self, clip, unlabelled, support, val)

    monkeypatch.setattr(TransCLIP, "transduce", spied)
    options = RunOptions(runs=tmp_path / "runs", features=FeatureSettings(cache=str(tmp_path / "cache")))
    run = adapt(clip, image_folder(photo_folder(tmp_path / "photos")), partial(TransCLIP, labelled=labelled), shots=2,
                options=options)
    assert type(given["unlabelled"]) is Features, "and nothing else"
    assert given["unlabelled"].tokens is None
    assert (given["support"] is None) == (not labelled)
    assert run.record.transductive
    assert (run.record.shots, run.record.label_budget > 0) == (shots, labelled)
    table = terminal_table([run.record])
    assert label in table
    assert "† transductive: saw the test images, without labels" in " ".join(table.split())
    shots = 6 if labelled else 0
    assert torch.equal(run.classifier.method.seen[:-shots or None], given["unlabelled"].pooled)


def test_new_classes_are_refused(tmp_path, clip):
    with pytest.raises(UserError, match="^TransCLIP is bound to the 2 classes that it was trained on; methods that "
                                        "score new classes: .*zero_shot"):
        adapt(clip, image_folder(photo_folder(tmp_path / "photos", 8, "abcd")), TransCLIP, protocol="base_to_new",
              options=RunOptions(runs=tmp_path / "runs"))


@pytest.mark.parametrize("name", ["text_weight", "shots_weight"])
def test_bad_options_are_told(clip, name):
    with pytest.raises(UserError, match=f"{name} must be at least 0 where it is set, found -1"):
        TransCLIP(clip, CLASSES, **{name: -1.0})


def test_an_image_whose_features_are_rounded_otherwise_is_no_neighbour_of_itself(clip):
    method = prepared(TransCLIP, clip)
    method.seen = F.normalize(torch.randn(4, clip.embed_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = F.normalize(torch.randn(4, clip.embed_dim, generator=torch.Generator().manual_seed(1)), dim=1)
    again = F.normalize(method.seen + 7e-3 * noise, dim=1)    # twice as far as bfloat16 has been seen to put it
    apart = 1 - (again * method.seen).sum(dim=1)
    assert ((apart > 1e-5) & (apart < 1e-4)).all()
    assert (method._similarity(again).diagonal() == 0).all()
    assert (method._similarity(F.normalize(method.seen + 0.1 * noise, dim=1)).diagonal() > 0).all()
