"""The nearest training images, against loops over single images."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import photo_folder

import xrvlm
from xrvlm.experiments.saved import SavedRun, read_split
from xrvlm.features.source import FeatureSettings, extract
from xrvlm.inference.nearest import TrainingImages
from xrvlm.reporting.paired import Outcomes
from xrvlm.reporting.sections import Album, Section, _photograph
from xrvlm.views import evaluation_view

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture
def dataset(tmp_path):
    return xrvlm.image_folder(photo_folder(tmp_path / "birds"))


def test_a_training_image_is_nearest_to_itself(clip, dataset):
    images = TrainingImages.of(clip, dataset, FeatureSettings(), views=0, seed=0)
    assert list(images.ids) == [item.id for item in dataset.split.train]
    for row, found in enumerate(images.nearest(images.features, 3)):
        assert (found[0].image, found[0].label) == (images.ids[row], images.labels[row])
        assert found[0].similarity == pytest.approx(1, abs=1e-5)
        assert [each.similarity for each in found] == sorted((each.similarity for each in found), reverse=True)


def test_the_similarity_is_the_cosine_of_both_images_as_the_tower_encodes_them(clip, dataset):
    images = TrainingImages.of(clip, dataset, FeatureSettings(), views=0, seed=0)

    def pooled(name):
        return clip.encode_image(evaluation_view(xrvlm.views.decode(dataset.source.read(name), name),
                                                 clip.transform)[None]).pooled

    test = images.ids[-1]
    (found,) = images.nearest(pooled(test), 100)
    expected = {name: F.cosine_similarity(pooled(test), pooled(name)).item() for name in images.ids}
    assert {each.image: each.similarity for each in found} == pytest.approx(expected, abs=1e-5)
    assert [each.image for each in found] == sorted(expected, key=lambda name: -expected[name])
    assert found[0].photo().size == (46, 40)


def test_of_equal_ones_the_first(dataset):
    features = F.normalize(torch.ones(4, 3), dim=1)
    images = TrainingImages(features, ["a", "b", "c", "d"], ["x", "x", "y", "y"], dataset.source)
    assert [each.image for each in images.nearest(features[:1], 3)[0]] == ["a", "b", "c"]


def test_a_run_finds_its_own_bank(clip, dataset, caplog):
    run = xrvlm.adapt(clip, dataset, "xr_vlm_plus", shots=2, options=xrvlm.RunOptions(
        runs="runs", features=FeatureSettings(views=2)))
    caplog.clear()
    with caplog.at_level("INFO"):
        images = SavedRun.training_images(_saved(run, dataset), clip)
    assert images is not None
    assert len(images.ids) == 6
    assert "encoded now" not in caplog.text


def test_without_training_images_there_are_none_and_a_line_says_why(clip, dataset, caplog):
    run = xrvlm.zero_shot(clip, dataset, options=xrvlm.RunOptions(runs="runs"))
    with caplog.at_level("INFO"):
        assert _saved(run, dataset).training_images(clip) is None
    assert "left out: the run was trained on no image" in caplog.text


@pytest.mark.parametrize("change", ["features: 5", "features: {views: -1}", "seed: []", "recipe: {}"])
def test_a_forged_configuration_gives_none(clip, dataset, change, caplog):
    run = xrvlm.adapt(clip, dataset, "linear_probe", shots=2, options=xrvlm.RunOptions(runs="runs"))
    path = run.folder / "config.yaml"
    name = change.split(":")[0]
    kept, skipping = [], False
    for line in path.read_text().splitlines():
        skipping = line.startswith(f"{name}:") or (skipping and line[:1] in (" ", "-"))
        if not skipping:
            kept.append(line)
    path.write_text("\n".join([*kept, change]))
    with caplog.at_level("INFO"):
        assert _saved(run, dataset).training_images(clip) is None
    assert "left out" in caplog.text


def _saved(run, dataset):
    saved = SavedRun(run.folder)
    assert saved.dataset().split.train == read_split(run.folder / "split.json").train
    return saved


def test_a_run_writes_the_nearest_training_images_of_its_test_images(clip, dataset):
    run = xrvlm.adapt(clip, dataset, "linear_probe", shots=3, options=xrvlm.RunOptions(runs="runs"))
    split = read_split(run.folder / "split.json")
    with (run.folder / "nearest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [item.id for item in split.test]
    images = SavedRun(run.folder).training_images(clip)
    assert images is not None
    tested = TrainingImages.of(clip, replace(dataset, split=replace(split, train=split.test)), FeatureSettings(views=0),
                               views=0, seed=0)
    for row, found in zip(rows, images.nearest(tested.features, 3), strict=True):
        for place, each in enumerate(found, start=1):
            assert (row[f"nearest_{place}"], row[f"class_{place}"]) == (each.image, each.label)
            assert float(row[f"cosine_{place}"]) == pytest.approx(each.similarity, abs=1e-3)


def test_a_run_without_a_bank_or_training_images_writes_none(clip, dataset):
    online = xrvlm.RunOptions(runs="online", features=FeatureSettings(mode="online"))
    assert not (xrvlm.adapt(clip, dataset, "linear_probe", shots=2, options=online).folder / "nearest.csv").exists()
    assert not (xrvlm.zero_shot(clip, dataset, options=xrvlm.RunOptions(runs="runs")).folder / "nearest.csv").exists()


def test_the_report_shows_them_below_confused_photos(clip, dataset):
    run = xrvlm.adapt(clip, dataset, "linear_probe", shots=2, options=xrvlm.RunOptions(runs="runs"))
    with (run.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))["image"]
    album = Album(lambda folder: dataset.source)
    outcomes = Outcomes([first], ["wren"], ["blue tit"], np.array([0.9]))
    section = Section(None, "", run.folder, confused=[     # pyright: ignore
        {"true": "wren", "predicted": "blue tit", "count": 1, "share": 1.0}])
    _photograph(section, outcomes, album)
    (pair,) = section.photographed
    with (run.folder / "nearest.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["image"] == first)
    assert [name for _, name in pair.nearest] == [row[f"class_{place}"] for place in (1, 2, 3)]
    assert pair.nearest[0][0] == album.photo(run.folder, row["nearest_1"])
    (run.folder / "nearest.csv").write_text("image,nearest_1\nx")
    section.photographed.clear()
    _photograph(section, outcomes, album)
    assert section.photographed[0].nearest == []


def test_the_pooled_features_of_a_bank_are_read_without_its_positions(clip, dataset):
    bank = extract(clip, dataset.source, dataset.split.train, FeatureSettings(), needs=("pooled", "tokens"))
    expected = torch.cat([x.pooled for x, _ in bank.in_order()])
    assert "tokens" in bank.shards[0]
    guarded = [{"pooled": shard["pooled"], "tokens": None} for shard in bank.shards]       # which cannot be indexed
    assert torch.equal(replace(bank, shards=guarded).pooled, expected)
