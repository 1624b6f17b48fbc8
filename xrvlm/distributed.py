"""Seeds, progress, and runs over several processes; docs/design/distributed.md shows that they equal a single process.

Every random draw is seeded with a key such as (seed, "order", epoch); no generator state is carried over. So a resumed
run equals an uninterrupted one, and results do not depend on the number of processes, of a run or of a loader.

Every rank holds a full copy of the method and differentiates the sum of the losses of all ranks with respect to its
copy. Tensors are exchanged through `all_sum`, which is its own adjoint. The gradients of all copies are then summed, by
the chain rule for a parameter that is used in several places.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from xrvlm import files
from xrvlm.errors import UserError, option

STEP_TIMEOUT = timedelta(minutes=10)     # of one collective in a step; waiting for another rank's stage has no limit
FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Bar(tqdm):
    """Shows how far a loop is and the time left: a bar on a terminal, elsewhere a line now and then.

    Of several processes the first alone shows it. Nothing is shown of what ends within `EVERY` seconds without a
    terminal.
    """

    EVERY = 20.0                         # seconds between two lines

    def __init__(self, *arguments: Any, **options: Any):
        self.bar, self.told = sys.stderr.isatty(), time.monotonic()
        super().__init__(*arguments, **options, disable=not processes().first, leave=False, dynamic_ncols=True,
                         file=sys.stderr, mininterval=0.1 if self.bar else 0, miniters=None if self.bar else 1)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Called by tqdm after a step and at the end."""
        if self.bar:
            return super().display(msg, pos)
        numbers = self.format_dict
        if time.monotonic() - self.told < self.EVERY or not numbers["n"] > numbers["initial"]:
            return None
        self.told = time.monotonic()
        left = numbers["elapsed"] / (numbers["n"] - numbers["initial"]) * ((numbers["total"] or 0) - numbers["n"])
        what, detail = numbers["prefix"].removesuffix(": "), f", {numbers['postfix']}" if numbers["postfix"] else ""
        print(f"{what}: {numbers['n']} of {numbers['total']} {numbers['unit']}s{detail}, about "
              f"{self.format_interval(max(0, left))} left", file=sys.stderr, flush=True)
        return None


def seed_of(*key: object) -> int:
    """A 63-bit hash of `key`."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A generator on the CPU, so that the draws do not depend on the device."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seed torch's global generators with `key`; restore their state on exit."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*key))
        yield


class PeerFailedError(RuntimeError):
    """Another process of this run has failed and reports the cause."""


class Group:
    """The process group of a run, in the process with this `rank`; `world` is the world size.

    All ranks must make the same calls in the same order. They exchange messages through `store`. Waiting there has no
    time limit, because one rank may train for hours while the others wait; it ends if a rank fails.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None):
        self.rank, self.world, self.store, self._calls = rank, world, store, 0

    @property
    def first(self) -> bool:
        """True on rank 0, which alone writes, logs and prints."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Any]) -> Any:
        """The result of `make()`, called on rank 0 only and sent to all ranks as JSON."""
        if self.world == 1:
            return make()
        key = self._next("value")
        if self.first:
            value = make()
            self.store.set(key, json.dumps(value))
            return value
        self._wait(lambda: self.store.check([key]))
        return json.loads(self.store.get(key))

    def check_same(self, value: Any, what: str) -> None:
        """Raise UserError if `value` differs from that of rank 0."""
        if self.from_first(lambda: value) != value:
            raise UserError(f"the processes of this run see different {what}: start all of them by the same command, "
                            "and keep data, runs and features on a disk that all of them share")

    def meet(self) -> None:
        """Barrier: wait until all ranks have made this call."""
        if self.world > 1:
            key = self._next("barrier")
            self.store.add(key, 1)
            self._wait(lambda: self.store.add(key, 0) >= self.world)

    def part(self) -> None:
        """The last barrier. Rank 0, which may host the store, returns when no other rank asks the store any more."""
        self.meet()
        self.store.add("parted", 1)
        if self.rank == 0:
            self._wait(lambda: self.store.add("parted", 0) >= self.world)

    @contextmanager
    def alone(self, lock_file: Path, busy: str | None = None) -> Iterator[None]:
        """`files.alone` for the group: rank 0 takes the lock, the other ranks wait for it."""
        with files.alone(lock_file, busy) if self.first else nullcontext():
            self.meet()
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """In the `with` block all ranks work on shards of the same work: `active_group` returns this group."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def share(self, count: int) -> slice:
        """The contiguous shard of `count` items that belongs to this rank; it may be empty."""
        size, more = divmod(count, self.world)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def gather(self, own: Tensor, count: int, dim: int) -> Tensor:
        """Concatenate the shards of all ranks along `dim`, `count` in total; differentiable."""
        if self.world == 1:
            return own
        shard, shape = self.share(count), list(own.shape)
        before, after = ([*shape[:dim], size, *shape[dim + 1:]] for size in (shard.start, count - shard.stop))
        return all_sum(torch.cat([own.new_zeros(before), own, own.new_zeros(after)], dim))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by its sum over all ranks."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _sum_in_place(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, not differentiable."""
        return value if self.world == 1 else all_sum(value.detach())

    def level(self, module: nn.Module) -> None:
        """Broadcast parameters and buffers from rank 0 to all ranks."""
        if self.world > 1:
            for value in module.state_dict().values():
                dist.broadcast(value, 0)

    def first_to_fail(self) -> bool:
        """Register a failure, which ends the waits of other ranks; True on the first to fail: it reports the cause."""
        if self.world == 1:
            return True
        try:
            return self.store.add("failures", 1) == 1
        except RuntimeError:                 # the process that hosts the store has ended, so it failed first
            return False

    def _next(self, what: str) -> str:
        self._calls += 1
        return f"{what} {self._calls}"

    def _wait(self, done: Callable[[], bool]) -> None:
        pause = 0.001
        while not done():
            if self.store.check(["failures"]):
                raise PeerFailedError("another process of this run has failed")
            time.sleep(pause)
            pause = min(2 * pause, 0.2)


