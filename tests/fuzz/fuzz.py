"""Try hostile inputs: `python tests/fuzz/fuzz.py [--share 0.05] [--seed 1] [--only images,tables] [--number 137]`.

Each input is drawn from (seed, kind, number). It is right that xrvlm uses it, with a result that has a meaning, or
that it refuses it by a UserError. All else is a failure: it is printed with what repeats it, and the exit code is 1.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])          # where pytest looks for the helpers of tests, too

from fuzz.apart import SECONDS, apart
from fuzz.bench import Bench, benched
from fuzz.cache import cache, undamaged
from fuzz.configurations import configuration
from fuzz.headers import header
from fuzz.images import image
from fuzz.kills import kill, undisturbed
from fuzz.oracle import REFUSED, USED
from fuzz.tables import table

Try = Callable[[Bench, Random, Path, int], str]           # USED or REFUSED; raises whatever is a failure
KINDS: dict[str, tuple[Try, int]] = {"images": (image, 500), "tables": (table, 200), "headers": (header, 200),
                                     "configurations": (configuration, 200), "cache": (cache, 100), "kills": (kill, 60)}
# what the inputs of a kind share, made before the first
PREPARED: dict[str, Callable[[Bench], object]] = {"cache": undamaged, "kills": undisturbed}


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    kind: str
    used: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tried = self.used + self.refused + len(self.failures)
        return (f"{self.kind}: {tried} tried, {self.refused} refused, {self.used} used, {len(self.failures)} failures, "
                f"{self.seconds:.0f} s")


def tried(bench: Bench, kind: str, seed: int, numbers: Iterable[int], seconds: float = SECONDS,
          trace: bool = False) -> Tally:
    """Try the inputs of a kind with these numbers, each in a process of its own."""
    PREPARED.get(kind, Bench.ready)(bench)
    tally, begin = Tally(kind), time.monotonic()
    for number in numbers:
        with bench.case(f"{kind}-{number}") as place:
            draw = Random(f"{seed}/{kind}/{number}")
            found, problem = apart(partial(KINDS[kind][0], bench, draw, place, number), bench.scratch / "hang", seconds,
                                   trace)
        tally.used += found == USED
        tally.refused += found == REFUSED
        if found is None:
            tally.failures.append(f"FAILURE --only {kind} --number {number} --seed {seed}: {problem}")
    tally.seconds = time.monotonic() - begin
    return tally


def sample(kind: str, share: float) -> range:
    return range(max(1, round(KINDS[kind][1] * share)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(KINDS), help=f"kinds: {', '.join(KINDS)}")
    parser.add_argument("--number", type=int, help="this input alone, with its traceback")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the limit of one input")
    given = parser.parse_args(arguments)
    chosen = given.only.split(",")
    if strange := set(chosen) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(strange))}")
    logging.getLogger().addHandler(logging.NullHandler())
    failed = 0
    with benched() as bench:
        for kind in chosen:
            numbers = sample(kind, given.share) if given.number is None else [given.number]
            tally = tried(bench, kind, given.seed, numbers, given.seconds, trace=given.number is not None)
            print("\n".join([*tally.failures, str(tally)]), flush=True)
            failed += len(tally.failures)
    return int(failed > 0)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)             # tiny tensors, and forks
    sys.exit(main())
