"""What a second tower and a second look are worth, beside their controls, paired over the same test images.

    python benchmarks/second.py --photos DIR/flowers17 DIR/dtd10 --what second --runs runs/second
    python benchmarks/second.py --photos DIR/flowers17 DIR/dtd10 --what look --runs runs/second
    python benchmarks/second.py --world 2 --what second --runs runs/second   # drawn birds; --first photo turns it

Each folder of photos has a split.csv (path, class, split). For each data set, tower and method it prints top-1 in %,
the mean over the seeds, at each number of shots; then the difference to the tower alone, over all numbers of shots,
with a 95 % interval over seeds and test images. A run that is finished is not done again. Controls of a second tower:
the same tower twice, and other crops of the photo as the second features. Controls of a second look: windows drawn at
random, the same five windows of every photo, and the whole photo in more pixels.
"""

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from common import options, parse
from paired import Key, pooled

import xrvlm
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.methods.registry import find
from xrvlm.reporting.paired import read_hits

Load = Callable[[], FrozenCLIP]
SECOND_READERS = {"linear_probe": ("linear_probe", {}), "xr_vlm_plus": ("xr_vlm_plus", {}),
                  "amu_tuning": ("amu_tuning", {}),
                  "tip_adapter_f": ("tip_adapter_f", {"inputs": "auto", "scaling": "auto", "fit_prior": True})}
READERS = ("linear_probe", "xr_vlm_plus")
VIEWS = xrvlm.FeatureSettings(views=0)


def towers_of(what: str, base: str) -> dict[str, Load]:
    """The tower alone first, then what is asked about, then the controls."""
    own, other = ("photo", "tiny") if base == "photo" else ("tiny", "photo")
    load = {"photo": partial(xrvlm.load_photo, device="cpu"), "tiny": partial(xrvlm.load_tiny_clip, device="cpu")}
    alone: dict[str, Load] = {own: load[own]}
    if what == "second":
        return alone | {
            f"{own} + {other}": lambda: xrvlm.paired(load[own](), load[other]()),
            f"{own} + {own}, the same": lambda: xrvlm.paired(load[own](), load[own]()),
            f"{own} + 3 crops of it": lambda: xrvlm.second_look(load[own](), 3, where="fixed", use="parts"),
            f"{other} alone": load[other]}
    looks: dict[str, Load] = {
        f"3 looks, {use}, {where}": partial(_look, load[own], where, use)
        for use in ("average", "parts") for where in ("agreement", "random", "fixed")}
    larger = {"448 pixels": lambda: xrvlm.load_photo(image_size=448, device="cpu")} if own == "photo" else {}
    return alone | looks | larger


def _look(load: Load, where: str, use: str) -> FrozenCLIP:
    return xrvlm.second_look(load(), 3, where=where, use=use)


def hits(clip: FrozenCLIP, dataset: xrvlm.Dataset, reader: str, given: Namespace) -> dict[Key, dict[int, np.ndarray]]:
    """{(data set, shots): {seed: whether each test image was right}}"""
    name, own = SECOND_READERS[reader]
    found: dict[Key, dict[int, np.ndarray]] = {}
    for shots in given.shots:
        for seed in given.seeds:
            run = xrvlm.adapt(clip, dataset, find(name, **own), shots=shots, seed=seed,
                              options=xrvlm.RunOptions(runs=given.runs, features=VIEWS, workers=0))
            found.setdefault((dataset.name, shots), {})[seed] = read_hits(run.folder / "predictions.csv")[1]
    return found


def row(words: Sequence[str], of: dict[Key, dict[int, np.ndarray]],
        alone: dict[Key, dict[int, np.ndarray]] | None) -> str:
    means = [f"{100 * statistics.fmean(runs[seed].mean() for seed in runs):.1f}" for runs in of.values()]
    difference = "" if alone is None else pooled({
        key: np.stack([of[key][seed].astype(float) - alone[key][seed] for seed in of[key]]) for key in of})
    return f"| {' | '.join([*words, *means, difference])} |"


def show(dataset: xrvlm.Dataset, given: Namespace) -> None:
    base = given.first or ("tiny" if given.world is not None else "photo")
    readers = given.methods or (SECOND_READERS if given.what == "second" else READERS)
    print(f"\n| {dataset.name} | tower | {' | '.join(f'{shots} shots' for shots in given.shots)} | less alone |")
    print(f"|---|---|{'--:|' * (len(given.shots) + 1)}", flush=True)
    alone: dict[str, dict[Key, dict[int, np.ndarray]]] = {}
    for number, (words, load) in enumerate(towers_of(given.what, base).items()):
        if given.only and words not in given.only:
            continue
        clip = load()
        for reader in readers:
            if reader == "amu_tuning" and not clip.second_width:
                continue
            found = hits(clip, dataset, reader, given)
            if number == 0:
                alone[reader] = found
            # AMU-Tuning has no tower alone: a linear probe of it stands there
            against = None if number == 0 else alone.get(reader, alone.get("linear_probe"))
            print(row([reader, words], found, against), flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--photos", nargs="*", type=Path, default=[])
    parser.add_argument("--world", type=int, help="of drawn birds")
    parser.add_argument("--first", choices=("photo", "tiny"), help="the tower that stands alone; else photo for photos")
    parser.add_argument("--what", choices=("second", "look"), default="second")
    parser.add_argument("--only", nargs="*", help="these towers alone, as the table names them")
    parser.add_argument("--methods", nargs="*", choices=SECOND_READERS, help="these alone")
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/second"))
    given = parse(parser, shots=[2], seeds=[1])
    if given.tiny:
        with tempfile.TemporaryDirectory() as folder:
            given.runs, given.world = Path(folder, "runs"), 0
            given.only = ["tiny", "3 looks, average, agreement"] if given.what == "look" else [
                "tiny", "tiny + tiny, the same"]
            given.methods = ["linear_probe", "amu_tuning"]
            show(xrvlm.load_world(root=f"{folder}/birds", train_images=2, test_images=1), given)
        return
    if given.world is not None:
        show(xrvlm.load_world(world=given.world), given)
    for folder in given.photos:
        show(xrvlm.table(folder, file="split.csv"), given)


if __name__ == "__main__":
    main()
