"""Words chosen by labelled images, against loops over every choice."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from photos import CLASSES, photo_folder

import xrvlm
from xrvlm.cli.main import main
from xrvlm.errors import UserError
from xrvlm.experiments.wording.prompts import Choice, Group, Judge

pytestmark = pytest.mark.usefixtures("at_home")
WIDTH, NAMES = 6, 3


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def group(kind: str, name: str, features: torch.Tensor) -> Group:
    """`features` (c, s, d)."""
    sentences = [[f"{kind} {name} {label} {place}" for place in range(features.shape[1])] for label in range(NAMES)]
    return Group(kind, name, sentences, list(features))


@pytest.fixture
def judge() -> Judge:
    truth = drawn(NAMES, WIDTH, seed=1)
    labels = torch.arange(30) % NAMES
    images = F.normalize(truth[labels] + 0.6 * drawn(30, WIDTH, seed=2), dim=1)
    groups = [group("template", "a", drawn(NAMES, 1, WIDTH, seed=3)),
              group("template", "b", drawn(NAMES, 1, WIDTH, seed=4)), group("part", "true", truth[:, None]),
              group("descriptions", "", torch.stack([F.normalize(truth + 0.2 * drawn(NAMES, WIDTH, seed=5), dim=1),
                                                     drawn(NAMES, WIDTH, seed=6)], dim=1))]
    return Judge(groups, images, labels, 8.0)


def likely(judge: Judge, choice: Choice, rows: torch.Tensor) -> float:
    """The mean log-likelihood, image by image."""
    scale, features, found = judge.scale / judge.temperature(rows), [], []
    for label in range(NAMES):
        words = [judge.groups[place].features[label][index] for place in choice.groups
                 for index in range(len(judge.groups[place].sentences[label]))
                 if (place, label, index) not in choice.dropped]
        features.append(F.normalize(torch.stack(words).mean(0), dim=0))
    for row in rows.nonzero().flatten().tolist():
        logits = torch.stack([scale * judge.images[row] @ each for each in features])
        found.append((logits[judge.labels[row]] - logits.logsumexp(0)).item())
    return sum(found) / len(found)


def test_class_features_are_the_mean_of_the_words(judge):
    choice = Choice([0, 3], {(3, 1, 0)})
    expected = torch.stack([judge.groups[0].features[1][0], judge.groups[3].features[1][1]]).mean(0)
    assert torch.allclose(judge.class_features(choice)[1], F.normalize(expected, dim=0), atol=1e-6)
    assert judge.words(choice, 1) == ["template a 1 0", "descriptions  1 1"]
    assert len(judge.words(choice, 0)) == 3


def test_groups_are_the_best_by_hand(judge):
    rows = torch.ones(30, dtype=torch.bool)
    taken = judge.choose(rows)["groups"]
    best = likely(judge, Choice(taken.groups), rows)
    others = [each for each in range(4) if each not in taken.groups]
    changed = [[*taken.groups, each] for each in others] + [
        [each for each in taken.groups if each != gone] for gone in taken.groups if len(taken.groups) > 1]
    assert all(likely(judge, Choice(each), rows) < best + 2e-4 for each in changed)    # one more, or one less
    assert best > max(likely(judge, Choice([each]), rows) for each in range(4)) - 1e-6
    first = taken.groups[0]
    assert taken.brought[first] == pytest.approx(likely(judge, Choice([first]), rows) + math.log(NAMES), abs=1e-4)


def test_a_sentence_is_dropped_where_its_absence_helps_and_no_other(judge):
    rows = torch.ones(30, dtype=torch.bool)
    start = Choice([0, 3])
    choice = judge._less(start, judge.images, judge.labels, judge.scale / judge.temperature(rows))
    assert choice.dropped
    before = Choice(start.groups)
    for dropped in sorted(choice.brought, key=lambda each: each[1]):          # class by class, as they were dropped
        after = Choice(start.groups, before.dropped | {dropped})
        gain = likely(judge, after, rows) - likely(judge, before, rows)
        assert choice.brought[dropped] == pytest.approx(gain, abs=1e-4)
        assert gain > 0
        before = after
    last = max(label for _, label, _ in choice.dropped) if choice.dropped else 0
    for index in range(2):               # of the last class nothing more is worth dropping
        if (3, last, index) not in choice.dropped:
            assert likely(judge, Choice(start.groups, choice.dropped | {(3, last, index)}), rows) \
                < likely(judge, choice, rows) + 1e-3
    assert all(judge.words(choice, label) for label in range(NAMES))


@pytest.fixture
def dataset(tmp_path):
    return xrvlm.image_folder(photo_folder(tmp_path / "birds", images=10))


def test_test_images_are_not_read(clip, dataset):
    split = xrvlm.data.dataset.with_test_set(dataset.split)
    tested = {item.id for item in split.test}
    read = []

    class Watched:
        def read(self, item):
            read.append(item)
            return dataset.source.read(item)

        def sha256(self, item):
            return dataset.source.sha256(item)

    from dataclasses import replace
    xrvlm.choose_prompts(clip, replace(dataset, source=Watched(), split=split), shots=4)
    assert read
    assert not tested & set(read)


def test_what_is_written_can_be_used(clip, dataset):
    sentences = {name: [f"{name} one.", f"{name} two."] for name in CLASSES}
    found = xrvlm.choose_prompts(clip, dataset, descriptions=sentences, parts={
        name: {"head": f"the head of {name}."} for name in CLASSES}, shots=5, out="words")
    assert found.level in {row["level"] for row in found.levels}
    assert found.level == max(found.levels, key=lambda row: row["log_likelihood"])["level"]
    made = json.loads(Path("words/prompts.json").read_text())
    assert made == found.prompts
    assert xrvlm.class_text(list(made), descriptions="words/prompts.json").kind == "descriptions"
    with Path("words/prompts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} >= {"template", "descriptions", "part"}
    every = [sentence for own in made.values() for sentence in own]
    assert all((row["words"] in every) == (row["kept"] == "1") for row in rows if row["kind"] == "sentence")
    kept = [row["name"].format(CLASSES[0]) for row in rows if row["kind"] == "template" and row["kept"] == "1"]
    assert [each for each in kept if each in made[CLASSES[0]]] == kept
    assert xrvlm.choose_prompts(clip, dataset, descriptions=sentences, parts={
        name: {"head": f"the head of {name}."} for name in CLASSES}, shots=5, out="again").prompts == found.prompts


def test_without_sentences_there_are_three_levels(clip, dataset):
    found = xrvlm.choose_prompts(clip, dataset, shots=4)
    assert [row["level"] for row in found.levels] == ["first", "templates", "chosen_templates"]
    for row in found.levels:
        assert row["low"] <= row["difference"] <= row["high"]


def test_mistakes(clip, dataset):
    with pytest.raises(UserError, match="folds must be at least 2"):
        xrvlm.choose_prompts(clip, dataset, folds=1)
    with pytest.raises(UserError, match="no descriptions for 1 of 3 classes"):
        xrvlm.choose_prompts(clip, dataset, descriptions=dict.fromkeys(CLASSES[:2], "x"))
    with pytest.raises(UserError, match="one labelled image"):
        xrvlm.choose_prompts(clip, dataset, shots=1)


def test_the_command(tmp_path, capsys):
    photos = photo_folder(tmp_path / "birds", images=6)
    assert main(["prompts", str(photos), "backbone=tiny", "device=cpu", "workers=0", "shots=3", "folds=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("prompts.json")
    assert sum(" kept " in line for line in lines) == 1
