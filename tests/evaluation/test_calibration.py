"""Calibration, unknown scores and conformal sets, against libraries and numbers worked out by hand."""

import math

import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score, roc_curve

from xrvlm.errors import UserError
from xrvlm.evaluation.calibration import Scaling, fit_temperature, fit_vector
from xrvlm.evaluation.conformal import SET_SCORES, coverage_table, misfit, quantile, sets
from xrvlm.evaluation.metrics import brier, nll
from xrvlm.evaluation.unknown import aupr, auroc, figures, fpr_at, largest_of_positions, oscr, score, threshold


def drawn(seed: int = 0, *, images: int = 300, classes: int = 7, sharp: float = 6.0):
    """Logits that are `sharp` times too sure, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(right.softmax(1), 1, generator=generator)[:, 0]
    return sharp * right, labels


def loss(scaling: Scaling, logits, labels) -> float:
    return log_loss(labels, scaling(logits.double()).softmax(1), labels=range(logits.shape[1]))


@pytest.mark.parametrize("sharp", [0.05, 1.0, 6.0, 80.0])
def test_the_temperature_is_that_of_the_least_likelihood(sharp):
    logits, labels = drawn(sharp=sharp)
    share = 1 / 301                                                                    # of the image of every class

    def smoothed(log: float) -> float:
        logs = Scaling(math.exp(log))(logits.double()).log_softmax(1)
        return -((1 - share) * logs[range(300), labels].mean() + share * logs.mean()).item()

    best = minimize_scalar(smoothed, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, labels).temperature == pytest.approx(math.exp(best.x), rel=1e-4)


def test_images_that_are_all_labelled_right_make_no_model_certain():
    scaling = fit_temperature(10 * torch.eye(4), torch.arange(4))
    # as if one image of five were of each class alike: 4/5 + 1/5 * 1/4
    assert scaling(10 * torch.eye(4)).softmax(1).amax(1) == pytest.approx(0.85, abs=1e-4)


def test_a_temperature_changes_no_prediction_and_a_vector_lowers_the_loss_further():
    logits, labels = drawn()
    logits = logits + torch.tensor([4.0, 0, 0, 0, 0, 0, 0])          # one class is favoured, which no temperature mends
    temperature, vector = fit_temperature(logits, labels), fit_vector(logits, labels)
    assert (temperature(logits).argmax(1) == logits.argmax(1)).all()
    assert loss(vector, logits, labels) < loss(temperature, logits, labels) < loss(Scaling(), logits, labels)
    assert vector.bias[0] < min(vector.bias[1:])
    some = [2, 0]
    assert torch.equal(vector(logits[:, some], some), vector(logits)[:, some])


def test_the_vector_is_that_of_the_least_penalised_loss():
    logits, labels = drawn(images=200, classes=4)
    logits = logits + torch.tensor([3.0, 0, 0, -1.0])
    scaled = (logits / fit_temperature(logits, labels).temperature).double()

    def penalised(values) -> float:
        weight, bias = torch.tensor(values).view(2, 4)
        loss = torch.nn.functional.cross_entropy(scaled * weight + bias, labels)
        return (loss + 0.1 * ((weight - 1).square().mean() + bias.square().mean())).item()

    best = minimize(penalised, [1.0] * 4 + [0.0] * 4, method="BFGS")
    found = fit_vector(logits, labels)
    assert [*found.weight, *found.bias] == pytest.approx(best.x.tolist(), abs=1e-3)


def test_the_likelihood_and_the_brier_score():
    logits, labels = drawn()
    chances = logits.double().softmax(1)
    assert nll(chances, labels) == pytest.approx(log_loss(labels, chances))
    truth = torch.nn.functional.one_hot(labels, 7)
    assert brier(chances, labels) == pytest.approx(sum(
        brier_score_loss(truth[:, each], chances[:, each]) for each in range(7)))
    assert brier(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == 2.0
    assert nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == pytest.approx(-math.log(1e-38))


def test_a_vector_needs_an_image_of_each_class():
    logits, labels = drawn(classes=4)
    with pytest.raises(UserError, match="1 of 4 classes have no held-out image.*temperature"):
        fit_vector(logits[labels != 2], labels[labels != 2])


def test_scores_of_two_logits_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert score("probability", logits).item() == pytest.approx(0.75)
    assert score("logit", logits).item() == pytest.approx(math.log(3))
    assert score("energy", logits).item() == pytest.approx(math.log(4))
    tokens, names = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]]), torch.eye(2)
    local = largest_of_positions(tokens, names, math.log(3.0))       # at the first position 3 : 1, at the second even
    assert local.item() == pytest.approx(0.75)
    assert score("gl_mcm", logits, local).item() == pytest.approx(1.5)


def test_figures_of_open_sets_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    known = (torch.randn(120, generator=generator) + 1).mul(4).round() / 4             # rounded: with ties
    unknown = torch.randn(80, generator=generator).mul(4).round() / 4
    truth, scores = [1] * 120 + [0] * 80, torch.cat([known, unknown])
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, scores))
    assert aupr(known, unknown) == pytest.approx(average_precision_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at(known, unknown) == pytest.approx(false[true >= 0.95].min())
    assert oscr(known, torch.ones(120, dtype=torch.bool), unknown) == pytest.approx(auroc(known, unknown))


def test_oscr_by_hand():
    known, right, unknown = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True]), torch.tensor([2.5, 0.0])
    # of the pairs of a known image that is labelled right with an unknown one: (3, 2.5), (3, 0), (1, 0) of six
    assert oscr(known, right, unknown) == pytest.approx(3 / 6)
    assert set(figures(known, right, unknown)) == {"auroc", "fpr95", "aupr", "oscr"}


def test_the_threshold_keeps_the_share_of_new_images():
    generator = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(300):
        limit = threshold(torch.rand(99, generator=generator), 0.9)
        kept.append((torch.rand(500, generator=generator) >= limit).double().mean())
    assert sum(kept) / len(kept) == pytest.approx(0.9, abs=0.01)
    assert threshold(torch.arange(19.0), 0.95) == 0.0 and threshold(torch.arange(18.0), 0.95) == -math.inf


def test_misfits_by_hand():
    chances = torch.tensor([[0.2, 0.5, 0.3]])
    assert misfit("lac", chances)[0].tolist() == pytest.approx([0.8, 0.5, 0.7])
    assert misfit("aps", chances)[0].tolist() == pytest.approx([1.0, 0.5, 0.8])
    assert misfit("raps", chances)[0].tolist() == pytest.approx([1.2, 0.5, 0.9])
    assert quantile(torch.arange(1.0, 10.0), 0.9) == 9.0 and quantile(torch.arange(1.0, 9.0), 0.9) == math.inf
    assert sets(misfit("lac", chances), 0.6).tolist() == [[False, True, False]]
    assert sets(misfit("lac", chances), 0.0).tolist() == [[False, True, False]]       # never empty
    assert sets(misfit("lac", chances), math.inf).all()


def test_least_ambiguous_sets_are_those_of_mapie():      # its adaptive ones are drawn at random, ours are not
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.linear_model import LogisticRegression

    logits, labels = drawn(sharp=1.0, images=500, classes=5)
    model = LogisticRegression(max_iter=500).fit(logits[:200], labels[:200])
    theirs = mapie.SplitConformalClassifier(model, confidence_level=0.8, prefit=True, conformity_score="lac")
    theirs.conformalize(logits[200:350].numpy(), labels[200:350].numpy())
    wanted = torch.from_numpy(theirs.predict_set(logits[350:].numpy())[1][:, :, 0])
    chances = torch.from_numpy(model.predict_proba(logits[200:]))
    limit = quantile(misfit("lac", chances[:150]).gather(1, labels[200:350, None])[:, 0], 0.8)
    found = sets(misfit("lac", chances[150:]), limit)
    filled = wanted.any(1)
    assert torch.equal(found[filled], wanted[filled]) and filled.double().mean() > 0.8
    assert (found[~filled].sum(1) == 1).all()                                          # theirs may be empty, ours not


@pytest.mark.parametrize("name", ["aps", "raps"])
def test_misfits_that_add_up_by_a_loop_over_classes(name):
    logits, _ = drawn(images=20)
    chances = logits.double().softmax(1)
    found = misfit(name, chances)
    for row, expected in zip(chances.tolist(), found.tolist(), strict=True):
        for chance, value in zip(row, expected, strict=True):
            above = [each for each in row if each >= chance]
            assert value == pytest.approx(sum(above) + (name == "raps") * 0.1 * (len(above) - 1))


@pytest.mark.parametrize("name", SET_SCORES)
def test_sets_cover_what_was_asked(name):
    covered = []
    for seed in range(40):
        logits, labels = drawn(seed, images=400)
        misfits = misfit(name, logits.double().softmax(1))
        limit = quantile(misfits[:100].gather(1, labels[:100, None])[:, 0], 0.9)
        covered.append(coverage_table(sets(misfits[100:], limit), labels[100:])["coverage"])
    assert sum(covered) / len(covered) >= 0.89
