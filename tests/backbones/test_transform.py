"""The evaluation transform of a user's choice: what reaches the tower, and that a saved run keeps to it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from photos import photo_folder
from PIL import Image
from towers import hf_clip, hf_siglip, openclip, tiny_vit

from xrvlm.backbones.openclip import wrap_openclip
from xrvlm.cli.main import main
from xrvlm.data.folder import image_folder
from xrvlm.demo.tiny_clip import load_tiny_clip
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features.source import FeatureSettings
from xrvlm.inference.classifier import Classifier
from xrvlm.methods import LinearProbe
from xrvlm.views import evaluation_view

PAPER_LIKE = {"resize_to": 80, "interpolation": "bilinear"}      # 256 to 224 at the tiny tower's 64 pixels


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def by_hand(transform, shorter: int, resampling: Image.Resampling) -> torch.Tensor:
    """(3, s, s) of `picture`, with Pillow alone."""
    size = transform.image_size
    scaled = picture().resize((int(shorter * 130 / 90), shorter), resampling)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    pixels = np.asarray(scaled.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - transform.mean) / transform.std).permute(2, 0, 1).float()


def test_the_pixels_are_those_of_the_transform():
    own, chosen = (load_tiny_clip(device="cpu", **options).transform for options in ({}, PAPER_LIKE))
    torch.testing.assert_close(evaluation_view(picture(), own), by_hand(own, 64, Image.Resampling.BICUBIC))
    torch.testing.assert_close(evaluation_view(picture(), chosen), by_hand(own, 80, Image.Resampling.BILINEAR))
    assert not torch.equal(evaluation_view(picture(), own), evaluation_view(picture(), chosen))


@pytest.mark.parametrize("build", [lambda **options: openclip("tiny", **options).clip,
                                   lambda **options: hf_clip(**options).clip,
                                   lambda **options: hf_siglip(**options).clip], ids=["open_clip", "clip", "siglip"])
def test_every_tower_takes_one_and_is_another_tower_then(build):
    own, chosen, resized = build(), build(resize_to=40, interpolation="bilinear"), build(resize_to=40)
    assert (own.transform.resize_to, own.transform.interpolation) == (None, "bicubic")
    assert (chosen.transform.resize, chosen.transform.resize_to) == ("shortest", 40)
    assert chosen.transform.interpolation == "bilinear"
    assert len({own.fingerprint, chosen.fingerprint, resized.fingerprint}) == 3
    assert chosen.name == f"{own.name} (resize 40, bilinear)"


def test_what_is_the_checkpoints_own_changes_nothing():
    own, same = tiny_vit(), tiny_vit(resize_to=32, interpolation="bicubic")
    assert (same.transform, same.fingerprint, same.name) == (own.transform, own.fingerprint, own.name)
    squashed = hf_siglip().clip
    assert hf_siglip(resize_to=32).clip.fingerprint != squashed.fingerprint      # both sides at once is another picture


def test_what_cannot_be_is_told():
    with pytest.raises(UserError, match="resize_to=30 is less than the 32 pixels"):
        tiny_vit(resize_to=30)
    with pytest.raises(UserError, match="interpolation must be bicubic or bilinear or None, found 'nearest'"):
        tiny_vit(interpolation="nearest")


def test_a_saved_run_is_loaded_with_its_transform_and_no_other(tmp_path):
    dataset = image_folder(photo_folder(tmp_path / "birds", images=4))
    options = RunOptions(runs=tmp_path / "runs", features=FeatureSettings(cache=str(tmp_path / "cache"), views=0))
    own, chosen = (adapt(load_tiny_clip(device="cpu", **given), dataset, LinearProbe, shots=2, options=options)
                   for given in ({}, PAPER_LIKE))
    assert own.folder != chosen.folder
    assert own.record.setting != chosen.record.setting
    keys = [json.loads(path.read_text())["transform"]["resize_to"] for path in (tmp_path / "cache").rglob("key.json")]
    assert sorted(keys, key=str) == [80, None]
    loaded = Classifier.load(chosen.folder, device="cpu")
    assert loaded.clip.transform == chosen.classifier.clip.transform
    assert loaded.predict(picture()) == chosen.classifier.predict(picture())
    with pytest.raises(UserError, match=r"adapted on tiny \(resize 80, bilinear\) at 64 pixels, not on tiny at 64"):
        Classifier.load(chosen.folder, load_tiny_clip(device="cpu"))


def test_the_command_line_scores_a_saved_run_as_it_was_measured(at_home, tmp_path, capsys):
    photo_folder(tmp_path / "birds", images=5)
    here = ["device=cpu", "workers=0"]
    chosen = ["backbone=tiny", "backbone.resize_to=80", "backbone.interpolation=bilinear"]
    assert main(["adapt", "data.root=birds", *chosen, "method=linear_probe", "shots=2", *here]) == 0
    (run,) = [path.parent for path in (tmp_path / "runs").rglob("record.json")]
    assert main(["eval", f"run={run}", "features=online", *here]) == 0
    (again,) = (run / "eval").rglob("predictions.csv")
    assert again.read_text() == (run / "predictions.csv").read_text()
    assert main(["predict", f"run={run}", "images=birds", "topk=3", "out=labels.csv", *here]) == 0
    before, after = (list(csv.DictReader(path.read_text().splitlines())) for path in
                     (run / "predictions.csv", tmp_path / "labels.csv"))
    labelled = {row["image"]: row["probability_1"] for row in after}
    assert all(labelled[row["image"]] == row["probability_1"] for row in before)
    assert main(["adapt", "data.root=birds", "backbone=tiny", "backbone.resize_to=many", *here]) == 2
    assert "backbone.resize_to must be a whole number or null, found 'many'" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ({"image_size": 0}, "at least 1 pixel"), ({"image_size": 32.5}, "image_size must be a whole number"),
    ({"resize_to": 0}, "at least 1 pixel"), ({"mean": (0.5, 0.5)}, "mean must be a list of 3"),
    ({"mean": (0.5, float("nan"), 0.5)}, "finite mean"), ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
    ({"interpolation": "nearest"}, "unknown interpolation"), ({"resize": "longest"}, "unknown resize 'longest'"),
    ({"resize": "squash", "resize_to": 40}, "squashes has no centre crop: leave resize_to=40 out")])
def test_a_transform_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(tiny_vit().transform, **change)


@pytest.mark.parametrize(("key", "value"), [
    ("mean", (0.5,)), ("mean", None), ("std", (0.5,) * 4), ("mode", "L"), ("size", (3, 32, 32)), ("std", (0.0,) * 3)])
def test_a_preprocessing_of_open_clip_that_cannot_be_is_refused(key, value):
    tiny = openclip("odd")
    tiny.model.visual.preprocess_cfg = {"size": 32, "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3} | {key: value}
    with pytest.raises(UserError, match=r"pass a `transform`|above 0"):
        wrap_openclip(tiny.model, tiny.tokenize, name="odd")
