"""XR-VLM takes every kind of tower through the same lines: train, save, load into a tower made anew, predict."""

import csv
from dataclasses import replace
from functools import partial

import pytest
import torch
from photos import photo_folder
from towers import IMAGE_KINDS, VIT, openclip

from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.classifier import Classifier
from xrvlm.methods import XRVLM
from xrvlm.text.class_text import class_text
from xrvlm.views import decode, evaluation_view

KINDS = ("vit", "resnet", "timm map", "timm class token", "timm eva", "hf clip", "hf siglip")
CLASSES = ("red bird", "dog", "house")
PARTS = {"red bird": {"wing": "a bird with a red wing", "beak": "the beak"},
         "dog": {"wing": "the dog and two wing.", "beak": "a blue beak of the dog"},
         "house": {"wing": "wing of a house", "beak": "a photo"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, and the features that every tower sees in them once."""
    return photo_folder(tmp_path_factory.mktemp("towers") / "photos", images=6, classes=CLASSES).parent


def adapted(clip, place, runs, *, epochs=2, **options):
    method = partial(XRVLM, image_parts=2, text_parts=2, context_length=4, hidden=8, **options)
    recipe = replace(XRVLM.recipe, name="short", epochs=epochs, batch_size=6, warmup_epochs=0, learning_rate=0.02)
    return adapt(clip, image_folder(place / "photos"), method, shots=3, seed=1, recipe=recipe,
                 text=partial(class_text, parts=PARTS),
                 options=RunOptions(runs=runs, features=FeatureSettings(cache=str(place / "cache"), views=2)))


@pytest.mark.parametrize("part_prompts", ["learned", "descriptions", "learned_from_descriptions", "vectors"])
@pytest.mark.parametrize("head", ["cross", "per_class"])
@pytest.mark.parametrize("kind", KINDS)
def test_trained_saved_and_loaded_it_predicts_the_same(kind, head, part_prompts, place, tmp_path):
    clip = IMAGE_KINDS[kind]().clip
    before = clip.state_hash()
    run = adapted(clip, place, tmp_path, head=head, part_prompts=part_prompts)
    assert clip.state_hash() == before
    with (run.folder / "losses.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2

    again = Classifier.load(run.folder, IMAGE_KINDS[kind]().clip)
    photos = [place / "photos" / name / "5.png" for name in CLASSES]
    images = torch.stack([evaluation_view(decode(path.read_bytes(), str(path)), clip.transform) for path in photos])
    expected = run.classifier.probabilities(images)
    assert expected.shape == (3, 3)
    assert expected.isfinite().all()
    assert (expected[0].log() - expected[1].log()).abs().max() > 1e-5, "the images must look different"
    assert torch.equal(again.probabilities(images), expected)
    assert again.predict(photos[0]) == run.classifier.predict(photos[0])


@pytest.mark.parametrize("part_prompts", ["learned", "learned_from_descriptions", "vectors"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_side_learns(kind, part_prompts, place, tmp_path):
    clip = IMAGE_KINDS[kind]().clip
    few, more = (adapted(clip, place, tmp_path, epochs=epochs, part_prompts=part_prompts) for epochs in (1, 4))
    assert (few.classifier.class_features - more.classifier.class_features).abs().max() > 1e-4


@pytest.mark.parametrize("part_prompts", ["learned", "descriptions", "learned_from_descriptions", "vectors"])
def test_a_tower_without_positions_is_refused_before_anything_is_trained(part_prompts, place, tmp_path):
    clip = openclip("flat", VIT | {"layers": 1}).clip
    with pytest.raises(UserError, match="flat shows no positions: xr_vlm needs another backbone, methods"):
        adapted(clip, place, tmp_path, part_prompts=part_prompts)
    assert not list(tmp_path.iterdir())
