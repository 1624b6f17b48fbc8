"""How a method learns: its lifecycle (`learn`) and the one training loop in it (`fit`).

Neither has labels of the test set as an argument: nothing can be selected on them.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.distributed import ALONE, Bar, Group, processes, seeded
from xrvlm.errors import UserError, option
from xrvlm.evaluation.metrics import top1
from xrvlm.features.source import FeatureSource, sharded_batches, training_order, without_labels
from xrvlm.files import parsed, write_atomically
from xrvlm.methods.base import Method, Recipe, chosen_recipe, probabilities
from xrvlm.training.averaging import Kept, State, add, load_mean, reestimate
from xrvlm.training.text_pass import shared_class_features

log = logging.getLogger(__name__)
Selection = Literal["last", "val"]
Told = Callable[[Mapping[str, float]], None]       # of an epoch's line of losses.csv
# of the lifecycle, the loop, the optimisers and the averaging of weights: raised where a change alters numbers. It is
# part of every run's identity: runs from before are neither finished nor resumed
TRAINING_REVISION = 1


@dataclass
class Progress:
    """What a run that was stopped needs, beside tensors, to go on as if it had not been stopped."""

    epochs: int = 0                      # finished, over all learning rates of a soup
    seconds: float = 0.0                 # of training, over all sessions
    best_val: float = -1.0               # top-1, at the present learning rate
    losses: list[dict[str, float]] = field(default_factory=list)      # one entry an epoch


def check_selection(recipe: Recipe, selection: Selection) -> None:
    """UserError where one epoch is to be kept and several are to be averaged."""
    if selection == "val" and recipe.average_last:
        average = option("recipe.average_last", recipe.average_last)
        raise UserError(f"{option('selection', 'val')} keeps one epoch and {average} averages several: leave one of "
                        "them out")


def fitting_recipe(wanted: Recipe | str | Mapping[str, Any] | None, method: Method) -> Recipe:
    """The recipe that `adapt` was given, or the method's own where nothing is trained by steps.

    UserError where the recipe has no epochs and the method is trained by steps.
    """
    name, changes = (None, dict(wanted)) if isinstance(wanted, Mapping) else (wanted, {})
    recipe = chosen_recipe(method.recipe, changes.pop("name", name), changes)
    if not method.recipe.epochs and recipe.epochs:
        log.warning("%s is not trained by steps: %s is not read", method.label, option("recipe"))
        return method.recipe
    if method.recipe.epochs and not recipe.epochs:
        raise UserError(f"{method.label} is trained by steps, and recipe {recipe.name!r} has no epochs: leave "
                        f"{option('recipe')} and {option('recipe.epochs')} out")
    return recipe


def learn(method: Method, clip: FrozenCLIP, recipe: Recipe, *, seed: int, train: FeatureSource | None,
          val: FeatureSource | None = None, test: FeatureSource | None = None, selection: Selection = "last",
          checkpoint: Path | None = None, identity: str = "", until: float | None = None,
          follow: Told | None = None) -> Progress:
    """The lifecycle of a method: prepare, fit where the recipe has epochs, transduce where the method is transductive.

    Of `test`, a transductive method gets the features without labels and in a random order; no other method gets any.
    `Progress.seconds` covers all three stages. Of several ranks, those that have no share in the training do nothing.
    """
    group, progress = processes(), Progress()
    if not (group.first or (method.splits_batches and recipe.epochs)):
        return progress
    start = time.perf_counter()
    method.prepare(clip, train, val=val)
    prepared = time.perf_counter() - start
    if train is not None and recipe.epochs:
        progress = fit(method, clip, train, recipe, seed=seed, val=val, selection=selection, checkpoint=checkpoint,
                       identity=identity, until=until, follow=follow)
    start = time.perf_counter()
    if method.transductive and group.first:
        assert test is not None, "a transductive method reads the test images"
        method.transduce(clip, without_labels(test), train, val)
    progress.seconds += prepared + time.perf_counter() - start
    return progress


def fit(method: Method, clip: FrozenCLIP, source: FeatureSource, recipe: Recipe, *, seed: int,
        val: FeatureSource | None = None, selection: Selection = "last", checkpoint: Path | None = None,
        identity: str = "", until: float | None = None, follow: Told | None = None) -> Progress:
    """Train `method` in place. A method without trainable parameters returns at once.

    With `checkpoint`, the state is written after every epoch and a run that was stopped goes on from there; a
    checkpoint of another `identity` is refused. `selection="val"` keeps the epoch with the best top-1 on `val` (the
    first of equals), one for each learning rate of a soup. UserError once it is later than `until` (time.monotonic).
    Rank 0 calls `follow` after every epoch with its line of losses.csv, before the checkpoint is written.

    In a distributed run every rank calls this with the same arguments and ends with the same weights; where the method
    does not split its batches, rank 0 alone calls it.
    """
    check_selection(recipe, selection)
    if not any(parameter.requires_grad for parameter in method.parameters()):
        return Progress()
    group = processes() if method.splits_batches else ALONE
    group.level(method)
    run = _Fit(method, clip, source, recipe, seed, val, selection, group, until)
    total = recipe.epochs * len(run.rates)
    if checkpoint is not None and checkpoint.is_file():
        run.progress, run.kept = _restore(checkpoint, identity, method, run.optimizer)
        log.info("resuming after epoch %d of %d", run.progress.epochs, total)
    progress = run.progress
    group.check_same(progress.epochs, "checkpoints")
    group.level(method)
    epochs = Bar(range(progress.epochs, total), initial=progress.epochs, total=total, unit="epoch", desc=method.label)
    for done in epochs:
        start = time.perf_counter()
        entry = run.epoch(done)
        progress.epochs, progress.seconds = done + 1, progress.seconds + time.perf_counter() - start
        epochs.set_postfix(loss=f"{entry['loss']:.3f}")
        if follow is not None and group.first:
            follow(entry)
        if checkpoint is not None and group.first:
            _save(checkpoint, identity, method, run.optimizer, progress, run.kept)
    run.conclude()
    return progress


@dataclass
class _Fit:
    """A training in progress: all epochs at the first learning rate of the soup, then from the start at the next."""

    method: Method
    clip: FrozenCLIP
    source: FeatureSource
    recipe: Recipe
    seed: int
    val: FeatureSource | None
    selection: Selection
    group: Group
    until: float | None
    progress: Progress = field(default_factory=Progress)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self):
        self.rates = self.recipe.soup or (1.0,)
        self.start = state_of(self.method) if len(self.rates) > 1 else {}
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return self.recipe.make_optimizer([value for value in self.method.parameters() if value.requires_grad])

    def epoch(self, done: int) -> dict[str, float]:
        """Train the epoch that follows `done` finished ones; returns its line of losses.csv."""
        rate, epoch = divmod(done, self.recipe.epochs)
        recipe = replace(self.recipe, learning_rate=self.recipe.learning_rate * self.rates[rate])
        if done and not epoch:
            self.method.load_state_dict(self.start)
            self.optimizer, self.progress.best_val, self.kept.best = self._new_optimizer(), -1.0, {}
        entry = {"epoch": done, "learning_rate": recipe.rate(epoch),
                 "loss": _train_epoch(self.method, self.clip, self.source, recipe, self.optimizer, self.seed, epoch,
                                      self.group, self.until)}
        if self.val is not None:
            entry["val_top1"] = score = self.group.from_first(self._score)
            if self.selection == "val" and score > self.progress.best_val:
                self.progress.best_val, self.kept.best = score, state_of(self.method)
        if recipe.averaged > 1 and epoch >= recipe.epochs - max(1, recipe.average_last):
            self.kept.total = add(self.kept.total, self.kept.best or state_of(self.method), self.method)
        self.progress.losses.append(entry)
        return entry

    def _score(self) -> float:
        assert self.val is not None
        return top1(probabilities(self.method, self.clip, self.val), self.val.labels)

    def conclude(self) -> None:
        """Give the method its final weights: the last epoch's, the best epoch's or a mean."""
        start = time.perf_counter()
        if self.recipe.averaged > 1:
            load_mean(self.method, self.kept.total, self.recipe.averaged)
        elif self.kept.best:
            self.method.load_state_dict(self.kept.best)
        if self.recipe.averaged > 1 or self.recipe.reestimate:
            order = training_order(self.source.labels, self.seed, self.recipe.epochs, self.recipe.batch_size,
                                   balanced=self.recipe.balanced)
            batches = sharded_batches(self.source, order, self.recipe.epochs, self.group, self.clip.device)
            reestimate(self.method, self.clip, batches, self.seed, self.group)
        self.progress.seconds += time.perf_counter() - start


def _train_epoch(method: Method, clip: FrozenCLIP, source: FeatureSource, recipe: Recipe,
                 optimizer: torch.optim.Optimizer, seed: int, epoch: int, group: Group, until: float | None) -> float:
    """The mean loss of the epoch. Each rank of `group` takes its shard of every batch."""
    order = training_order(source.labels, seed, epoch, recipe.batch_size, balanced=recipe.balanced)
    stepper = Stepper(method, recipe, optimizer, group)
    total, count = torch.zeros((), device=clip.device), 0
    method.train()
    optimizer.zero_grad(set_to_none=True)
    with seeded(seed, "epoch", epoch), group.together():
        batches = enumerate(sharded_batches(source, order, epoch, group, clip.device))
        for _ in range(0, len(order), recipe.text_every):
            if until is not None and time.monotonic() > until:
                raise UserError(f"its time was over in epoch {epoch + 1} of {recipe.epochs}")
            shared = shared_class_features(method, clip, stepper.step) if recipe.text_every > 1 else nullcontext([])
            with shared as held:
                for done, (rows, x, y) in islice(batches, recipe.text_every):
                    stepper.set_rate(recipe.rate(epoch, done / len(order)))
                    loss = method.loss(x, y, clip, label_smoothing=recipe.label_smoothing) * (len(y) / rows)
                    loss.backward()
                    stepper.step(held)
                    if len(y):           # the mean loss of an empty shard is NaN
                        total = total + loss.detach() * rows
                    count += rows
    mean = (group.total(total) / count).item()
    if not math.isfinite(mean):
        raise UserError(f"the loss of {method.label} became {mean} in epoch {epoch + 1}: try a lower "
                        f"{option('recipe.learning_rate')}, or {option('precision', 'fp32')}")
    return mean


def state_of(method: nn.Module) -> State:
    """A copy of all parameters and buffers of `method`, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}


