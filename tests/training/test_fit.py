import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from banks import bank_of
from slow import slow
from small_fit import Probe, Source, Tower
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._python_dispatch import TorchDispatchMode
from towers import images, tiny_vit

from xrvlm.distributed import Bar
from xrvlm.errors import UserError
from xrvlm.methods import XRVLM
from xrvlm.methods.base import Recipe
from xrvlm.methods.registry import class_called
from xrvlm.methods.tip_adapter import FINE_TUNING
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit

RECIPE = Recipe("test", epochs=5, batch_size=8, learning_rate=0.1, warmup_epochs=2)


def straight(recipe=RECIPE, **options):
    method = Probe()
    return method, fit(method, Tower(), Source(), recipe, seed=1, **options)


def same_state(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_rate_warms_up_and_falls_to_zero():
    recipe = Recipe("x", epochs=10, learning_rate=1.0, warmup_epochs=4)
    rates = [recipe.rate(epoch) for epoch in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.1
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert Recipe("x", epochs=1, warmup_epochs=0, learning_rate=1.0).rate(0) == 1.0


def torch_rates(make, steps):
    """The rates of a scheduler of torch, one a step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2e-3)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["coop", "plot", "task_res", "clap", "clip_adapter", "cocoop"])
def test_the_schedule_of_coops_authors(name):
    recipe = class_called(name).recipe
    top, count = recipe.learning_rate, recipe.epochs
    expected = [1e-5] + [top * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / count)) for epoch in range(1, count)]
    assert [recipe.rate(epoch) for epoch in range(count)] == pytest.approx(expected, rel=1e-12)
    assert recipe.rate(count - 1) > 0


def test_the_schedule_of_xr_vlms_authors():
    rates = [XRVLM.recipe.rate(epoch) for epoch in range(100)]
    assert rates[:5] == pytest.approx([4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3])
    assert rates[5:] == pytest.approx(torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 100), 95))
    assert rates[-1] == pytest.approx(1.77e-5, rel=1e-3)


def test_a_cosine_by_step_is_torchs():
    """As `fit` takes it: the optimiser's rate at each of its steps."""
    recipe, rates = replace(FINE_TUNING, epochs=3, batch_size=8, learning_rate=2e-3), []
    assert recipe.by_step and recipe.eps == 1e-4

    class Seen(Probe):
        def loss(self, *arguments, **options):
            rates.append(self.optimizer.param_groups[0]["lr"])
            return super().loss(*arguments, **options)

    method, make = Seen(), Recipe.make_optimizer

    def kept(self, parameters):
        method.optimizer = make(self, parameters)
        assert method.optimizer.defaults["eps"] == 1e-4
        return method.optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "make_optimizer", kept)
        fit(method, Tower(), Source(), recipe, seed=1)
    assert len(rates) > 6 and len(rates) % 3 == 0
    assert rates == pytest.approx(torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, len(rates)), len(rates)))


def test_without_a_terminal_training_tells_now_and_then_how_far_it_is(capsys, monkeypatch):
    straight()
    assert capsys.readouterr().err == "", "what is soon done needs no line"
    monkeypatch.setattr(Bar, "EVERY", 0.0)
    straight()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("probe: 5 of 5 epochs, loss=") and lines[-1].endswith(", about 00:00 left")
    assert 4 <= len(lines) <= 10


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("selection", ["last", "val"])
@pytest.mark.parametrize("text_every", [1, 3])
def test_a_resumed_run_ends_bit_equal(tmp_path, optimizer, stop, selection, text_every):
    recipe = replace(RECIPE, optimizer=optimizer, grad_clip=1.0, label_smoothing=0.1, balanced=True,
                     text_every=text_every)
    options = {"selection": selection, "val": Source() if selection == "val" else None}
    expected, progress = straight(recipe, **options)
    checkpoint = tmp_path / "last.safetensors"

    class Stopped(Source):
        def batches(self, order, epoch):
            if epoch == stop:
                raise KeyboardInterrupt
            return super().batches(order, epoch)

    with pytest.raises(KeyboardInterrupt):
        fit(Probe(), Tower(), Stopped(), recipe, seed=1, checkpoint=checkpoint, identity="a", **options)
    resumed = Probe()
    again = fit(resumed, Tower(), Source(), recipe, seed=1, checkpoint=checkpoint, identity="a", **options)
    assert same_state(expected.state_dict(), resumed.state_dict())
    assert again.losses == progress.losses
    assert len(again.losses) == 5


