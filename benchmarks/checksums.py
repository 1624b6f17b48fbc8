"""What the checksums of stored features cost: reading a bank that is not in memory, with and without the check.

    python benchmarks/checksums.py --megabytes 512 --turns 15

Each turn opens a bank and reads all of it: in batches of 64 in random order, as training does, or from the first image
to the last, as evaluation does. The system is asked to forget the files before; where the disk is as fast as memory
this changes nothing, so the speed of a bare read is printed.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from common import options, parse
from safetensors import safe_open
from torch import Tensor

from xrvlm.features import bank
from xrvlm.features.bank import FeatureBank, Store, open_bank

POSITIONS, WIDTH = 64, 512
IMAGE_MB = 2 * POSITIONS * WIDTH / 1e6   # in half precision
BATCH = 64


class Unchecked(Store):
    """The control: the same files, mapped as they are."""

    def read(self, path: Path) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.row_shapes}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: that of temporary files")
    arguments = parse(parser, megabytes=16, turns=1)
    images = max(BATCH, round(arguments.megabytes / IMAGE_MB))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0)).split(BATCH)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        opened(Store, Path(folder), images)          # writes it
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        ways: dict[str, Callable[[], object]] = {
            "bare": lambda: bare_read(files),
            "random": lambda: read(opened(Unchecked, Path(folder), images).batches(order, 0)),
            "random, checked": lambda: read(opened(Store, Path(folder), images).batches(order, 0)),
            "in order": lambda: read(opened(Unchecked, Path(folder), images).in_order()),
            "in order, checked": lambda: read(opened(Store, Path(folder), images).in_order()),
        }
        times = {name: [] for name in ways}
        for name in tuple(ways) * arguments.turns:
            forget(files)
            bank._CHECKED.clear()                    # as in a new process
            begin = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - begin)
        size = sum(path.stat().st_size for path in files) / 1e9
    middle = {name: statistics.median(each) for name, each in times.items()}
    print(f"{len(files)} files, {size:.2f} GB, read bare at {size / middle['bare']:.1f} GB/s")
    pairs = {name: (middle[name], middle[f"{name}, checked"]) for name in ("random", "in order")}
    for name, (plain, checked) in pairs.items():
        print(f"{name}: {plain:.3f} s, with checksums {checked:.3f} s; ratio {checked / plain:.3f}")
    plain, checked = (sum(each) for each in zip(*pairs.values(), strict=True))
    print(f"together, as a run that trains and evaluates: ratio {checked / plain:.3f}")


def read(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def opened(kind: type[Store], folder: Path, images: int) -> FeatureBank:
    stamps = [f"image {number}" for number in range(images)]
    shapes = {"pooled": torch.Size((1, WIDTH)), "tokens": torch.Size((1, POSITIONS, WIDTH))}
    store = kind(folder, {"of": "a benchmark"}, shapes, torch.float16, BATCH)
    return open_bank(store, stamps, encode, ids=tuple(stamps), labels=torch.zeros(images, dtype=torch.long), seed=1,
                     lock="lock", progress=lambda done: None)


def encode(shards: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
    for shard in shards:
        for rows in torch.tensor(shard).split(BATCH):
            yield {"pooled": torch.randn(len(rows), 1, WIDTH),
                   "tokens": torch.randn(len(rows), 1, POSITIONS, WIDTH).half()}


def forget(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare_read(files: Sequence[Path]) -> None:
    buffer = bytearray(2 ** 22)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


if __name__ == "__main__":
    main()
