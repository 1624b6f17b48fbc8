"""The one training loop. It has no test argument: nothing can be selected on the test part."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from xrvlm.backbone import FrozenCLIP
from xrvlm.distributed import ALONE, Group, processes
from xrvlm.draws import seeded
from xrvlm.errors import UserError
from xrvlm.evaluation import probabilities
from xrvlm.features import FeatureSource, training_order
from xrvlm.files import write_atomically
from xrvlm.method import Method
from xrvlm.metrics import top1
from xrvlm.recipe import Recipe

log = logging.getLogger(__name__)
Selection = Literal["last", "val"]


@dataclass
class Progress:
    """What a stopped run needs, beside tensors, to go on as if it had not been stopped."""

    epochs: int = 0                      # that are finished
    seconds: float = 0.0                 # spent training, over all sessions
    best_val: float = -1.0
    losses: list[dict[str, float]] = field(default_factory=list)      # one entry an epoch


def fit(method: Method, clip: FrozenCLIP, source: FeatureSource, recipe: Recipe, *, seed: int,
        val: FeatureSource | None = None, selection: Selection = "last", checkpoint: Path | None = None,
        identity: str = "") -> Progress:
    """Train `method` in place.

    With `checkpoint`, the state is written after every epoch and a run that was stopped goes on from it; one of
    another `identity` is refused. `selection="val"` keeps the epoch with the best top-1 on `val` (the first of
    equals). A method without trainable parameters returns at once.

    Where several processes run together (`distributed.joined`) all of them call this, each with the same arguments,
    and end with the same method; the first alone does where the method does not split its batches.
    """
    group = processes() if method.splits_batches else ALONE
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    progress, best = Progress(), {}
    if not parameters:
        return progress
    optimizer = recipe.make_optimizer(parameters)
    if checkpoint is not None and checkpoint.exists():
        progress, best = _restore(checkpoint, identity, method, optimizer)
        log.info("resuming after epoch %d of %d", progress.epochs, recipe.epochs)
    group.check_same(progress.epochs, "checkpoints")
    group.level(method)
    epochs = tqdm(range(progress.epochs, recipe.epochs), initial=progress.epochs, total=recipe.epochs, unit="epoch",
                  desc=method.label, disable=None if group.first else True, leave=False)
    for epoch in epochs:
        start = time.perf_counter()
        entry = {"epoch": epoch, "learning_rate": recipe.rate(epoch),
                 "loss": _train_epoch(method, clip, source, recipe, optimizer, seed, epoch, group)}
        if val is not None:
            entry["val_top1"] = group.from_first(lambda: top1(probabilities(method, clip, val), val.labels))
            if selection == "val" and entry["val_top1"] > progress.best_val:
                progress.best_val, best = entry["val_top1"], _state(method)
        progress.epochs, progress.seconds = epoch + 1, progress.seconds + time.perf_counter() - start
        progress.losses.append(entry)
        epochs.set_postfix(loss=f"{entry['loss']:.3f}")
        if checkpoint is not None and group.first:
            _save(checkpoint, identity, method, optimizer, progress, best)
    if best:
        method.load_state_dict(best)
    if recipe.reestimate:
        start = time.perf_counter()
        _reestimate(method, clip, source, recipe, seed)
        progress.seconds += time.perf_counter() - start
    return progress


@torch.no_grad()
def _reestimate(method: Method, clip: FrozenCLIP, source: FeatureSource, recipe: Recipe, seed: int) -> None:
    """Running statistics of batch normalisation: the mean over the batches of one more epoch, without a step."""
    norms = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None             # a plain mean over what is seen from now on
    method.train()
    class_features = method.class_features(clip)
    order = training_order(source.labels, seed, recipe.epochs, recipe.batch_size, balanced=recipe.balanced)
    for x, _ in source.batches(order, recipe.epochs):
        method.logits(x.map(lambda value: value.to(clip.device)), class_features)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _train_epoch(method: Method, clip: FrozenCLIP, source: FeatureSource, recipe: Recipe,
                 optimizer: torch.optim.Optimizer, seed: int, epoch: int, group: Group) -> float:
    """The mean loss of the epoch. Each process of `group` takes its share of every batch."""
    for parameters in optimizer.param_groups:
        parameters["lr"] = recipe.rate(epoch)
    order = training_order(source.labels, seed, epoch, recipe.batch_size, balanced=recipe.balanced)
    total, count = torch.zeros((), device=clip.device), 0
    method.train()
    # one whose share is empty reads an image all the same, and leaves it out: it takes part in what all sum up
    shares = [batch[group.share(len(batch))] for batch in order]
    read = [share if len(share) else batch[:1] for share, batch in zip(shares, order, strict=True)]
    with seeded(seed, "epoch", epoch), group.together():
        for batch, share, (x, y) in zip(order, shares, source.batches(read, epoch), strict=True):
            features = x.map(lambda value: value[:len(share)].to(clip.device, non_blocking=True))    # noqa: B023
            loss = method.loss(features, y[:len(share)].to(clip.device), clip, label_smoothing=recipe.label_smoothing)
            loss = loss * (len(share) / len(batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            group.sum_gradients(method.parameters())
            if recipe.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(method.parameters(), recipe.grad_clip)
            optimizer.step()
            if len(share):               # the mean over no rows is no number
                total = total + loss.detach() * len(batch)
            count += len(batch)
    mean = (group.total(total) / count).item()
    if not math.isfinite(mean):
        raise UserError(f"the loss of {method.label} became {mean} in epoch {epoch + 1}: try a lower "
                        "recipe.learning_rate, or precision=fp32")
    return mean


def _state(method: Method) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}


def _save(path: Path, identity: str, method: Method, optimizer: torch.optim.Optimizer, progress: Progress,
          best: dict[str, Tensor]) -> None:
    tensors = {f"method.{name}": value for name, value in _state(method).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.detach().cpu().clone() for name, value in state.items()
                    if isinstance(value, Tensor)}
    metadata = {"xrvlm": json.dumps({"identity": identity, "progress": asdict(progress)})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _restore(path: Path, identity: str, method: Method,
             optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["xrvlm"])
            groups: dict[str, dict[str, Tensor]] = {"method": {}, "best": {}, "optimizer": {}}
            for key in file.keys():      # noqa: SIM118 (not a dict)
                group, name = key.split(".", 1)
                groups[group][name] = file.get_tensor(key).clone()
        if header["identity"] != identity:
            raise UserError(f"{path} belongs to a run with other settings; start again with force=true")
        method.load_state_dict(groups["method"])
        optimizer_state = optimizer.state_dict()
        for name, value in groups["optimizer"].items():
            index, key = name.split(".", 1)
            optimizer_state["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer_state)
        return Progress(**header["progress"]), groups["best"]
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot resume from {path}: {error}; start this run again with force=true") from error