ALONE = Group()
_PROCESSES: ContextVar[Group] = ContextVar("processes", default=ALONE)
_ACTIVE: ContextVar[Group] = ContextVar("active", default=ALONE)


def processes() -> Group:
    """The process group of this run, made by `joined`; a group of one outside it."""
    return _PROCESSES.get()


def active_group() -> Group:
    """The group that shards the current work; a group of one outside `Group.together`."""
    return _ACTIVE.get()


def under_torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1")


@contextmanager
def joined() -> Iterator[Group]:
    """The group of the processes that torchrun started, with gloo on CPUs and NCCL on GPUs; else a group of one.

    Raises UserError if the environment sets WORLD_SIZE but not the other variables of torchrun.
    """
    if not under_torchrun():
        yield ALONE
        return
    group = _join()
    token = _PROCESSES.set(group)
    try:
        yield group
        if not group.store.check(["failures"]):
            group.part()
    except BaseException:
        group.first_to_fail()
        raise
    finally:
        _PROCESSES.reset(token)
        dist.destroy_process_group()


def _join() -> Group:
    if missing := [name for name in FROM_TORCHRUN if name not in os.environ]:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} means several processes, but {', '.join(missing)} is "
                        "not set: start them with torchrun, or unset WORLD_SIZE")
    if not dist.is_available():
        raise UserError("this torch was built without torch.distributed: install another build, or start one process")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= available:
            raise UserError(f"there is no GPU for process {local + 1} on this machine: start {available}, or hide all "
                            f"GPUs with CUDA_VISIBLE_DEVICES= and pass {option('device', 'cpu')}")
        torch.cuda.set_device(local)
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=PrefixStore("steps", store), rank=rank,
                            world_size=world, timeout=STEP_TIMEOUT)
    return Group(rank, world, PrefixStore("xrvlm", store))


def _sum_in_place(value: Tensor) -> None:
    try:
        dist.all_reduce(value)
    except RuntimeError as error:            # raised by gloo and NCCL if a process has ended
        raise PeerFailedError(f"another process of this run has ended or is too slow ({error}); run the same command "
                              "again to resume") from error


class _AllSum(torch.autograd.Function):
    """All-reduce. Every rank's loss depends on every rank's input, so the gradient of an input is the sum of the
    gradients of the output over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        _sum_in_place(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllSum.forward(ctx, gradients[0])


def all_sum(value: Tensor) -> Tensor:
    """All-reduce: the sum of `value` over all ranks; differentiable."""
    total = _AllSum.apply(value)
    assert isinstance(total, Tensor)
    return total
