"""Every random draw comes from a key such as (seed, "order", epoch): no state is carried from one draw to the next.

So a resumed run equals a straight one, and the number of worker processes does not matter.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*key: object) -> int:
    """63 bits from the words of `key`."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A generator on the CPU: the same draws whatever the device that uses them."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """torch's global generators seeded from `key` inside, as they were before outside."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*key))
        yield
