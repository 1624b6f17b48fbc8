"""The nearest training images, against loops over single images."""

import pytest
import torch
import torch.nn.functional as F
from photos import photo_folder

import xrvlm
from xrvlm.experiments.saved import SavedRun
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.nearest import TrainingImages
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
    assert saved.dataset().split.train == xrvlm.experiments.saved.read_split(run.folder / "split.json").train
    return saved
