"""Every random draw is seeded with a key such as (seed, "order", epoch); no generator state is carried over.

So a resumed run equals an uninterrupted one, and results do not depend on the number of worker processes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
