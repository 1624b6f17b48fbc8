"""Class folders, flat and by subset, and the errors that name the fix."""

import logging
import os
import pickle
import sys
import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pytest
from photos import photo_folder
from PIL import Image

from xrvlm import files
from xrvlm.data.dataset import sample_shots, with_test_set
from xrvlm.data.folder import image_folder, subset_of
from xrvlm.errors import UserError
from xrvlm.experiments.predict import image_files
from xrvlm.files import FileSource
from xrvlm.text.class_text import class_text

PHOTOS = Path(__file__).parents[3] / "shared" / "data"


def photo(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, format="PNG")    # the suffix may be any
    return path


def birds(root: Path, *names: str) -> Path:
    for name in names or ("robin/1.jpg", "robin/2.jpg", "jay/1.jpg"):
        photo(root / name)
    return root


def found(dataset) -> list[tuple[str, str]]:
    split = dataset.split
    return [(item.id, split.classes[item.label]) for item in (*split.train, *split.val, *split.test)]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_flat_class_folders(tmp_path):
    dataset = image_folder(birds(tmp_path / "birds"))
    assert dataset.name == "birds"
    assert dataset.split.classes == ("jay", "robin")
    assert found(dataset) == [("jay/1.jpg", "jay"), ("robin/1.jpg", "robin"), ("robin/2.jpg", "robin")]
    assert (dataset.split.val, dataset.split.test, dataset.world) == ((), (), None)
    assert image_folder(tmp_path / "birds", name="mine").name == "mine"


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Validation"])
def test_subsets(tmp_path, word):
    split = image_folder(birds(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{word}/b/3.jpg", "test/a/1.jpg")).split
    assert split.classes == ("a", "b")
    assert [item.id for item in split.train] == ["train/a/1.jpg", "train/b/2.jpg"]
    assert [(item.id, item.label) for item in split.val] == [(f"{word}/b/3.jpg", 1)]
    assert [(item.id, item.label) for item in split.test] == [("test/a/1.jpg", 0)]


@pytest.mark.parametrize(("train", "test"), [
    ("Training", "Testing"), ("train", "eval"), ("TRAIN", "holdout"), ("train_set", "test-set"),
    ("trainset", "testset"), ("seg_train", "seg_test"), ("Training images", "Hold-out images"),
    ("train2017", "evaluation"), ("trn", "tst"),
])
def test_words_for_subsets(tmp_path, train, test):
    split = image_folder(birds(tmp_path, *(f"{part}/{name}/1.jpg" for part in (train, test) for name in "ab"))).split
    assert (split.classes, len(split.train), len(split.test)) == (("a", "b"), 2, 2)
    assert [item.id for item in split.test] == [f"{test}/a/1.jpg", f"{test}/b/1.jpg"]


@pytest.mark.parametrize("word", ["trainer", "contest", "bullet train", "development dogs", "valley", "set", "", "1"])
def test_words_that_mean_no_subset(word):
    assert subset_of(word) is None


def test_a_test_folder_alone_is_a_data_set_without_training_images(tmp_path):
    split = image_folder(birds(tmp_path, "test/a/1.jpg", "test/b/1.jpg")).split
    assert (split.train, len(split.test)) == ((), 2)
    with pytest.raises(UserError, match="no training image of 2 classes: a, b"):
        sample_shots(split, 1, 0)


def test_accents_written_in_two_ways_are_one_class(tmp_path):
    one, two = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    split = image_folder(birds(tmp_path / "1", f"train/{one}/1.jpg", "train/b/1.jpg", f"test/{two}/1.jpg")).split
    assert split.classes == ("b", two)
    assert split.test[0].label == 1
    if sys.platform != "darwin":         # where these are one folder
        with pytest.raises(UserError, match="accents as separate characters"):
            image_folder(birds(tmp_path / "2", f"{one}/1.jpg", f"{two}/1.jpg"))


@pytest.mark.parametrize("classes", [("Daisy", "bluebell", "Crocus", "iris"), ("zebra", "Äffin", "ant"),
                                     ("blue_jay", "bluebird", "wren")])
def test_a_list_of_names_is_refused_where_sorting_is_a_matter_of_taste(tmp_path, classes):
    """With capitals, accents or signs a file manager shows another order than ours."""
    photo_folder(tmp_path, classes=classes)
    with pytest.raises(UserError, match="class_names is a list, and the order of the classes is not plain: "):
        image_folder(tmp_path, class_names=["one", "two", "three", "four"][:len(classes)])
    named = image_folder(tmp_path, class_names={name: name.upper() for name in classes})
    assert set(named.split.classes) == {name.upper() for name in classes}


@pytest.mark.parametrize("classes", [("I", "II", "III", "IV", "IX", "V"), ("grade IX", "grade V"),
                                     ("stageV", "stageIX"),
                                     ("small", "medium", "large"), ("one", "two", "three"), ("Friday", "Monday"),
                                     ("no_dr", "mild_dr", "severe_dr"), ("jan", "feb")])
def test_a_list_of_names_is_refused_where_the_classes_are_counted_by_words(tmp_path, classes):
    photo_folder(tmp_path, classes=classes)
    with pytest.raises(UserError, match="class_names is a list, and the order of the classes is not plain: "):
        image_folder(tmp_path, class_names=[f"name {index}" for index in range(len(classes))])
    assert image_folder(tmp_path, class_names={name: f"the {name}" for name in classes}).split.classes


@pytest.mark.parametrize("classes", [("I", "II", "III", "IV"), ("mix", "dill", "vi"), ("large dog", "small cat"),
                                     ("high", "low", "odd")])
def test_a_list_of_names_is_taken_where_words_count_nothing(tmp_path, classes):
    photo_folder(tmp_path, classes=classes)
    names = [f"name {index}" for index in range(len(classes))]
    assert image_folder(tmp_path, class_names=names).split.classes == tuple(names)


@pytest.mark.parametrize("names", [["wasp", "ant", "bee"], ["Bee", "fly", "wasp"], {"wasp", "ant", "bee"}])
def test_a_list_that_calls_a_class_by_the_name_of_another_is_refused(tmp_path, names):
    photo_folder(tmp_path, classes=("ant", "bee", "wasp"))
    with pytest.raises(UserError, match="which is another class: it is in another order|must be a text or a list"):
        image_folder(tmp_path, class_names=names)


@pytest.mark.parametrize("names", [["Garden wasp", "Red ant", "Honey bee"], ["a wasp", "the Ants", "ant (red)"]])
def test_a_list_whose_names_hold_those_of_other_classes_is_refused(tmp_path, names):
    photo_folder(tmp_path, classes=("ant", "bee", "wasp"))
    with pytest.raises(UserError, match="is a list that calls 'ant' by words of another class, 'wasp'"):
        image_folder(tmp_path, class_names=names)


@pytest.mark.parametrize("names", [["Red ant", "Honey bee", "Garden wasp"], ["ant, no bee", "bee, no wasp", "wasp"],
                                   ["Formica", "honey bee", "bee wasp"]])
def test_names_may_hold_those_of_other_classes_beside_their_own(tmp_path, names):
    photo_folder(tmp_path, classes=("ant", "bee", "wasp"))
    assert image_folder(tmp_path, class_names=names).split.classes == tuple(names)


def test_a_list_may_repeat_the_names_in_place(tmp_path):
    photo_folder(tmp_path, classes=("ant", "bee", "wasp"))
    found = image_folder(tmp_path, class_names=["Ant", "honey bee", "wasp"])
    assert found.split.classes == ("Ant", "honey bee", "wasp")


def test_a_list_of_names_is_in_the_order_of_the_numbers(tmp_path):
    names = [f"bird {number}" for number in range(1, 13)]
    dataset = image_folder(birds(tmp_path / "1", *(f"{number}/1.jpg" for number in range(1, 13))), class_names=names)
    assert all(name == f"bird {path.split('/')[0]}" for path, name in found(dataset))
    root = birds(tmp_path / "2", *(f"class_{number}/1.jpg" for number in range(1, 13)))
    with pytest.raises(UserError, match=r"order .* is not plain: class_1, class_2, class_3 and 9 more or class_1, "
                                        r"class_10, class_11 and 9 more\? Give \{class: name\}"):
        image_folder(root, class_names=names)
    assert len(image_folder(root).split.classes) == 12


@pytest.mark.parametrize(("one", "two"), [
    ("Daisy", "daisy"), ("lady  bug", "lady bug"), ("salt &amp; pepper", "salt & pepper"), ("\uff34ulip", "tulip"),
    ("stra\u00dfe", "STRASSE"), ("Baird's sparrow", "Baird\u2019s sparrow"), ("caf\u00e9", "caf\u00c3\u00a9"),
    ("jay", "jay\u200b"), ("jay", "\ufeffjay"), ("owl", "ow\u00adl")])
def test_names_that_read_the_same_are_refused(tmp_path, one, two):
    with pytest.raises(UserError, match="duplicate class names in .*which read the same to a tower; give every class"):
        image_folder(birds(tmp_path, "a/1.jpg", "b/1.jpg"), class_names=[one, two])
    with pytest.raises(UserError, match="duplicate class names: .*which read the same to a tower; give every class"):
        class_text([one, two])


def test_a_train_folder_may_be_the_only_subset(tmp_path):
    split = image_folder(birds(tmp_path, "train/a/1.jpg", "train/b/2.jpg")).split
    assert (split.classes, split.test) == (("a", "b"), ())


def test_a_class_may_be_called_train_or_test(tmp_path):
    assert image_folder(birds(tmp_path / "1", "train/1.jpg", "bus/1.jpg")).split.classes == ("bus", "train")
    assert image_folder(birds(tmp_path / "2", "test/1.jpg", "bus/1.jpg")).split.classes == ("bus", "test")


def test_nested_below_the_class_folder(tmp_path):
    dataset = image_folder(birds(tmp_path, "a/x/y/1.jpg", "a/2.jpg", "b/3.jpg"))
    assert found(dataset) == [("a/2.jpg", "a"), ("a/x/y/1.jpg", "a"), ("b/3.jpg", "b")]


ODD_NAMES = ["with space", "a,b", "it's \"quoted\"", "a=b", "(1)", "~tilde", "caf\u00e9", "[x] #1 100%"]


def test_odd_names(tmp_path):
    root = birds(tmp_path / "~my, birds (1)=x", *(f"{name}/{name}.jpg" for name in ODD_NAMES))
    dataset = image_folder(str(root))
    assert found(dataset) == [(f"{name}/{name}.jpg", name) for name in sorted(ODD_NAMES)]
    assert all(dataset.source.read(item.id) for item in dataset.split.train)


def test_suffixes_whatever_their_case(tmp_path):
    names = [f"a/{index}{suffix}" for index, suffix in enumerate(
        (".JPG", ".jpeg", ".Png", ".webp", ".bmp", ".GIF", ".tif", ".TIFF", ".ppm", ".pgm", ".jfif"))]
    assert len(image_folder(birds(tmp_path, "b/1.jpg", *names)).split.train) == 12


def test_hidden_and_stray_files_are_ignored(tmp_path):
    birds(tmp_path, "a/1.jpg", "b/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", ".hidden/3.jpg", "__MACOSX/a/4.jpg")
    for name in ("split.csv", "parts.json", "Thumbs.db", "a/Thumbs.db", "a/notes.txt", ".DS_Store"):
        (tmp_path / name).write_text("x")
    assert found(image_folder(tmp_path)) == [("a/1.jpg", "a"), ("b/1.jpg", "b")]


def test_the_order_of_the_directory_does_not_matter(tmp_path, monkeypatch):
    root = birds(tmp_path, *(f"{name}/{index}.jpg" for name in "dbca" for index in (10, 9, 2)))
    expected = image_folder(root).split
    assert [item.id for item in expected.train[:3]] == ["a/10.jpg", "a/2.jpg", "a/9.jpg"]
    listed = os.scandir
    monkeypatch.setattr(files.os, "scandir", lambda path: nullcontext(
        sorted(listed(path), key=lambda entry: entry.name, reverse=True)))
    backwards = image_folder(root).split
    assert backwards == expected
    assert sample_shots(backwards, 1, 0) == sample_shots(expected, 1, 0)


def test_links_are_followed_but_not_in_circles(tmp_path, caplog):
    root = birds(tmp_path / "root", "a/1.jpg", "b/1.jpg")
    birds(tmp_path / "else", "2.jpg")
    (root / "c").symlink_to(tmp_path / "else", target_is_directory=True)
    (root / "b" / "3.jpg").symlink_to(tmp_path / "else" / "2.jpg")
    (root / "a" / "circle").symlink_to(root / "a", target_is_directory=True)
    (root / "b" / "above").symlink_to(root, target_is_directory=True)
    (root / "b" / "far above").symlink_to(tmp_path, target_is_directory=True)
    assert [name for name, _ in found(image_folder(root))] == ["a/1.jpg", "b/1.jpg", "b/3.jpg", "c/2.jpg"]
    assert [line.split(":")[0] for line in warnings_of(caplog)] == [
        f"links lead to 2 images outside of {root}", "1 images are in two classes, through links"]


def test_a_link_that_puts_images_in_two_classes_is_told(tmp_path, caplog):
    birds(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "c").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b" / "2.jpg").symlink_to(tmp_path / "a" / "2.jpg")
    (tmp_path / "a" / "again.jpg").symlink_to(tmp_path / "a" / "2.jpg")        # in one class: no matter
    image_folder(tmp_path)
    [message] = warnings_of(caplog)
    assert message.startswith("4 images are in two classes, through links: ")
    assert "c/1.jpg is a/1.jpg" in message
    assert "b/2.jpg is " in message


@pytest.mark.parametrize("folders", [("1", "1.0", "2"), ("01", "1"), ("7", "x", "007")])
def test_one_number_in_two_ways_is_refused(tmp_path, folders):
    birds(tmp_path, *(f"{folder}/1.jpg" for folder in folders))
    with pytest.raises(UserError, match="are one number: write it in one way, or name both in class_names"):
        image_folder(tmp_path)
    names = {folder: f"bird {place}" for place, folder in enumerate(folders)}
    assert set(image_folder(tmp_path, class_names=names).split.classes) == set(names.values())


@pytest.mark.parametrize("lines", ["0 daisy\n1 rose\n", "1. daisy\n2. rose\n", "0,daisy\n1,rose\n",
                                   "id,name\n0,daisy\n1,rose\n", "daisy\t5\nrose\t7\n"])
def test_a_list_that_holds_more_than_names_is_refused(tmp_path, lines):
    birds(tmp_path / "photos", "a/1.jpg", "b/1.jpg")
    (tmp_path / "names.txt").write_text(lines)
    with pytest.raises(UserError, match=r"names\.txt holds more than names, such as .*: write the names alone"):
        image_folder(tmp_path / "photos", class_names=str(tmp_path / "names.txt"))


def test_numbers_that_belong_to_the_names_are_read(tmp_path):
    birds(tmp_path, "a/1.jpg", "b/1.jpg")
    for names in (["1 Series", "2 Series"], ["707-320", "727-200"], ["Smith, J", "Doe, K"]):
        assert image_folder(tmp_path, class_names=names).split.classes == tuple(names)


def test_a_dangling_link_is_a_damaged_image(tmp_path, caplog):
    root = birds(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "a" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    dataset = image_folder(root)
    for use in (dataset.source.read, dataset.source.sha256):
        with pytest.raises(UserError, match=r"cannot read the image a/2\.jpg in .*: No such file.*; remove or replace"):
            use("a/2.jpg")
    assert [name for name, _ in found(image_folder(root, skip_damaged=True))] == ["a/1.jpg", "b/1.jpg"]
    assert warnings_of(caplog) == ["skipped 1 of 3 images, which cannot be read: a/2.jpg"]


def test_skip_damaged(tmp_path, caplog):
    root = birds(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (root / "a" / "2.jpg").write_bytes(b"")
    assert len(image_folder(root).split.train) == 3
    assert len(image_folder(root, skip_damaged=True).split.train) == 2
    assert "a/2.jpg" in warnings_of(caplog)[0]


def test_class_names(tmp_path):
    root = birds(tmp_path, "n02/1.jpg", "n01/1.jpg")
    assert image_folder(root, class_names=["robin", "jay"]).split.classes == ("robin", "jay")
    assert image_folder(root, class_names={"n02": "jay", "n01": "robin"}).split.classes == ("robin", "jay")
    assert image_folder(root, class_names=["robin", "jay"]).split.train == image_folder(root).split.train
    with pytest.raises(UserError, match="holds 3 names for 2 classes"):
        image_folder(root, class_names=["a", "b", "c"])


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    birds(tmp_path / "birds")
    assert image_folder("~/birds").split == image_folder(tmp_path / "birds").split


def test_the_source_sees_changes_but_not_where_the_folder_stands(tmp_path):
    root = birds(tmp_path / "one")
    name = "jay/1.jpg"
    source = FileSource(root)
    before = source.sha256(name)
    assert source.sha256(name) == before == files.sha256((root / name).read_bytes())
    root.rename(tmp_path / "two")
    source = pickle.loads(pickle.dumps(FileSource(tmp_path / "two")))
    path = tmp_path / "two" / name
    assert source.sha256(name) == before
    assert source.read(name) == path.read_bytes()
    os.utime(path, ns=(0, 1))
    assert source.sha256(name) == before
    content = bytearray(path.read_bytes())
    content[0] ^= 1                      # of the same size and time, the middle equal too
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))
    assert source.sha256(name) == files.sha256(bytes(content)) != before


@pytest.mark.parametrize(("names", "message"), [
    ([], "found no class folders in .*: put each class into its own folder"),
    (["1.jpg", "2.PNG"], "found 2 images directly in .*: put each class into its own folder"),
    (["train/1.jpg", "test/1.jpg"], "found 1 images directly in .*train: put each class into its own folder"),
    (["a/1.jpg", "a/b/2.jpg"], r"found only one class in .* \(a\); recognition needs two at least"),
    (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/a/1.jpg"],
     "no training image of 1 classes: c; add some to its training set or remove the class"),
    (["val/a/1.jpg", "val/b/1.jpg"], "holds val but no train folder; add one"),
    (["train/a/1.jpg", "dev/a/1.jpg", "valid/a/1.jpg"], "holds dev, valid, which mean the same; leave one"),
    ([f"{part}/{name}/1.jpg" for part in ("lot1", "lot2") for name in "ab"],
     "lot1, lot2 in .* hold the same folders \\(a, b\\): "),
    (["crops_a/a/1.jpg", "crops_a/b/1.jpg", "crops_b/b/1.jpg"],
     "crops_a, crops_b in .* hold the same folders \\(b\\): "),
    (["x_train/a/1.jpg", "x_train/b/1.jpg", "x_train/c/1.jpg", "x_test/b/1.jpg", "x_test/c/1.jpg"],
     "x_test, x_train in .* hold the same folders \\(b, c\\): if they are subsets, call them train, val and test"),
    ([f"{genus}/{genus}{name}/1.jpg" for genus in ("Parus", "Turdus") for name in "ab"],
     "Parus holds images in the folders Parusa, Parusb; is Parus the class, or are these"),
    ([f"{name}/{part}/1.jpg" for name in "ab" for part in ("Test", "Train")],
     "a holds Test, Train: put the subsets above the classes, as train/a and test/a"),
    (["train/a/1.jpg", "test/a/1.jpg", "extra/1.jpg"], "holds train, val or test beside extra; leave only"),
])
def test_layout_errors(tmp_path, names, message):
    for name in names:
        photo(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        image_folder(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_roots(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; check root"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is a file; root must be the folder that holds the images"):
        image_folder(photo(tmp_path / "a.jpg"))


def test_empty_class_folders_are_named(tmp_path):
    root = birds(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "ghost").mkdir()
    with pytest.raises(UserError, match=r"1 of 3 class folders in .* hold no image: ghost; add images .* or remove"):
        image_folder(root)
    (root / "ghost" / "1.DNG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"hold no image but 1 \.dng files: ghost; add images"):
        image_folder(root)


def test_a_class_without_test_images_is_allowed(tmp_path):
    root = birds(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg")
    (root / "test" / "b").mkdir()
    assert image_folder(root).split.classes == ("a", "b")


def test_what_is_left_out_is_said(tmp_path, caplog):
    root = birds(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg")
    (root / "b" / "2.nef").write_bytes(b"x")
    assert len(image_folder(root).split.train) == 2
    loose, unreadable = warnings_of(caplog)
    assert loose.startswith("ignored 1 images beside the class folders")
    assert unreadable.startswith("ignored 1 .nef files")


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.jpg.", "photo.jpeg ", "p.jpg!d", "PHOTO.JPG~1"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_images_whose_names_do_not_say_so_are_told(tmp_path, caplog, name, kind):
    root = birds(tmp_path, "a/1.jpg", "b/1.jpg")
    Image.new("RGB", (4, 4)).save(root / "b" / name, format=kind)
    (root / "b" / "notes").write_text("GIF is a format")
    assert len(image_folder(root).split.train) == 2
    assert warnings_of(caplog) == [f"ignored 1 images in {root} whose names do not end in .jpg, .png ...: b/{name}; "
                                   "rename them to use them"]
    caplog.clear()
    assert len(image_files(root)[1]) == 2
    assert [f"b/{name}" in warning for warning in warnings_of(caplog)] == [True]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(birds(tmp_path, "a/1.jpg", "b/1.jpg") / "a" / "2.jpg")
    source = image_folder(tmp_path).source
    for use in (source.read, source.sha256):
        with pytest.raises(UserError, match=r"cannot read the image a/2\.jpg .* no file; remove or replace it"):
            use("a/2.jpg")


def test_the_whole_disk_is_no_folder_of_images():
    with pytest.raises(UserError, match="is the whole disk; root must be the folder that holds the images"):
        image_folder(Path(Path.cwd().anchor))


def test_a_folder_without_a_name_is_told(tmp_path):
    birds(tmp_path, " /1.jpg", "b/1.jpg")
    with pytest.raises(UserError, match="one of the classes is empty"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, class_names={" ": "a", "b": "b"}).split.classes == ("a", "b")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_that_is_not_utf8_is_named(tmp_path):
    birds(tmp_path, "a/1.jpg", "b/1.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system allows only UTF-8")
    with pytest.raises(UserError, match="is not UTF-8; rename it"):
        image_folder(tmp_path)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photos are not there")
def test_real_photos():
    dataset = image_folder(PHOTOS / "flowers17", class_names="flowers17")
    assert (len(dataset.split.train), len(dataset.split.classes)) == (1360, 17)
    split = with_test_set(dataset.split)
    assert len(split.test) == 17 * 20
    names = {item.id.split("/")[0]: dataset.split.classes[item.label] for item in dataset.split.train}
    assert {folder for folder, name in names.items() if folder.replace("_", " ") != name} == {"tigerlily"}


@pytest.mark.parametrize("subsets", [False, True])
@pytest.mark.parametrize("former", ["", "results.jsonl", "multirun.yaml"])
def test_folders_of_results_among_the_photos_are_no_photos(tmp_path, caplog, subsets, former):
    names = ("train/jay/1.jpg", "train/robin/1.jpg", "test/jay/2.jpg", "test/robin/2.jpg") if subsets else (
        "jay/1.jpg", "robin/1.jpg")
    root = birds(tmp_path / "birds", *names)
    known = found(image_folder(root)), image_files(root)
    for place in (root / "runs", (root / names[0]).parent / "why"):    # of a call in `root`, and in a folder of a class
        files.write_text(place / (former or "a.txt"), "")
        photo(place / "run" / "explain" / "1.png")
        if former:                       # a version that marked nothing, and Hydra
            (place / files.MARK).unlink()
    with caplog.at_level(logging.INFO):
        assert (found(image_folder(root)), image_files(root)) == known
    assert caplog.text.count("holds results of xrvlm: left out") == 2


def test_photos_in_a_folder_that_was_made_for_results_are_read_where_it_is_named(tmp_path):
    files.write_text(tmp_path / "new" / "labels.csv", "")
    root = birds(tmp_path / "new")
    assert len(found(image_folder(root))) == len(image_files(root)[1]) == 3
