"""Means of weights and statistics that fit them, against the same done by hand."""

from dataclasses import replace

import pytest
import torch
from small_fit import Probe, Source, Tower
from torch import nn

from xrvlm.errors import UserError
from xrvlm.methods.base import Recipe
from xrvlm.training.fit import fit, training_order

RECIPE = Recipe("test", epochs=4, batch_size=16, learning_rate=0.1, warmup_epochs=0)      # batches of 16, 16 and 8


class Normed(Probe):
    """The features themselves pass batch normalisation: its statistics are known."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def logits(self, x, class_features):
        return self.norm(x.pooled) @ class_features.T


def trained(recipe, method=None, source=None, **options):
    method = method or Normed()
    progress = fit(method, Tower(), source or Source(), recipe, seed=1, **options)
    return method, progress


class Watched(Source):
    """Notes the weights that each epoch begins with, and stops before one."""

    def __init__(self, method, stop=None):
        super().__init__()
        self.method, self.stop, self.weights, self.scales = method, stop, [], []

    def batches(self, order, epoch):
        if len(self.weights) == self.stop:
            raise KeyboardInterrupt
        self.weights.append(self.method.linear.weight.detach().clone())
        self.scales.append(self.method.norm.weight.detach().clone())
        return super().batches(order, epoch)


def one_pass(epoch):
    """Mean and variance of the features over the batches of an epoch, each batch by its rows."""
    batches = [x.pooled for x, _ in Source().batches(training_order(Source().labels, 1, epoch, 16), epoch)]
    rows = torch.tensor([len(batch) for batch in batches])[:, None] / 40
    means = torch.stack([batch.mean(dim=0) for batch in batches])
    variances = torch.stack([batch.var(dim=0) for batch in batches])
    return (rows * means).sum(dim=0), (rows * variances).sum(dim=0)


def assert_statistics_of_one_pass(method, epoch):
    mean, variance = one_pass(epoch)
    torch.testing.assert_close(method.norm.running_mean, mean)
    torch.testing.assert_close(method.norm.running_var, variance)
    assert method.norm.momentum == 0.1


def test_reestimated_statistics_are_those_of_one_pass_over_the_training_images():
    method, _ = trained(replace(RECIPE, reestimate=True))
    plain, _ = trained(RECIPE)
    assert_statistics_of_one_pass(method, 4)
    assert not torch.allclose(plain.norm.running_mean, method.norm.running_mean, atol=1e-3)
    assert torch.equal(plain.linear.weight, method.linear.weight)


def test_the_mean_over_the_last_epochs_is_that_of_their_weights():
    plain = Normed()
    watched = Watched(plain)
    trained(RECIPE, plain, watched)                  # what epochs 1 to 3 begin with is what 0 to 2 ended with
    method, progress = trained(replace(RECIPE, average_last=3))
    ends = [*watched.weights[2:], plain.linear.weight]
    torch.testing.assert_close(method.linear.weight, sum(ends) / 3)
    torch.testing.assert_close(method.norm.weight, (sum(watched.scales[2:]) + plain.norm.weight) / 3)
    assert_statistics_of_one_pass(method, 4)
    assert len(progress.losses) == 4


def test_a_soup_is_the_mean_of_runs_from_one_start():
    alone = [trained(replace(RECIPE, learning_rate=0.1 * rate))[0] for rate in (0.5, 1.0, 3.0)]
    method, progress = trained(replace(RECIPE, soup=(0.5, 1.0, 3.0)))
    torch.testing.assert_close(method.linear.weight, sum(run.linear.weight for run in alone) / 3)
    assert not torch.allclose(method.linear.weight, alone[1].linear.weight, atol=1e-3)
    assert_statistics_of_one_pass(method, 4)
    assert [entry["epoch"] for entry in progress.losses] == list(range(12))
    assert [entry["learning_rate"] for entry in progress.losses[::4]] == pytest.approx([0.05, 0.1, 0.3])


def test_a_soup_of_means_is_the_mean_of_all():
    alone = [trained(replace(RECIPE, learning_rate=0.1 * rate, average_last=2))[0] for rate in (0.5, 2.0)]
    method, _ = trained(replace(RECIPE, soup=(0.5, 2.0), average_last=2))
    torch.testing.assert_close(method.linear.weight, sum(run.linear.weight for run in alone) / 2)


def test_a_soup_takes_the_best_epoch_of_each_rate():
    options = {"selection": "val", "val": Source()}
    alone = [trained(replace(RECIPE, learning_rate=0.1 * rate), **options)[0] for rate in (0.02, 2.0)]
    method, _ = trained(replace(RECIPE, soup=(0.02, 2.0)), **options)
    torch.testing.assert_close(method.linear.weight, sum(run.linear.weight for run in alone) / 2)


@pytest.mark.parametrize("changes", [{"soup": (1.0,)}, {"average_last": 1}, {"soup": [1], "average_last": 1}])
def test_a_mean_of_one_is_the_plain_run(changes):
    plain, _ = trained(RECIPE)
    method, _ = trained(replace(RECIPE, **changes))
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("stop", [2, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("selection", ["last", "val"])
def test_a_resumed_mean_ends_bit_equal(tmp_path, stop, optimizer, selection):
    last = 0 if selection == "val" else 2
    recipe = replace(RECIPE, optimizer=optimizer, soup=(0.5, 1.0), average_last=last)
    options = {"selection": selection, "val": Source() if selection == "val" else None}
    expected, progress = trained(recipe, **options)
    options |= {"checkpoint": tmp_path / "last.safetensors", "identity": "a"}
    method = Normed()
    if stop < 9:                                     # in pass 8 the statistics are taken; 9: it ended
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, method, Watched(method, stop), **options)
    else:
        trained(recipe, method, **options)
    resumed, again = trained(recipe, **options)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in expected.state_dict().items())
    assert again.losses == progress.losses


def test_keeping_one_epoch_and_averaging_several_exclude_each_other():
    with pytest.raises(UserError, match="selection='val' keeps one epoch and average_last=2 averages several"):
        trained(replace(RECIPE, average_last=2), selection="val", val=Source())
