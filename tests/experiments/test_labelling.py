"""Labels that look wrong, images that are there twice, images to label next."""

import csv

import pytest
import torch
import torch.nn.functional as F
from photos import photo_folder
from PIL import Image

from xrvlm.data.dataset import Dataset, Item
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.experiments.labelling import suspects as module
from xrvlm.experiments.labelling.choose import chosen, next_to_label, uncertainty
from xrvlm.experiments.labelling.suspects import find_suspects, neighbours
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features.source import FeatureSettings
from xrvlm.reporting.suspects import suspects


@pytest.fixture
def settings(tmp_path):
    return FeatureSettings(cache=str(tmp_path / "cache"), views=0)


@pytest.fixture
def photos(tmp_path):
    return photo_folder(tmp_path / "beasts", images=16, classes=("lion", "tiger", "wolf"))


def swapped(dataset: Dataset, name: str, label: int) -> Dataset:
    """The data set with another label on one training image."""
    from dataclasses import replace
    train = tuple(Item(item.id, label) if item.id == name else item for item in dataset.split.train)
    return replace(dataset, split=replace(dataset.split, train=train))


def test_a_planted_label_stands_first(clip, photos, settings):
    dataset = image_folder(photos)
    wrong = next(item for item in dataset.split.train if item.label == 0)
    found = find_suspects(clip, swapped(dataset, wrong.id, 2), features=settings)
    first = found.suspects[0]
    assert (first["image"], first["label"], first["suggestion"]) == (wrong.id, "wolf", "lion")
    assert len(found.suspects) == len(dataset.split.train)
    assert [row["suspicion"] for row in found.suspects] == sorted(
        (row["suspicion"] for row in found.suspects), reverse=True)
    for row in found.suspects:
        assert row["suspicion"] == pytest.approx(1 - (row["probability"] + row["neighbours"]) / 2, abs=2e-4)


def test_neighbours_are_the_nearest_others(monkeypatch):
    features = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    monkeypatch.setattr(module, "CHUNK", 4)                  # so that several parts are put together
    cosines, nearest = neighbours(features, 3)
    for row in range(9):
        others = [(-(features[row] @ features[other]).item(), other) for other in range(9) if other != row]
        order = [other for _, other in sorted(others)]
        assert nearest[row].tolist() == order[:3]
        assert cosines[row] == pytest.approx(features[order[:3]] @ features[row], abs=1e-6)


def test_a_photo_in_two_classes_and_one_that_is_also_tested_on(clip, tmp_path, settings):
    root = tmp_path / "parts"
    for part in ("train", "test"):
        photo_folder(root / part, images=6, classes=("lion", "tiger", "wolf"))
    for path in (root / "test").rglob("*.png"):              # other photos than those of train
        with Image.open(path) as image:
            image.rotate(90).save(path)
    photo = root / "train" / "lion" / "0.png"
    with Image.open(photo) as image:
        image.save(root / "test" / "lion" / "copy.jpg", quality=95)          # not byte for byte
        image.save(root / "train" / "wolf" / "copy.jpg", quality=92)
    found = find_suspects(clip, image_folder(root), features=settings)
    pairs = {(row["image"], row["other"]): row["problem"] for row in found.twice}
    assert pairs["train/lion/0.png", "train/wolf/copy.jpg"] == "two classes"
    assert "train and test" in pairs["train/lion/0.png", "test/lion/copy.jpg"]


def test_the_page_and_the_tables(clip, photos, settings, tmp_path):
    dataset = image_folder(photos)
    wrong = swapped(dataset, dataset.split.train[0].id, 2)
    made = suspects(clip, wrong, count=3, features=settings, out=tmp_path / "out")
    page = (made.folder / "index.html").read_text()
    assert page.count("<article>") >= 3 and "Rather <b>lion</b>?" in page and "http" not in page.replace("html", "")
    rows = list(csv.DictReader((made.folder / "suspects.csv").read_text().splitlines()))
    assert len(rows) == len(dataset.split.train) and rows[0]["filepath"] == str(photos / rows[0]["image"])
    assert made.summary.startswith("0.") or made.summary.startswith("1.")


@pytest.mark.parametrize(("method", "message"), [("zero_shot", "learns nothing"), ("trans_clip", "learns nothing")])
def test_methods_that_cannot_say_it(clip, photos, settings, method, message):
    with pytest.raises(UserError, match=message):
        find_suspects(clip, image_folder(photos), method, features=settings)


def test_uncertainty_by_hand():
    assert uncertainty(torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.2, 0.1]])) == pytest.approx(torch.tensor([1.0, 0.5]))


def test_the_choice_by_hand():
    # three photos alike, two alike, one alone
    features = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.05], [1.0, -0.05], [0.0, 1.0], [0.05, 1.0], [-1.0, 0.0]]),
                           dim=1)
    nothing, even = torch.zeros(0, 2), torch.ones(6)
    first, *others = chosen(even, features, nothing, 3).tolist()
    assert first in (0, 1, 2) and set(others) in ({3, 5}, {4, 5})     # one of the three; one of the two, the lone one
    assert chosen(even, features, features[:1], 1).tolist()[0] in (3, 4)                 # what is labelled is covered
    sure = torch.tensor([1.0, 1.0, 1.0, 0.01, 0.01, 1.0])
    assert chosen(sure, features, features[:1], 1).tolist() == [5]                       # the model is sure of the two
    assert sorted(chosen(even, features, nothing, 9).tolist()) == list(range(6))
    assert chosen(even[:1], features[:1], nothing, 2).tolist() == [0]


def test_each_choice_adds_the_most():
    draws = torch.Generator().manual_seed(0)
    features, unsure = F.normalize(torch.randn(12, 3, generator=draws), dim=1), torch.rand(12, generator=draws)
    labelled = F.normalize(torch.randn(2, 3, generator=draws), dim=1)
    distance = 1 - features @ features.T
    scale = distance[~torch.eye(12, dtype=torch.bool)].median() / 3

    def covered(rows) -> float:
        near = torch.cat([(1 - features @ labelled.T), distance[:, list(rows)]], dim=1).amin(1)
        return ((-near / scale).exp() * unsure).sum().item()

    found = []
    for choice in chosen(unsure, features, labelled, 4).tolist():
        assert covered([*found, choice]) == pytest.approx(max(
            covered([*found, each]) for each in range(12) if each not in found), abs=1e-5)
        found.append(choice)


def test_next_leaves_out_what_is_labelled_and_writes_its_table(clip, photos, tmp_path, settings):
    options = RunOptions(runs=tmp_path / "runs", features=FeatureSettings(cache=str(tmp_path / "cache"), views=0))
    run = adapt(clip, image_folder(photos), "linear_probe", shots=3, options=options)
    with pytest.raises(UserError, match="of the run's own data set"):     # test images are no images to label
        next_to_label(run.folder, photos, clip=clip)
    more = photo_folder(tmp_path / "more", images=20, classes=("lion", "tiger", "wolf"))
    found = next_to_label(run.folder, more, count=100, clip=clip, out=tmp_path / "next.csv")
    assert len(found) == 3 * 4                               # the first sixteen of each are those of the run
    rows = list(csv.DictReader((tmp_path / "next.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [each.image for each in found]
    assert all(each.path.is_file() for each in found)
    with pytest.raises(UserError, match="count must be at least 1"):
        next_to_label(run.folder, photos, count=0, clip=clip)
