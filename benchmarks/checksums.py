"""What the checksums of stored features cost: reading shards that are not in memory, with and without the check.

    python benchmarks/checksums.py --megabytes 512 --turns 7
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import options, parse
from safetensors import safe_open
from safetensors.torch import save_file

from xrvlm.features.bank import checksum

SHARD = 64                               # megabytes, as in a cache


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: that of temporary files")
    arguments = parse(parser, megabytes=SHARD, turns=1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        paths = [write(Path(folder) / f"{index}.safetensors") for index in range(max(1, arguments.megabytes // SHARD))]
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * arguments.turns):
            checked = bool(turn % 2)
            times[checked].append(seconds(paths, checked))
    plain, checked = (statistics.median(times[key]) for key in (False, True))
    print(f"{len(paths)} shards of {SHARD} MB, not in memory: read in {plain:.3f} s, with checksums {checked:.3f} s; "
          f"ratio {checked / plain:.3f}")


def write(path: Path) -> Path:
    save_file({"tokens": torch.randn(SHARD * 500_000).half()}, path)
    return path


def seconds(paths: list[Path], checked: bool) -> float:
    """Reads every number once, as a run does: into memory of the process."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            values = file.get_tensor("tokens")
        if checked:
            checksum(values)
        values.float()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
