"""Whether one method is ahead of others over several data sets: paired over images, resampled over images and seeds.

    python benchmarks/paired.py runs/photos runs/kinds --method xr_vlm_plus
        --baselines linear_probe,lp_plus_plus,tip_adapter_f:fit_prior=true,zero_shot,xr_vlm:recipe=fast

It reads what finished runs left. A method is `NAME` or `NAME:OPTION=VALUE...`, all options that differ from their
defaults; `recipe` and `prompts`, by their names in results.jsonl, may be among them. Each data set and number of shots
has equal weight. In each of the resamples the seeds and the test images of a data set are drawn with replacement, the
same images for all its shots. Printed: the mean difference of top-1 in points, and its 95 % interval.
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import options, parse

import xrvlm
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunRecord
from xrvlm.reporting.paired import read_hits
from xrvlm.reporting.results import read_records

Key = tuple[str, int | str]              # data set, shots
RESAMPLES = 2_000


def hits_of(folders: Sequence[Path], method: str) -> dict[Key, dict[int, np.ndarray]]:
    """{(data set, shots): {seed: whether each test image was right}} of the runs of `method`."""
    name, *given = method.split(":")
    wanted = dict(option.split("=", 1) for option in given)
    recipe, prompts = wanted.pop("recipe", None), wanted.pop("prompts", None)
    found: dict[Key, dict[int, np.ndarray]] = defaultdict(dict)
    for folder in folders:
        for record in read_records(folder):
            if (record.method == name and recipe in (None, record.recipe) and prompts in (None, record.prompts)
                    and _options(record) == wanted):
                if record.seed in found[record.data, record.shots]:
                    raise UserError(f"{method} stands for two runs on {record.data}; name its options, its recipe and "
                                    "its prompts")
                found[record.data, record.shots][record.seed] = read_hits(folder / record.run / "predictions.csv")[1]
    if not found:
        raise UserError(f"no run of {method} in {', '.join(map(str, folders))}")
    return found


def _options(record: RunRecord) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in record.options.items()}


def differences(ours: dict[Key, dict[int, np.ndarray]], theirs: dict[Key, dict[int, np.ndarray]],
                ) -> dict[Key, np.ndarray]:
    """(seeds, images) in -1, 0, 1 of each data set and number of shots that both have; zero-shot has one result."""
    found = {}
    for key, runs in sorted(ours.items(), key=str):
        others = theirs.get(key) or {seed: next(iter(theirs[key[0], 0].values())) for seed in runs
                                     if (key[0], 0) in theirs}
        if both := sorted(runs.keys() & others.keys()):
            found[key] = np.stack([runs[seed].astype(float) - others[seed] for seed in both])
    return found


def pooled(found: dict[Key, np.ndarray]) -> str:
    """The mean over the keys, and its interval."""
    draws = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for resample in range(RESAMPLES):
        images = {data: draws.integers(found[data, shots].shape[1], size=found[data, shots].shape[1])
                  for data, shots in found}
        means[resample] = np.mean([value[draws.integers(len(value), size=len(value))][:, images[data]].mean()
                                   for (data, _), value in found.items()])
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * np.mean([value.mean() for value in found.values()]):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _order(shots: int | str) -> tuple[bool, int]:
    """Numbers, then "all"."""
    return isinstance(shots, str), shots if isinstance(shots, int) else 0


def show(folders: Sequence[Path], method: str, baselines: Sequence[str]) -> None:
    ours = hits_of(folders, method)
    for baseline in baselines:
        found = differences(ours, hits_of(folders, baseline))
        print(f"{method} less {baseline}, {len({data for data, _ in found})} data sets: {pooled(found)}")
        for shots in sorted({shots for _, shots in found}, key=_order):
            some = {key: value for key, value in found.items() if key[1] == shots}
            each = "; ".join(f"{data} {pooled({(data, shots): value})}" for (data, _), value in some.items())
            print(f"  {shots} shots: {pooled(some)}   ({each})")


@contextmanager
def told() -> Iterator[None]:
    """Errors that name their fix, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    parser.add_argument("--method", default="xr_vlm_plus")
    parser.add_argument("--baselines", default="linear_probe")
    arguments = parse(parser, method="gda", baselines="zero_shot,tip_adapter")
    with tempfile.TemporaryDirectory() as folder, told():
        if arguments.tiny:
            birds = xrvlm.load_world(root=f"{folder}/birds", train_images=1, test_images=1)
            clip = xrvlm.load_tiny_clip(device="cpu")
            runs = xrvlm.RunOptions(runs=f"{folder}/runs")
            xrvlm.zero_shot(clip, birds, options=runs)
            for method in ("tip_adapter", "gda"):
                xrvlm.adapt(clip, birds, method, shots=1, options=runs)
        show(arguments.runs or [Path(folder, "runs")], arguments.method, arguments.baselines.split(","))


if __name__ == "__main__":
    main()
