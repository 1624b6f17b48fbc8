"""The subsets of a data set, the shots sampled from them, and split.json."""

import json
import logging
import pickle
import random
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from xrvlm.data.dataset import (
    SUBSETS,
    Dataset,
    Item,
    Split,
    label_budget,
    sample_shots,
    with_test_set,
    write_split,
)
from xrvlm.data.images import drop_damaged
from xrvlm.errors import UserError
from xrvlm.experiments.saved import read_split
from xrvlm.files import read_json, sha256
from xrvlm.views import ImageDataset


class Memory:
    """Images in memory: each one colour, which its id decides."""

    def __init__(self, files: dict[str, bytes] | None = None):
        self.files = files or {}

    def read(self, item_id: str, /) -> bytes:
        if item_id in self.files:
            return self.files[item_id]
        buffer = BytesIO()
        Image.new("RGB", (2, 2), f"#{sha256(item_id.encode())[:6]}").save(buffer, format="PNG")
        return buffer.getvalue()

    def sha256(self, item_id: str, /) -> str:
        return sha256(self.read(item_id))


def made(sizes: dict[str, int], val: int = 0, test: int = 0) -> Split:
    def items(folder: str, count: int | None) -> tuple[Item, ...]:
        return tuple(Item(f"{folder}{name}/{index:03}.jpg", label) for label, (name, size) in enumerate(sizes.items())
                     for index in range(size if count is None else count))
    return Split(tuple(sizes), items("", None), items("val/", val), items("test/", test))


def ids(items) -> set[str]:
    return {item.id for item in items}


def per_class(items, classes: int) -> list[int]:
    return [sum(item.label == label for item in items) for label in range(classes)]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


SPLIT = made({"robin": 20, "jay": 40, "wren": 12})


def test_a_quarter_of_each_class_becomes_the_test_set():
    sizes = {"one": 1, "two": 2, "three": 3, "five": 5, "six": 6, "eight": 8, "hundred": 100}
    split = with_test_set(made(sizes))
    assert per_class(split.test, 7) == [0, 1, 1, 1, 2, 2, 25]
    assert per_class(split.train, 7) == [1, 1, 2, 4, 4, 6, 75]
    assert not ids(split.test) & ids(split.train)
    assert ids(split.test) | ids(split.train) == ids(made(sizes).train)


def test_a_given_test_set_is_kept():
    split = made({"a": 9, "b": 9}, test=2)
    assert with_test_set(split) is split
    assert with_test_set(made({"a": 9, "b": 9}, val=3)).val == made({"a": 9, "b": 9}, val=3).val


def test_the_test_set_hardly_changes_when_images_are_added():
    before = ids(with_test_set(made({"a": 40, "b": 40})).test)
    after = ids(with_test_set(made({"a": 44, "b": 40})).test)
    assert len(before - after) <= 4
    assert {name for name in before if name.startswith("b/")} <= after


def test_neither_the_order_of_files_nor_of_classes_matters():
    items = list(SPLIT.train)
    random.Random(1).shuffle(items)
    shuffled = replace(SPLIT, train=tuple(items))
    turned = Split(SPLIT.classes[::-1], tuple(Item(item.id, 2 - item.label) for item in items))
    renamed = replace(SPLIT, classes=("a", "b", "c"))
    for val in (False, True):
        expected = sample_shots(with_test_set(SPLIT), 4, 7, val)
        for other in (shuffled, turned, renamed):
            drawn = sample_shots(with_test_set(other), 4, 7, val)
            assert [ids(getattr(drawn, subset)) for subset in SUBSETS] \
                == [ids(getattr(expected, subset)) for subset in SUBSETS]


@pytest.mark.parametrize("seed", range(3))
def test_few_shots_are_contained_in_many(seed):
    smaller: set[str] = set()
    for shots in (1, 2, 4, 8, 16, None):
        chosen = sample_shots(SPLIT, shots, seed)
        assert smaller <= ids(chosen.train)
        assert per_class(chosen.train, 3) == [min(size, shots or size) for size in (20, 40, 12)]
        assert chosen.val == ()
        smaller = ids(chosen.train)
    assert smaller == ids(SPLIT.train)


def test_the_seed_decides_the_shots_but_not_the_test_set():
    draws = [sample_shots(with_test_set(SPLIT), 4, seed) for seed in range(5)]
    assert len({frozenset(ids(draw.train)) for draw in draws}) == 5
    assert len({draw.test for draw in draws}) == 1
    assert sample_shots(SPLIT, 4, 3) == sample_shots(SPLIT, 4, 3)


def test_a_draw_is_the_same_in_every_version():
    # results that were published with a seed must stay what they were
    assert sorted(ids(sample_shots(SPLIT, 1, 0).train)) == ["jay/002.jpg", "robin/014.jpg", "wren/011.jpg"]