def test_a_finished_checkpoint_trains_no_further(tmp_path):
    method, _ = straight(checkpoint=tmp_path / "last.safetensors", identity="a")
    again, progress = straight(checkpoint=tmp_path / "last.safetensors", identity="a")
    assert same_state(method.state_dict(), again.state_dict())
    assert progress.epochs == 5


def test_selection_on_val_keeps_the_first_best_epoch():
    method, progress = straight(selection="val", val=Source())
    scores = [entry["val_top1"] for entry in progress.losses]
    assert progress.best_val == max(scores)
    shorter = replace(RECIPE, epochs=5)
    best = scores.index(max(scores))
    reached = Probe()

    class UpTo(Source):
        def batches(self, order, epoch):
            if epoch > best:
                raise KeyboardInterrupt
            return super().batches(order, epoch)

    with pytest.raises(KeyboardInterrupt):
        fit(reached, Tower(), UpTo(), shorter, seed=1)
    assert torch.equal(reached.linear.weight, method.linear.weight)


@pytest.mark.parametrize("damage", ["identity", "truncated", "other tensors"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, damage):
    checkpoint = tmp_path / "last.safetensors"
    straight(checkpoint=checkpoint, identity="a")
    before = checkpoint.read_bytes()
    if damage == "truncated":
        checkpoint.write_bytes(before[:-50])
    method = Probe()
    if damage == "other tensors":
        method.linear = nn.Linear(4, 3)
    with pytest.raises(UserError, match="start (this run )?again with force=True"):
        fit(method, Tower(), Source(), RECIPE, seed=1, checkpoint=checkpoint,
            identity="b" if damage == "identity" else "a")


def test_a_loss_that_is_not_finite_is_told():
    class Exploding(Probe):
        def loss(self, x, y, clip, *, label_smoothing=0.0):
            return super().loss(x, y, clip) * math.inf

    with pytest.raises(UserError, match="became (inf|nan) in epoch 1: try a lower learning_rate"):
        fit(Exploding(), Tower(), Source(), RECIPE, seed=1)


def test_a_method_may_hold_a_transposed_tensor(tmp_path):
    class Turned(Probe):
        def __init__(self):
            super().__init__()
            self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)

    first, again = Turned(), Turned()
    for method in (first, again):        # the second one takes all from the file
        fit(method, Tower(), Source(), RECIPE, seed=1, checkpoint=tmp_path / "last.safetensors", identity="a")
    assert torch.equal(first.turned, again.turned)


@pytest.mark.parametrize(("options", "message"), [
    ({"optimizer": "lion"}, "unknown optimizer 'lion'"), ({"epochs": -1}, "epochs"), ({"batch_size": 1}, "batch_size"),
    ({"learning_rate": 0.0}, "learning_rate"), ({"label_smoothing": 1.0}, "label_smoothing"),
    ({"text_every": 0}, "text_every"), ({"average_last": 2}, "average_last must be from 0 to the 1 epochs"),
    ({"soup": [1, 0]}, r"such as \[0.5, 1, 2\], found \[1, 0\]"), ({"soup": 2.0}, "soup must be a list")])
def test_bad_recipes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        Recipe(**({"name": "bad", "epochs": 1} | options))


def test_fit_cannot_see_a_test_part():
    import inspect

    assert not [name for name in inspect.signature(fit).parameters if "test" in name]


