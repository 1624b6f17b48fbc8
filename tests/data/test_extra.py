"""Images for training alone: which classes they are of, where they go and where they do not."""

from dataclasses import replace

import pytest
from photos import Files, photo_folder, write_photo

from xrvlm.data.dataset import Item, hash_images, is_extra, label_budget, sample_shots, with_test_set
from xrvlm.data.extra import with_extra
from xrvlm.data.folder import image_folder
from xrvlm.data.images import drop_damaged
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError
from xrvlm.experiments.protocols import base_half
from xrvlm.training.folds import folds_of


@pytest.fixture
def birds(tmp_path):
    return photo_folder(tmp_path / "birds")


@pytest.fixture
def extra(tmp_path):
    for key, path in enumerate(("Blue_Tit/a.png", "wren/b.png", "wren/deeper/c.png")):
        write_photo(tmp_path / "extra" / path, 0, 900 + key)
    return tmp_path / "extra"


def test_they_are_of_the_classes_that_their_folders_are_called_as(birds, extra):
    dataset = load_dataset("folder", root=birds, extra=extra)
    assert [(item.id, dataset.split.classes[item.label]) for item in dataset.split.extra] == [
        ("extra:Blue_Tit/a.png", "blue tit"), ("extra:wren/b.png", "wren"), ("extra:wren/deeper/c.png", "wren")]
    assert dataset.source.read("extra:wren/b.png") == (extra / "wren/b.png").read_bytes()
    assert dataset.source.read("wren/0.png") == (birds / "wren/0.png").read_bytes()
    assert dataset.loader is not None
    assert load_dataset(dataset.loader["name"], **dataset.loader["options"]) == dataset
    assert dataset == with_extra(image_folder(birds), extra)


def test_a_draw_is_what_it_is_without_them(birds, extra):
    with_them, without = load_dataset("folder", root=birds, extra=extra).split, image_folder(birds).split
    assert with_them.fingerprint == without.fingerprint
    assert replace(sample_shots(with_test_set(with_them), 2, 1, True), extra=()) == sample_shots(
        with_test_set(without), 2, 1, True)
    assert base_half(with_them).extra == with_them.extra[:1]


def test_the_summary_counts_them_apart(birds, extra):
    split = load_dataset("folder", root=birds, extra=extra).split
    trained = replace(split, train=(*split.train[:4], *split.extra))
    assert "images: 4 to train on, and 3 extra images to train on;" in trained.summary
    assert label_budget(trained) == 4


def test_no_fold_holds_them_out():
    items = [Item(f"{kind}{label}{index}", label) for label in (0, 1) for kind in ("", "extra:") for index in range(4)]
    fold = folds_of(items, Files(), 4, 0)
    held = [number >= 0 for number in fold.tolist()]
    assert held == [not is_extra(item.id) for item in items]
    own = [row for row, item in enumerate(items) if not is_extra(item.id)]
    assert fold[own].tolist() == folds_of([items[row] for row in own], Files(), 4, 0).tolist()


@pytest.mark.parametrize(("subset", "words"), [("test", "test"), ("val", "validation"), ("train", "training")])
def test_one_that_is_an_image_of_the_data_is_refused(birds, extra, subset, words):
    """A test image would be tested on; a labelled one would be trained on while a fold holds it out."""
    (extra / "wren" / "same.png").write_bytes((birds / "wren" / "0.png").read_bytes())
    dataset = load_dataset("folder", root=birds, extra=extra)
    split = replace(dataset.split, train=dataset.split.extra)
    hash_images(split, dataset.source)                       # the image itself is in no subset
    same = tuple(item for item in dataset.split.train if item.id == "wren/0.png")
    held = replace(split, **{subset: (*getattr(split, subset), *same)})
    with pytest.raises(UserError, match=rf"1 of 4 extra images are {words} images: wren/same\.png is wren/0\.png; rem"):
        hash_images(held, dataset.source)


def test_damaged_ones_are_left_out_where_that_is_asked(birds, extra):
    (extra / "wren" / "bad.png").write_bytes(b"no image")
    kept = drop_damaged(load_dataset("folder", root=birds, extra=extra), 0)
    assert [item.id for item in kept.split.extra] == ["extra:Blue_Tit/a.png", "extra:wren/b.png",
                                                      "extra:wren/deeper/c.png"]


def test_a_second_folder_does_not_take_the_place_of_the_first(birds, extra):
    with pytest.raises(UserError, match="birds has extra images already: put all of them below one folder"):
        with_extra(load_dataset("folder", root=birds, extra=extra), extra)


@pytest.mark.parametrize(("path", "message"), [
    (None, "there is no folder .*; check extra"), ("notes.txt", "found no image below"),
    ("loose.png", r"1 images lie directly in .* \(loose\.png\): put each into a folder"),
    ("wreen/0.png", "unknown class 'wreen'; did you mean 'wren'.*rename the folder .*wreen"),
])
def test_what_is_no_folder_of_extra_images(birds, tmp_path, path, message):
    if path is not None:
        write_photo((tmp_path / "odd" / path).with_suffix(".png"), 0, 1)
        (tmp_path / "odd" / path).with_suffix(".png").rename(tmp_path / "odd" / path)
    with pytest.raises(UserError, match=message):
        load_dataset("folder", root=birds, extra=tmp_path / "odd")