def _save(path: Path, identity: str, method: Method, optimizer: torch.optim.Optimizer, progress: Progress,
          kept: Kept) -> None:
    """Write all that a stopped run needs to go on; the file appears whole or not at all."""
    tensors = {f"method.{name}": value for name, value in state_of(method).items()}
    tensors |= {f"{group}.{name}": value for group, state in vars(kept).items() for name, value in state.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.detach().cpu().clone() for name, value in state.items()
                    if isinstance(value, Tensor)}
    tensors = {name: value.contiguous() for name, value in tensors.items()}     # a method may hold a transposed one
    metadata = {"xrvlm": json.dumps({"identity": identity, "progress": asdict(progress)})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _restore(path: Path, identity: str, method: Method, optimizer: torch.optim.Optimizer) -> tuple[Progress, Kept]:
    """Give `method` and `optimizer` the state of the checkpoint. UserError: it is damaged, or of another `identity`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = parsed(file.metadata()["xrvlm"])
            groups: dict[str, State] = {"method": {}, "optimizer": {}, "best": {}, "total": {}}
            for key in file.keys():      # noqa: SIM118 (not a dict)
                group, name = key.split(".", 1)
                groups[group][name] = file.get_tensor(key).clone()
        if header["identity"] != identity:
            raise UserError(f"{path} belongs to a run with other options; start again with {option('force', True)}")
        method.load_state_dict(groups["method"])
        optimizer_state = optimizer.state_dict()
        for name, value in groups["optimizer"].items():
            index, key = name.split(".", 1)
            optimizer_state["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer_state)
        return Progress(**header["progress"]), Kept(groups["best"], groups["total"])
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot resume from {path}: {error}; start this run again with {option('force', True)}"
                        ) from error


@dataclass(frozen=True)
class Stepper:
    """Takes the optimiser's steps. Parameters that are `held` keep their gradients for a later step."""

    method: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    group: Group

    def set_rate(self, learning_rate: float) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        kept = [parameter.grad for parameter in held]
        for parameter in held:
            parameter.grad = None        # the optimiser skips it
        self.group.sum_gradients(self.method.parameters())
        if self.recipe.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(held, kept, strict=True):
            parameter.grad = gradient