def test_the_same_names_in_two_spellings_of_an_accent_draw_the_same():
    composed = Split(("a", "b"), tuple(Item(f"caf\u00e9/{index}.jpg", index % 2) for index in range(40)))
    apart = Split(("a", "b"), tuple(Item(f"cafe\u0301/{index}.jpg", index % 2) for index in range(40)))
    drawn = [ids(sample_shots(split, 3, 0).train) for split in (composed, apart)]
    assert drawn[0] == {name.replace("e\u0301", "\u00e9") for name in drawn[1]}


@pytest.mark.parametrize(("shots", "expected"), [
    (1, [1, 1, 1]), (2, [2, 2, 2]), (4, [4, 4, 4]), (10, [4, 4, 2]), (12, [4, 4, 0]), (None, [2, 4, 1])])
def test_validation_comes_from_what_training_leaves_over(shots, expected):
    plain = sample_shots(SPLIT, shots, 0)
    chosen = sample_shots(SPLIT, shots, 0, val=True)
    assert per_class(chosen.val, 3) == expected
    assert not ids(chosen.val) & ids(chosen.train)
    if shots is None:
        assert ids(chosen.val) | ids(chosen.train) == ids(SPLIT.train)
    else:
        assert chosen.train == plain.train    # never cut from the shots
    assert label_budget(chosen) == len(chosen.train) + sum(expected)


def test_validation_from_the_validation_set_of_the_data_set():
    split = made({"a": 20, "b": 20}, val=6)
    for shots, count in ((1, 1), (3, 3), (16, 4), (None, 6)):
        chosen = sample_shots(split, shots, 0, val=True)
        assert per_class(chosen.val, 2) == [count, count]
        assert ids(chosen.val) <= ids(split.val)
        assert chosen.train == sample_shots(split, shots, 0).train
    assert sample_shots(split, 4, 0).val == ()


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("shots", [1, 5, None])
def test_no_test_image_is_ever_trained_on(val, shots):
    split = with_test_set(SPLIT)
    chosen = sample_shots(split, shots, 0, val)
    assert chosen.test == split.test
    assert not ids(chosen.test) & (ids(chosen.train) | ids(chosen.val))


def test_classes_with_too_few_images_give_all_they_have_and_are_named_once(caplog):
    chosen = sample_shots(SPLIT, 16, 0)
    assert per_class(chosen.train, 3) == [16, 16, 12]
    assert warnings_of(caplog) == [
        "1 of 3 classes have fewer than 16 training images and give all they have: wren (12)"]
    caplog.clear()
    sample_shots(made({f"class{index}": 3 for index in range(9)}), 4, 0)
    assert [message.endswith("class4 (3) and 4 more") for message in warnings_of(caplog)] == [True]
    caplog.clear()
    sample_shots(SPLIT, 12, 0)
    sample_shots(SPLIT, None, 0, val=True)
    assert not warnings_of(caplog)


def test_classes_without_validation_images_are_named(caplog):
    chosen = sample_shots(made({"a": 1, "b": 9}), None, 0, val=True)
    assert (per_class(chosen.train, 2), per_class(chosen.val, 2)) == ([1, 8], [0, 1])
    assert warnings_of(caplog) == ["no image is left over for the validation of 1 of 2 classes: a"]


def test_a_class_without_a_training_image_is_an_error():
    with pytest.raises(UserError, match="no training image of 1 classes: ghost; add some or remove the class"):
        sample_shots(made({"a": 3, "ghost": 0}), 1, 0)


@pytest.mark.parametrize("shots", [0, -1, 2.0, "4", True])
def test_shots_must_be_a_whole_number(shots):
    with pytest.raises(UserError, match=r"shots=.* must be a whole number .*, at least 1, or None for all"):
        sample_shots(SPLIT, shots, 0)