class Crossings(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that are read, and tensors that move between the two."""

    def __init__(self):
        super().__init__()
        self.values = self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            self.values += 1
            return 1.0
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        self.copies += moves and len({value.device.type for value in tensors}) > 1
        return result


@pytest.mark.parametrize("options", [
    {}, {"optimizer": "adamw"}, {"context": "shared"}, {"text_memory": 1e-6}, {"live_parts": True},
    {"learn_prior_weight": True}, {"part_prompts": "vectors"}, {"head": "alignment"}, {"head": "visual"},
    *slow({"context": "shared_then_specific"},
          *({"head": head} for head in ("diagonal", "per_class", "per_class_diagonal")))], ids=str)
def test_no_step_waits_for_the_device(options):
    """Tensors on `meta` have no values: whatever asks for one raises, but for `item`, which is counted."""
    clip, names = tiny_vit(), ("jay", "red wren", "kite", "hoopoe")
    options = dict(options)
    optimizer, clip.text.memory_gb = options.pop("optimizer", "sgd"), options.pop("text_memory", None)
    method = XRVLM(clip, class_text(names), hidden=8, **options)
    method.prepare(clip, None)
    bank = bank_of(clip.encode_image(images(40), method.needs), torch.arange(40) % 4)
    recipe = replace(RECIPE, epochs=1, grad_clip=1.0, label_smoothing=0.1, optimizer=optimizer)
    fit(method, clip, bank, recipe, seed=1)                  # the text tower measures itself, rows are arranged
    method, clip, on_host, bank = method.to("meta"), clip.to("meta"), bank, bank.resident(torch.device("meta"))

    def crossings(bank, batch_size):
        with Crossings() as counted:
            fit(method, clip, bank, replace(recipe, batch_size=batch_size), seed=1)
        return counted.values, counted.copies

    crossings(bank, 20)                                      # rows are copied once
    assert crossings(bank, 20) == crossings(bank, 10) == (1, 1), "an epoch, of two steps or of four"
    assert crossings(on_host, 20) == (1, 2 * (1 + len(method.needs))), "it can fail: this bank is copied step by step"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_optimizer_resumes_from_its_checkpoint(tmp_path, optimizer, monkeypatch):
    """As a GPU has it; the kernels of a CPU are others, the state is the same."""
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    recipe = replace(RECIPE, optimizer=optimizer)
    assert not recipe.make_optimizer(Probe().parameters()).defaults["fused"], "numbers on a CPU stay what they were"
    fused = {"fused": True}
    monkeypatch.setattr(f"torch.optim.{kind.__name__}", lambda *given, **options: kind(*given, **options | fused))
    expected, progress = straight(recipe)
    checkpoint = tmp_path / "last.safetensors"

    class Stopped(Source):
        def batches(self, order, epoch):
            if epoch == 2:
                raise KeyboardInterrupt
            return super().batches(order, epoch)

    with pytest.raises(KeyboardInterrupt):
        fit(Probe(), Tower(), Stopped(), recipe, seed=1, checkpoint=checkpoint, identity="a")
    resumed = Probe()
    again = fit(resumed, Tower(), Source(), recipe, seed=1, checkpoint=checkpoint, identity="a")
    assert same_state(expected.state_dict(), resumed.state_dict())
    assert again.losses == progress.losses


def test_the_optimizer_is_fused_where_all_parameters_are_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.optim.SGD", lambda *_, **options: asked.append(options["fused"]))
    parameters = [SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=True)]
    RECIPE.make_optimizer(parameters)
    parameters[0].is_cuda = False
    RECIPE.make_optimizer(parameters)
    assert asked == [True, None]


@pytest.mark.parametrize(("batches", "message"), [(1, "in epoch 1 of 5"), (7, "in epoch 2 of 5")])
def test_a_training_is_given_up_at_the_batch_at_which_its_time_is_over(monkeypatch, batches, message):
    method, losses = Probe(), []
    monkeypatch.setattr(method, "loss", lambda *given, **options: losses.append(0) or Probe.loss(method, *given,
                                                                                                 **options))
    clock = SimpleNamespace(monotonic=lambda: len(losses), perf_counter=time.perf_counter)     # a batch takes a second
    monkeypatch.setattr("xrvlm.training.fit.time", clock)
    with pytest.raises(UserError, match=f"its time was over {message}"):                   # 5 batches an epoch
        fit(method, Tower(), Source(), RECIPE, seed=1, until=batches - 0.5)
    assert len(losses) == batches


def test_a_training_that_has_time_enough_ends():
    assert straight(until=time.monotonic() + 1000)[1].epochs == 5
