"""One model for many data sets beside a model for each, on equal images.

    python benchmarks/joint.py --photos DIR1,DIR2 [--worlds 2] [--methods linear_probe] [--shots 4,16] [--seeds 1,2,3]

The sets are folders of photos, each with a split.csv, and worlds of drawn birds, all with the photo tower. Printed is a
Markdown table: top-1 within each domain of its own model, of the joint one with the classes of the other domains
masked, and of the joint one as it is; and the differences of the joint one from the own one in points, with the 95 %
interval over seeds and test images, which are resampled together. Finished runs in `--runs` are not done again.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import options, parse
from paired import pooled, told

import xrvlm
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, Split, own_id, with_test_set
from xrvlm.evaluation.metrics import PREDICTIONS
from xrvlm.experiments.evaluate import score
from xrvlm.experiments.run import Run
from xrvlm.reporting.paired import Hits, read_hits

HEADER = ("Shots", "Method", "Domain", "Own model", "Joint, masked", "Joint, not masked", "Masked less own",
          "Not masked less own")
Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]       # hits of one seed: own, masked, not masked


def sets_of(arguments: Any, folder: Path) -> list[Dataset]:
    if arguments.tiny:
        return [replace(xrvlm.load_world(world=world, root=folder / str(world), train_images=2, test_images=1),
                        name=f"birds{world}") for world in (0, 1)]
    photos = [xrvlm.table(each) for each in filter(None, arguments.photos.split(","))]
    worlds = [replace(xrvlm.load_world(world=int(each)), name=f"birds{each}")
              for each in filter(None, arguments.worlds.split(","))]
    return [*photos, *worlds]


def masked(run: Run, whole: Dataset, domain: str, folder: Path) -> Hits:
    """The hits of a joint run on the test images of `domain`, the classes of the others masked."""
    parents = whole.hierarchy or {}
    names = [name for name in whole.split.classes if parents[name] == domain]
    first = whole.split.classes.index(names[0])
    items = [replace(item, label=item.label - first) for item in with_test_set(whole.split).test
             if first <= item.label < first + len(names)]
    own = Dataset(domain, whole.source, Split(tuple(names), train=(), test=tuple(items)))
    score(run.classifier, own, items, folder, among="data")
    return read_hits(folder / PREDICTIONS)


def of_domain(hits: Hits, domain: str) -> dict[str, bool]:
    """{the image's own id: whether it was right}."""
    images, right = hits
    return {own_id(image): bool(hit) for image, hit in zip(images, right, strict=True)
            if image.startswith(f"joint:{domain}/")}


def outcomes(clip: FrozenCLIP, sets: Sequence[Dataset], method: str, shots: int, seed: int, runs: Path,
             ) -> Iterator[tuple[str, Outcome]]:
    kept = {"shots": shots, "seed": seed, "options": xrvlm.RunOptions(runs=runs)}
    whole = xrvlm.joint(sets)
    together = xrvlm.adapt(clip, whole, method, **kept)
    for each in sets:
        alone = xrvlm.adapt(clip, each, method, **kept)
        images, own = read_hits(alone.folder / PREDICTIONS)
        found = [of_domain(masked(together, whole, each.name, together.folder / "eval" / each.name), each.name),
                 of_domain(read_hits(together.folder / PREDICTIONS), each.name)]
        within, among = (np.array([hits[image] for image in images]) for hits in found)
        yield each.name, (own, within, among)


def table(clip: FrozenCLIP, sets: Sequence[Dataset], arguments: Any, runs: Path) -> Iterator[list[str]]:
    for shots in map(int, arguments.shots.split(",")):
        for method in arguments.methods.split(","):
            found: dict[str, list[Outcome]] = defaultdict(list)
            for seed in map(int, arguments.seeds.split(",")):
                for domain, outcome in outcomes(clip, sets, method, shots, seed, runs):
                    found[domain].append(outcome)
            hits = {domain: np.array(each, dtype=float) for domain, each in found.items()}      # (seeds, 3, images)
            for domain, each in hits.items():
                means = [f"{100 * mean:.1f}" for mean in each.mean((0, 2))]
                yield [str(shots), method, domain, *means, *(
                    pooled({(domain, shots): each[:, way] - each[:, 0]}) for way in (1, 2))]
            yield [str(shots), method, "mean", *(f"{100 * np.mean([each[:, way].mean() for each in hits.values()]):.1f}"
                                                 for way in range(3)), *(
                pooled({(domain, shots): each[:, way] - each[:, 0] for domain, each in hits.items()})
                for way in (1, 2))]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--photos", default="", help="folders, each with a split.csv, comma-separated")
    parser.add_argument("--worlds", default="2", help="of drawn birds")
    parser.add_argument("--methods", default="linear_probe,xr_vlm_plus,lp_plus_plus")
    parser.add_argument("--shots", default="4,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--runs", help="the folder of the runs; else they are deleted at the end")
    arguments = parse(parser, methods="linear_probe", shots="1", seeds="1")
    with tempfile.TemporaryDirectory() as folder, told():
        load = xrvlm.load_tiny_clip if arguments.tiny else xrvlm.load_photo
        print(f"| {' | '.join(HEADER)} |\n|--:|---|---|{'--:|' * 5}", flush=True)
        runs = Path(arguments.runs or folder)
        for cells in table(load(device=arguments.device), sets_of(arguments, Path(folder, "sets")), arguments, runs):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