def test_the_fingerprint_sees_classes_labels_and_subsets():
    split = made({"a": 2, "b": 2}, val=1, test=1)
    others = [replace(split, classes=("a", "c")), replace(split, val=()), replace(split, train=split.train[1:]),
              replace(split, val=split.test, test=split.val),
              replace(split, train=(Item(split.train[0].id, 1), *split.train[1:]))]
    assert len({split.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert made({"a": 2, "b": 2}, val=1, test=1).fingerprint == split.fingerprint
    assert pickle.loads(pickle.dumps(split)) == split


ODD_NAMES = ["with space", "a,b", "it's \"quoted\"", "a=b", "(1)", "~tilde", "caf\u00e9", "\u9e1f"]


def test_split_json_round_trip(tmp_path):
    split = sample_shots(with_test_set(made(dict.fromkeys(ODD_NAMES, 12))), 4, 3, val=True)
    path = tmp_path / "run" / "split.json"
    record = write_split(path, split, Memory(), seed=3, shots=4)
    assert read_split(path) == split
    assert read_json(path, "") == record
    assert (record["classes"], record["seed"], record["shots"]) == (ODD_NAMES, 3, 4)
    assert record["fingerprint"] == split.fingerprint
    assert record["duplicates"] == []
    first = split.train[0]
    assert record["train"][0] == {"path": first.id, "class": ODD_NAMES[first.label],
                                  "sha256": sha256(Memory().read(first.id))}
    assert [len(record[subset]) for subset in SUBSETS] == [32, 32, 24]


def test_images_that_stand_in_training_and_in_test_are_listed(tmp_path, caplog):
    split = made({"a": 3, "b": 3}, val=1, test=2)
    twin, other = Memory().read("twin"), Memory().read("other")
    source = Memory({"a/000.jpg": twin, "b/001.jpg": twin, "test/a/001.jpg": twin, "val/b/000.jpg": other,
                     "test/b/000.jpg": other, "a/001.jpg": b"same", "a/002.jpg": b"same", "val/a/000.jpg": b"same"})
    record = write_split(tmp_path / "split.json", split, source, seed=0, shots=None)
    assert {pair["sha256"]: (pair["train"], pair["test"]) for pair in record["duplicates"]} == {
        sha256(twin): (["a/000.jpg", "b/001.jpg"], ["test/a/001.jpg"]),
        sha256(other): (["val/b/000.jpg"], ["test/b/000.jpg"])}
    classes, twice, chosen_by, message = warnings_of(caplog)
    assert twice.startswith("2 training images are copies of others (byte-identical): a/00")
    assert "a/000.jpg = b/001.jpg" in twice and "a/001.jpg = a/002.jpg" in twice
    assert chosen_by.startswith("1 validation images are also training images (byte-identical): a/001.jpg = "
                                "val/a/000.jpg; what is chosen or calibrated by them is flattered")
    assert message.startswith("2 test images are also training images")
    assert "a/000.jpg = test/a/001.jpg" in message
    assert classes == ("1 images are in two classes (byte-identical): a/000.jpg (a) = b/001.jpg (b); leave each in one "
                       "class")


@pytest.mark.parametrize(("subset", "message"), [
    ([Item("a.jpg", 2)], "train of a Split has the label 2, which is the index of none of its 2 classes"),
    ([Item("a.jpg", -1)], "the label -1"), ([Item("a.jpg", 0.5)], "the label 0.5"), ([Item("a.jpg", "a")], "'a'"),
    ([("a.jpg", 0)], "must be a list of Items"), (None, "must be a list of Items"), (5, "must be a list of Items")])
def test_a_split_whose_labels_name_no_class_is_refused(subset, message):
    with pytest.raises(UserError, match=message):
        Split(("a", "b"), subset)


@pytest.mark.parametrize("damage", [
    lambda record: record.pop("train"), lambda record: record["train"].pop(), lambda record: record["test"].pop(),
    lambda record: record.update(fingerprint="0"), lambda record: record.update(classes=None),
    lambda record: record["train"][0].update({"class": "ghost"}), lambda record: record["classes"].reverse(),
    lambda record: record.update(val=[3])])
def test_a_damaged_split_is_an_error(tmp_path, damage):
    path = tmp_path / "split.json"
    record = write_split(path, with_test_set(SPLIT), Memory(), seed=0, shots=None)
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"split\.json .*with force=True"):
        read_split(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_what_is_no_split(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"split\.json.*with force=True"):
        read_split(path)
    with pytest.raises(UserError, match=r"nowhere\.json.*with force=True"):
        read_split(Path("nowhere.json"))


def first_pixel(image: Image.Image, index: int) -> tuple[int, object]:
    return index, image.getpixel((0, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_image_dataset_feeds_a_data_loader(workers):
    items = [Item("x.png", 1), Item("y.png", 0), Item("z.png", 0)]
    images = ImageDataset([item.id for item in items], Memory(), first_pixel)
    loader = DataLoader(images, batch_size=None, num_workers=workers)
    found = list(loader)
    assert [index for index, _ in found] == [0, 1, 2] == [index for _, (index, _) in found]
    colours = [tuple(bytes.fromhex(sha256(item.id.encode())[:6])) for item in items]
    assert [tuple(colour) for _, (_, colour) in found] == colours


def test_a_damaged_image_is_named_by_the_data_set():
    with pytest.raises(UserError, match=r"cannot read the image robin/1\.jpg: the file is empty"):
        ImageDataset(["robin/1.jpg"], Memory({"robin/1.jpg": b""}), first_pixel)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_drop_damaged(caplog, workers):
    split = made({"a": 4, "b": 4}, val=1, test=2)
    bad = {"a/001.jpg": b"no image", "val/b/000.jpg": b"", "test/a/001.jpg": Memory().read("x")[:30]}
    dataset = Dataset("birds", Memory(bad), split, world=5)
    kept = drop_damaged(dataset, workers)
    gone = ids((*split.train, *split.val, *split.test)) - ids((*kept.split.train, *kept.split.val, *kept.split.test))
    assert gone == set(bad)
    assert (kept.split.classes, kept.world) == (split.classes, 5)
    assert warnings_of(caplog) == ["skipped 3 of 14 images, which cannot be read: "
                                   "a/001.jpg, test/a/001.jpg, val/b/000.jpg"]
    whole = Dataset("birds", Memory(), split)
    assert drop_damaged(whole, workers) is whole


def test_a_seed_below_zero_is_refused():
    with pytest.raises(UserError, match=r"seed=-1 must be at least 0"):
        sample_shots(with_test_set(SPLIT), 4, -1)
