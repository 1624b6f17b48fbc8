"""What the answers beyond probabilities are worth: sets, wrong labels, images to label next.

    python benchmarks/trust.py coverage|suspects|next|hierarchy [--worlds 0,3] [--photos DIR1,DIR2] [--seeds 1,2,3]

Drawn birds with the tiny tower, and folders of photos, each with a split.csv, with the photo tower.

`coverage`: split conformal sets of the linear probe and of XR-VLM+ at 8 shots. All images that were not trained on are
drawn 20 times into images to calibrate on, at most half of them and at most 200, and images to test on.
`suspects`: 5 % of all labels are replaced by another class; which share of the k most suspicious labels were replaced
(precision) and which share of those is among them (recall), for k half, once and twice their number. The controls are
the linear probe's own 1 - p(label), out of fold too, and chance.
`next`: from 2 labels a class, as many more as classes are labelled, then as many again, twice and four times as many:
top-1 of the linear probe where `xrvlm next` chooses them, and where chance does. A round sees the labels of the last.
`hierarchy`: at 8 shots, calibrated by folds, the figures of the tree (the kind of a drawn bird; of photos that of
`--tree`), and what is named where 90 % certainty is asked: the class, a node above it, nothing; and how much of what is
named is right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from common import options, parse
from torch import Tensor

import xrvlm
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Dataset, Item, sample_shots, with_test_set
from xrvlm.distributed import generator
from xrvlm.evaluation.conformal import SET_SCORES, coverage_table, misfit, quantile, sets
from xrvlm.evaluation.hierarchy import Hierarchy
from xrvlm.experiments.labelling.choose import chosen, uncertainty
from xrvlm.experiments.labelling.suspects import find_suspects
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import FeatureSettings, feature_source
from xrvlm.methods.base import Method, probabilities
from xrvlm.methods.linear_probe import LinearProbe
from xrvlm.methods.xr_vlm.xr_vlm_plus import XRVLMPlus
from xrvlm.text.class_text import class_text
from xrvlm.training.folds import logits_of

CERTAIN, TREE = 0.9, ("mistake_severity", "hierarchical_precision", "hierarchical_recall")
ASKED, REDRAWS, WRONG, START, ROUNDS = (0.8, 0.9, 0.95), 20, 0.05, 2, (1, 1, 2, 4)


def worlds_and_photos(arguments: Any) -> Iterator[tuple[str, FrozenCLIP, Dataset]]:
    for world in filter(None, arguments.worlds.split(",")):
        yield f"birds, world {world}", xrvlm.load_tiny_clip(device=arguments.device), xrvlm.load_world(world=int(world))
    for folder in filter(None, arguments.photos.split(",")):
        yield Path(folder).name, xrvlm.load_photo(device=arguments.device), xrvlm.table(
            folder, hierarchy=arguments.tree)


def bank_of(clip: FrozenCLIP, dataset: Dataset, items: Sequence[Item], method: Method) -> FeatureBank:
    found = feature_source(clip, dataset.source, tuple(items), FeatureSettings(views=0),
                           needs=frozenset({*method.needs, "pooled"}), views=0, seed=0, workers=0)
    assert isinstance(found, FeatureBank), "the features fit in memory"
    return found


def coverage(name: str, clip: FrozenCLIP, dataset: Dataset, seeds: Sequence[int], redraws: int) -> None:
    text = class_text(dataset.split.classes)
    for kind in (LinearProbe, XRVLMPlus):
        found: dict[tuple[str, float], list[dict[str, float]]] = {}
        for seed in seeds:
            split = sample_shots(dataset.split, 8, seed)
            trained = {item.id for item in split.train}
            rest = [item for part in (dataset.split.train, dataset.split.val, dataset.split.test) for item in part
                    if item.id not in trained]
            method = kind(clip, text).to(clip.device)
            method.prepare(clip, bank_of(clip, dataset, split.train, method))
            source = bank_of(clip, dataset, rest, method)
            chances, labels = logits_of(method, clip, source).double().softmax(1), source.labels
            for redraw in range(redraws):
                order = torch.randperm(len(rest), generator=generator(seed, "redraw", redraw))
                own, test = order.split([count := min(200, len(rest) // 2), len(rest) - count])
                for score in SET_SCORES:
                    fit = misfit(score, chances)
                    for asked in ASKED:
                        limit = quantile(fit[own].gather(1, labels[own, None])[:, 0], asked)
                        row = coverage_table(sets(fit[test], limit), labels[test])
                        found.setdefault((score, asked), []).append(row)
        for (score, asked), rows in found.items():
            mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
            print(f"| {name} | {method.label} | {score} | {asked:.0%} | {mean['coverage']:.1%} | "
                  f"{mean['set_size']:.2f} | {mean['worst_class']:.1%} |")


def suspects(name: str, clip: FrozenCLIP, dataset: Dataset, seeds: Sequence[int], _: int) -> None:
    rows: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in seeds:
        every = [item for part in (dataset.split.train, dataset.split.val, dataset.split.test) for item in part]
        count, draw = len(dataset.split.classes), generator(seed, "wrong labels")
        drawn = torch.randperm(len(every), generator=draw)[:round(WRONG * len(every))]
        wrong = {every[row].id for row in drawn.tolist()}
        planted = tuple(replace(item, label=(item.label + int(torch.randint(1, count, (), generator=draw))) % count)
                        if item.id in wrong else item for item in every)
        found = find_suspects(clip, replace(dataset, split=replace(dataset.split, train=planted, val=(), test=())),
                              seed=seed).suspects
        rankings = {"suspicion": found, "1 - p(label)": sorted(found, key=lambda row: row["probability"])}
        for score, ranked in rankings.items():
            for share in (0.5, 1.0, 2.0):
                k = round(share * len(wrong))
                hits = sum(row["image"] in wrong for row in ranked[:k])
                rows.setdefault((score, share), []).append((hits / k, hits / len(wrong)))
    for (score, share), values in rows.items():
        precision, recall = (sum(column) / len(values) for column in zip(*values, strict=True))
        print(f"| {name} | {score} | {share:g} | {precision:.1%} | {recall:.1%} |")
    for share in (0.5, 1.0, 2.0):
        print(f"| {name} | chance | {share:g} | {WRONG:.1%} | {share * WRONG:.1%} |")


def next_labels(name: str, clip: FrozenCLIP, dataset: Dataset, seeds: Sequence[int], _: int) -> None:
    split, text = with_test_set(dataset.split), class_text(dataset.split.classes)
    method = LinearProbe(clip, text)
    pool, test = (bank_of(clip, dataset, items, method) for items in (split.train, split.test))
    features = F.normalize(torch.cat([x.pooled.float() for x, _ in pool.in_order()]), dim=1)
    tops: dict[str, list[list[float]]] = {"next": [], "chance": []}
    for seed in seeds:
        first = {item.id for item in sample_shots(split, START, seed).train}
        for rule, lines in tops.items():
            have = torch.tensor([item in first for item in pool.ids])
            line = []
            for number, times in enumerate(ROUNDS):
                model, count = trained(clip, text, pool, have), times * len(split.classes)
                left = (~have).nonzero().flatten()
                if rule == "next":
                    chances = logits_of(model, clip, pool.take(left)).softmax(1)
                    rows = chosen(uncertainty(chances), features[left], features[have], count)
                else:
                    rows = torch.randperm(len(left), generator=generator(seed, "chance", number))[:count]
                have[left[rows]] = True
                model = trained(clip, text, pool, have)
                right = logits_of(model, clip, test).argmax(1) == test.labels
                line.append(right.double().mean().item())
            lines.append(line)
    for number in range(len(ROUNDS)):
        labels = (START + sum(ROUNDS[:number + 1])) * len(split.classes)
        mine, chance = ([line[number] for line in tops[rule]] for rule in ("next", "chance"))
        gain = [100 * (one - other) for one, other in zip(mine, chance, strict=True)]
        print(f"| {name} | {labels} | {100 * sum(mine) / len(mine):.1f} | {100 * sum(chance) / len(chance):.1f} | "
              f"{', '.join(f'{each:+.1f}' for each in gain)} |")


def trained(clip: FrozenCLIP, text: xrvlm.ClassText, pool: FeatureBank, have: Tensor) -> LinearProbe:
    method = LinearProbe(clip, text).to(clip.device)
    method.prepare(clip, pool.take(have.nonzero().flatten()))
    return method


def hierarchy(name: str, clip: FrozenCLIP, dataset: Dataset, seeds: Sequence[int], _: int) -> None:
    if dataset.hierarchy is None:
        kinds = {each: each.split()[-1] for each in dataset.split.classes}
        dataset = replace(dataset, hierarchy=kinds | dict.fromkeys(kinds.values(), ""))
    tree = Hierarchy(dataset.split.classes, dataset.hierarchy or {})
    for method in "zero_shot", "linear_probe", "xr_vlm_plus":
        rows: list[dict[str, float]] = []
        for seed in seeds:
            with TemporaryDirectory() as runs:
                run = xrvlm.adapt(clip, dataset, method, shots=8, seed=seed, options=xrvlm.RunOptions(
                    runs=runs, calibrate="folds", features=FeatureSettings(views=0)))
            test = with_test_set(dataset.split).test
            source = bank_of(clip, dataset, test, run.classifier.method)
            chances = probabilities(run.classifier.method, clip, source)
            node, _chance = tree.deepest(chances, CERTAIN)
            named, classes = node >= 0, len(tree.classes)
            right = tree.members[source.labels, node.clamp_min(0)].bool() & named
            found = {"class": named & (node < classes), "above": node >= classes, "nothing": ~named}
            rows.append({key: value for key, value in run.record.metrics.items() if key in TREE or key[:6] == "level_"}
                        | {key: value.double().mean().item() for key, value in found.items()}
                        | {"right": (right.sum() / named.sum()).item()})
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        levels = " / ".join(f"{mean[key]:.1%}" for key in sorted(mean) if key[:6] == "level_")
        shares = " | ".join(f"{mean[key]:.1%}" for key in (*TREE[1:], "class", "above", "nothing", "right"))
        print(f"| {name} | {method} | {levels} | {mean['mistake_severity']:.2f} | {shares} |")


STUDIES = {
    "hierarchy": (hierarchy, "| data | method | top-1 from the top level down | severity | precision | recall | "
                             "class named | node above | nothing | right of what is named |"),
    "coverage": (coverage, "| data | method | sets | asked | coverage | classes a set | worst class |"),
    "suspects": (suspects, "| data | score | k / planted | precision | recall |"),
    "next": (next_labels, "| data | labels | next | chance | difference of each seed |")}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("study", nargs="?", choices=STUDIES, default="coverage")
    parser.add_argument("--worlds", default="0,3")
    parser.add_argument("--photos", default="", help="folders with a split.csv")
    parser.add_argument("--tree", help="of the photos: a file with the nodes above the classes")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--redraws", type=int, default=REDRAWS)
    arguments = parse(parser, worlds="0", seeds="1", redraws=2)
    study, header = STUDIES[arguments.study]
    print(f"{header}\n|{'---|' * (header.count('|') - 1)}")
    for name, clip, dataset in worlds_and_photos(arguments):
        study(name, clip, dataset, [int(seed) for seed in arguments.seeds.split(",")], arguments.redraws)


if __name__ == "__main__":
    main()
