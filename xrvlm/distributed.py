"""One run over several processes, as torchrun starts them; docs/distributed.md says why it equals one process.

Every process holds the whole method and differentiates the sum of all their losses by its own copy of the parameters:
what crosses between processes does so through `all_sum`, whose adjoint is itself. The gradients of the copies are
then summed, which is the chain rule for one parameter that stands in several places.
"""

import json
import os
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

from xrvlm import files
from xrvlm.errors import UserError

STEP_TIMEOUT = timedelta(minutes=10)     # of one exchange within a step; waiting for a whole stage has no limit
FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class PeerFailedError(RuntimeError):
    """Another process of this run has failed, and has told why."""


class Group:
    """The processes of a run as one of them, number `rank` of `world`, sees them.

    All of them make the same calls in the same order. `store` is where they leave messages: a wait there has no time
    limit, since one may train for hours while the others wait, and ends where one of them fails.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None):
        self.rank, self.world, self.store, self._calls = rank, world, store, 0

    @property
    def first(self) -> bool:
        """This process writes, logs and prints."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives in the first process, which alone calls it; something that JSON can say."""
        if self.world == 1:
            return make()
        key = self._next("said")
        if self.first:
            value = make()
            self.store.set(key, json.dumps(value))
            return value
        self._wait(lambda: self.store.check([key]))
        return json.loads(self.store.get(key))

    def check_same(self, value: Any, what: str) -> None:
        """UserError where the first process has another `value` than this one."""
        if self.from_first(lambda: value) != value:
            raise UserError(f"the processes of this run see different {what}: give all of them the same command, and "
                            "folders for data, runs and features on a disk that all of them see")

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            key = self._next("met")
            self.store.add(key, 1)
            self._wait(lambda: self.store.add(key, 0) >= self.world)

    @contextmanager
    def alone(self, lock_file: Path, busy: str | None = None) -> Iterator[None]:
        """`files.alone`, for all processes of this run together: the first takes the lock, the others wait for it."""
        with files.alone(lock_file, busy) if self.first else nullcontext():
            self.meet()
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """In here all processes do the same work, each its share of it: see `together`."""
        token = _TOGETHER.set(self)
        try:
            yield
        finally:
            _TOGETHER.reset(token)

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's: a run of them; none where there are more processes."""
        size, more = divmod(count, self.world)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def gather(self, own: Tensor, count: int, dim: int) -> Tensor:
        """The shares of all processes side by side along `dim`, `count` in all; differentiable."""
        if self.world == 1:
            return own
        place, shape = self.share(count), list(own.shape)
        before, after = ([*shape[:dim], size, *shape[dim + 1:]] for size in (place.start, count - place.stop))
        return all_sum(torch.cat([own.new_zeros(before), own, own.new_zeros(after)], dim))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every copy of a parameter the sum of the gradients of all copies."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _sum_in_place(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes, not differentiable."""
        return value if self.world == 1 else all_sum(value.detach())

    def level(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers, bit for bit."""
        if self.world > 1:
            for value in module.state_dict().values():
                dist.broadcast(value, 0)

    def first_to_fail(self) -> bool:
        """No other process has failed before: this one tells why. From now on no other waits for it."""
        if self.world == 1:
            return True
        try:
            return self.store.add("failures", 1) == 1
        except RuntimeError:                 # the process that kept the store is gone, it failed first
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
_TOGETHER: ContextVar[Group] = ContextVar("together", default=ALONE)


def processes() -> Group:
    """The processes that `joined` brought together; one outside of it."""
    return _PROCESSES.get()


def together() -> Group:
    """The processes that share the work being done here; one process does it whole, as one of several does what is
    its alone, such as an evaluation.
    """
    return _TOGETHER.get()


def under_torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1")


@contextmanager
def joined() -> Iterator[Group]:
    """The processes that torchrun started as one group: gloo on CPUs, NCCL on GPUs; this process alone without it.

    Raises UserError where the environment says that there are several and not where they meet.
    """
    if not under_torchrun():
        yield ALONE
        return
    group = _join()
    token = _PROCESSES.set(group)
    try:
        yield group
        if not group.store.check(["failures"]):
            group.meet()                     # who keeps the store leaves last
    except BaseException:
        group.first_to_fail()
        raise
    finally:
        _PROCESSES.reset(token)
        dist.destroy_process_group()


def _join() -> Group:
    if missing := [name for name in FROM_TORCHRUN if name not in os.environ]:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that this is one of several processes, and "
                        f"{', '.join(missing)} is not set: start them with torchrun, or unset WORLD_SIZE")
    if not dist.is_available():
        raise UserError("this torch was built without torch.distributed: install another, or start one process")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= available:
            raise UserError(f"there is no GPU for process {local + 1} on this machine: start {available} on it, or "
                            "hide all GPUs with CUDA_VISIBLE_DEVICES= and pass device=cpu")
        torch.cuda.set_device(local)
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=PrefixStore("steps", store), rank=rank,
                            world_size=world, timeout=STEP_TIMEOUT)
    return Group(rank, world, PrefixStore("xrvlm", store))


def _sum_in_place(value: Tensor) -> None:
    try:
        dist.all_reduce(value)
    except RuntimeError as error:            # what gloo and NCCL raise where a process is gone
        raise PeerFailedError(f"another process of this run is gone, or too slow ({error}); the same command goes on "
                              "where it was") from error


class _AllSum(torch.autograd.Function):
    """The sum over all processes, in each of them. Every loss depends on every process's summand, so that the gradient
    of one of these is the sum of the gradients of all copies of the result.
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
    """The sum of `value` over all processes, in each of them; differentiable."""
    total = _AllSum.apply(value)
    assert isinstance(total, Tensor)
    return total
