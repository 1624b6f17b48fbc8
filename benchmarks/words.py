"""What words that are chosen by labelled images bring to zero-shot classification, with true and with false sentences.

    python benchmarks/words.py [--worlds 0,2,3] [--photos DIR1,DIR2] [--sentences FILE1,FILE2] [--names LIST]

`xrvlm prompts` chooses by the training images (`--shots` a class); then all test images are classified, by the first
template, by all templates, by these and all sentences, and by what was kept. The sentences of drawn birds are what they
were drawn by; of a folder of photos (with a split.csv, the photo tower) those of its FILE: {class: {part: sentence}} or
{class: [sentence]}, and its classes are called as in the list of names of its place. The controls: `shuffled`, each
class has another's sentences; `made up`, words drawn from all sentences in a random order; `half wrong`, the true
sentences and as many of another class. The difference to all templates is over test images and seeds, with a bootstrap
over the images (95 %).
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import options, parse

import xrvlm
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, with_test_set
from xrvlm.experiments.wording.prompts import Chosen
from xrvlm.features.source import FeatureSettings, feature_source, pooled_features
from xrvlm.text.class_text import readable, templates

Sentences = Mapping[str, Any]            # {class: [sentence]} or {class: {part: sentence}}
CONTROLS = ("true", "shuffled", "made up", "half wrong")


def data_sets(arguments: Any) -> Iterator[tuple[str, FrozenCLIP, Dataset, list[Sentences]]]:
    """A name, the tower, the images, and the tables of sentences of each data set."""
    for world in filter(None, arguments.worlds.split(",")):
        dataset = xrvlm.load_world(world=int(world))
        root = Path(dataset.source.root)
        tables = [json.loads((root / name).read_text()) for name in ("descriptions.json", "parts.json")]
        yield f"birds, world {world}", xrvlm.load_tiny_clip(device=arguments.device), dataset, tables
    files, names = arguments.sentences.split(","), arguments.names.split(",")
    for place, folder in enumerate(filter(None, arguments.photos.split(","))):
        table = json.loads(Path(files[place]).read_text()) if place < len(files) and files[place] else None
        yield Path(folder).name, xrvlm.load_photo(device=arguments.device), xrvlm.table(
            folder, class_names=(names[place] or None) if place < len(names) else None), \
            [] if table is None else [table]


def as_lists(table: Sentences) -> dict[str, list[str]]:
    return {readable(name): list(own.values()) if isinstance(own, Mapping) else [own] if isinstance(own, str) else own
            for name, own in table.items()}


def control(table: Sentences, kind: str, classes: tuple[str, ...], seed: int) -> Sentences:
    """The sentences of `classes`, true or false; the name in a sentence stays that of its class."""
    names, draws = [readable(name) for name in classes], random.Random(f"{kind} {seed}")
    own = {readable(name): entry for name, entry in table.items()}
    if kind == "true":
        return {name: own[name] for name in names}
    other = dict(zip(names, names[1:] + names[:1], strict=True))       # each gets its neighbour's
    words = [word for said in as_lists(own).values() for sentence in said for word in sentence.split()]

    def false(name: str, sentence: str) -> str:
        if kind == "made up":
            return f"a photo of a {name} " + " ".join(draws.choices(words, k=len(sentence.split())))
        return sentence.replace(other[name], name)

    made = {}
    for name in names:
        entry = own[other[name]]
        if isinstance(entry, Mapping):
            made[name] = {part: false(name, sentence) for part, sentence in entry.items()}
        else:
            made[name] = [false(name, sentence) for sentence in as_lists({name: entry})[name]]
    if kind == "half wrong":
        right, wrong = as_lists({name: own[name] for name in names}), as_lists(made)
        return {name: right[name] + wrong[name] for name in names}
    return made


def hits(clip: FrozenCLIP, prompts: Mapping[str, list[str]], images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """(n,) whether each of `images` (n, d) is classified right by the mean of its class's sentences."""
    with torch.no_grad():
        features = torch.stack([F.normalize(clip.encode_text(own).mean(dim=0), dim=0) for own in prompts.values()])
    return ((images.to(features) @ features.T).argmax(1).cpu() == labels.cpu()).numpy()


def difference(kept: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """The mean difference in points of (r, n) hits, with the bounds of a bootstrap over the images."""
    change = 100 * (kept.astype(float) - base).mean(axis=0)                                 # (n,)
    rng = np.random.default_rng(0)
    means = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(2000)]
    return float(change.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def row(clip: FrozenCLIP, dataset: Dataset, tables: list[Sentences], kind: str, shots: int, seeds: list[int]) -> str:
    """A line of the table."""
    split = with_test_set(dataset.split)
    source = feature_source(clip, dataset.source, split.test, FeatureSettings(views=0), needs=frozenset({"pooled"}),
                            views=0, seed=0, workers=0)
    images, labels = pooled_features(source, clip.device)
    found: dict[str, list[np.ndarray]] = {"first": [], "templates": [], "everything": [], "kept": []}
    levels: list[str] = []
    for seed in seeds:
        told = [control(table, kind, split.classes, seed) for table in tables]
        parts = [table for table in told if isinstance(next(iter(table.values())), Mapping)]
        said = [table for table in told if table not in parts]
        merged = {name: [each for table in said for each in as_lists(table)[name]] for name in said[0]} \
            if said else None
        with TemporaryDirectory() as place:
            chosen: Chosen = xrvlm.choose_prompts(clip, dataset, descriptions=merged, parts=parts[0] if parts else None,
                                                  shots=shots, seed=seed, out=place)
        every = {name: [line.format(readable(name)) for line in templates("ensemble")] for name in split.classes}
        everything = {name: [*own, *(each for table in told for each in as_lists(table)[readable(name)])]
                      for name, own in every.items()}
        for name, prompts in (("first", {name: own[:1] for name, own in every.items()}), ("templates", every),
                              ("everything", everything), ("kept", chosen.prompts)):
            found[name].append(hits(clip, prompts, images, labels))
        levels.append(chosen.level)
    means = " | ".join(f"{100 * np.mean(found[name]):.1f}" for name in found)
    change, low, high = difference(np.array(found["kept"]), np.array(found["templates"]))
    return f"{shots} | {means} | {change:+.1f} ({low:+.1f} to {high:+.1f}) | {', '.join(sorted(set(levels)))} |"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--worlds", default="0,2,3")
    parser.add_argument("--photos", default="")
    parser.add_argument("--sentences", default="")
    parser.add_argument("--names", default="")
    parser.add_argument("--shots", default="4,16")
    parser.add_argument("--seeds", default="1,2,3")
    arguments = parse(parser)
    if arguments.tiny:
        arguments.worlds, arguments.photos, arguments.shots, arguments.seeds = "0", "", "4", "1"
    print("| images | sentences | shots | first template | all templates | and all sentences | kept | kept - all "
          "templates (points) | level |\n|---|---|--:|--:|--:|--:|--:|--:|---|")
    for name, clip, dataset, tables in data_sets(arguments):
        for kind in CONTROLS if tables else ("none",):
            for shots in map(int, arguments.shots.split(",")):
                print(f"| {name} | {kind} | "
                      f"{row(clip, dataset, tables, kind, shots, [int(each) for each in arguments.seeds.split(',')])}",
                      flush=True)


if __name__ == "__main__":
    main()
