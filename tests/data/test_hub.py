"""Sets of Hugging Face's `datasets`, built here and saved to disk: no network."""

import logging
import pickle
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from xrvlm.data.hub import hub_dataset
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError
from xrvlm.views import ImageDataset, decode

datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
NAMES = ["robin", "jay", "owl"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def jpeg(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(buffer, format="JPEG")
    return buffer.getvalue()


def birds(count: int = 12, label=None, labels=None, **columns):
    """Image i is grey 10 * i and of class i mod 3."""
    kinds = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)}
    rows = {"image": [{"bytes": jpeg(10 * index), "path": None} for index in range(count)],
            "label": [index % 3 for index in range(count)] if labels is None else labels}
    for name, values in columns.items():
        kinds[name], rows[name] = datasets.Value("string" if isinstance(values[0], str) else "float32"), values
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def labelled(items, classes) -> list[tuple[str, str]]:
    return sorted((item.id, classes[item.label]) for item in items)


@pytest.mark.parametrize("saved", [True, False])
def test_subsets(tmp_path, saved):
    subsets = datasets.DatasetDict(train=birds(), test=birds(3), validation=birds(6))
    if saved:
        subsets.save_to_disk(tmp_path / "birds")
    dataset = hub_dataset(str(tmp_path / "birds") if saved else subsets)
    assert dataset.name == ("birds" if saved else "hub")
    assert dataset.split.classes == tuple(NAMES)
    assert labelled(dataset.split.train, NAMES) == sorted((f"train/{index}", NAMES[index % 3]) for index in range(12))
    assert labelled(dataset.split.val, NAMES) == sorted((f"validation/{index}", NAMES[index % 3]) for index in range(6))
    assert labelled(dataset.split.test, NAMES) == [("test/0", "robin"), ("test/1", "jay"), ("test/2", "owl")]
    assert dataset.source.read("train/7") == jpeg(70)    # the very bytes, not encoded again


def test_a_single_split(tmp_path, monkeypatch):
    birds().save_to_disk(tmp_path / "birds")
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = hub_dataset("~/birds", name="mine", class_names=["Robin", "Jay", "Owl"])
    assert (dataset.name, dataset.split.classes) == ("mine", ("Robin", "Jay", "Owl"))
    assert (len(dataset.split.train), dataset.split.val, dataset.split.test) == (12, (), ())
    assert dataset.source.read("train/3") == jpeg(30)
    full = hub_dataset(datasets.DatasetDict(full=birds()))
    assert len(full.split.train) == 12
    assert full.source.read("full/3") == jpeg(30)


@pytest.mark.parametrize("split", ["test", "Testing"])
def test_a_test_split_alone_is_no_training_set(split):
    dataset = hub_dataset(datasets.DatasetDict({split: birds()}))
    assert (len(dataset.split.train), len(dataset.split.val), len(dataset.split.test)) == (0, 0, 12)
    words = datasets.Value("string")
    with pytest.raises(UserError, match="each of the 12 rows"):
        hub_dataset(datasets.DatasetDict({split: birds(label=words, labels=[f"a {row}" for row in range(12)])}))


def test_a_saved_folder_is_remembered_and_a_set_in_memory_is_not(tmp_path, monkeypatch):
    birds().save_to_disk(tmp_path / "birds")
    monkeypatch.chdir(tmp_path)
    saved = hub_dataset("birds", class_names=["Robin", "Jay", "Owl"])
    assert saved.loader == {"name": "hub", "options": {
        "path": str(tmp_path / "birds"), "config": None, "image_column": None, "label_column": None,
        "split_column": "split", "class_names": ["Robin", "Jay", "Owl"], "skip_damaged": False, "name": None,
        "extra": None}}
    monkeypatch.chdir("/")
    assert load_dataset(saved.loader["name"], **saved.loader["options"]).split == saved.split
    assert hub_dataset(birds()).loader is None
    assert hub_dataset(datasets.DatasetDict(train=birds())).loader is None


def test_a_folder_of_files_loads_too(tmp_path):
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(jpeg(90))
    dataset = hub_dataset(datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"),
                                                cache_dir=str(tmp_path / "cache")))
    assert dataset.split.classes == ("a", "b")
    assert dataset.source.read("train/0") == jpeg(90)    # stored as a path only


def test_the_source_travels_to_workers_and_knows_its_data(tmp_path):
    birds().save_to_disk(tmp_path / "one")
    first = hub_dataset(str(tmp_path / "one"))
    source = pickle.loads(pickle.dumps(first.source))
    assert source.read("train/2") == jpeg(20)
    assert source.sha256("train/2") == first.source.sha256("train/2") != source.sha256("train/3")
    path = tmp_path / "1.jpg"
    path.write_bytes(jpeg(1))
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int8")})
    rows = datasets.Dataset.from_dict({"image": [str(path)] * 2, "label": [0, 1]}, features=kinds)
    source = hub_dataset(rows).source    # of paths: the files may change
    before = source.sha256("train/0")
    path.write_bytes(jpeg(200))
    assert source.sha256("train/0") != before


def test_images_reach_a_transform():
    dataset = hub_dataset(birds())
    ids = [item.id for item in dataset.split.train]
    view = ImageDataset(ids, dataset.source, lambda image, index: image.getpixel((0, 0))[0])
    assert [view[index] for index in range(12)] == [
        (index, 10 * int(name.split("/")[1])) for index, name in enumerate(ids)]


@pytest.mark.parametrize(("kind", "labels", "classes"), [
    ("string", ["x", "y", "z"] * 4, ("x", "y", "z")),
    ("int64", [10, 9, 2] * 4, ("2", "9", "10")), ("float32", [10, 9, 2] * 4, ("2", "9", "10")),
    ("string", ["x ", "y", " z"] * 4, ("x", "y", "z")),
])
def test_labels_of_other_types(kind, labels, classes):
    split = hub_dataset(birds(label=datasets.Value(kind), labels=labels), label_column="label").split
    assert split.classes == classes
    assert labelled(split.train, split.classes)[0] == ("train/0", {"10": "10"}.get(str(labels[0]), "x"))


def test_cells_without_a_label_are_left_out_and_several_labels_are_refused(caplog):
    rows = birds(label=datasets.Value("string"), labels=["x", "", "y", " ", None, "NaN"] * 2)
    assert hub_dataset(rows).split.classes == ("x", "y")
    assert warnings_of(caplog) == ["ignored 8 of 12 images without a label in train"]
    several = birds(label=datasets.Sequence(datasets.Value("string")), labels=[["x"], ["x", "y"], ["y"]] * 4)
    with pytest.raises(UserError, match=r"row 0 of train, column 'label': \['x'\] is no class; write one name a row"):
        hub_dataset(several, label_column="label")


def test_a_test_split_without_labels_is_left_out(caplog):
    rows = datasets.DatasetDict(test=birds().remove_columns("label"), train=birds())
    assert hub_dataset(rows).split.test == ()
    assert warnings_of(caplog) == ["ignored the split test of hub, which has no labels (no column 'label')"]
    with pytest.raises(UserError, match="the split test of hub has no column 'image'; set image_column"):
        hub_dataset(datasets.DatasetDict(train=birds(), test=birds().rename_column("image", "photo")))


def test_names_for_number_words_are_in_the_order_of_the_numbers():
    rows = birds(label=datasets.Value("string"), labels=[str(number) for number in range(1, 13)])
    split = hub_dataset(rows, class_names=[f"bird {number}" for number in range(1, 13)]).split
    assert [split.classes[item.label] for item in split.train if item.id == "train/9"] == ["bird 10"]


def test_columns_by_name():
    rows = birds(caption=["a", "b", "c"] * 4, score=[0.5] * 12)
    assert hub_dataset(rows).split.classes == tuple(NAMES)    # a ClassLabel before a string
    assert hub_dataset(rows, label_column="caption").split.classes == ("a", "b", "c")
    renamed = rows.rename_columns({"image": "photo", "label": "bird"})
    assert hub_dataset(renamed, image_column="photo", label_column="bird").split == hub_dataset(rows).split


@pytest.mark.parametrize(("change", "options", "message"), [
    (lambda rows: rows.remove_columns("image"), {}, r"cannot tell the image column of hub; its columns are label "
     r"\(ClassLabel\): set image_column"),
    (lambda rows: rows.remove_columns("label"), {}, r"cannot tell the label column of hub; its columns are "
     r"a \(string\), b \(string\): set label_column"),
    (lambda rows: rows, {"image_column": "photo"}, "no column 'photo' for the image column of hub; its columns are im"),
    (lambda rows: rows, {"label_column": "bird"}, "no column 'bird' for the label column of hub; its columns are lab"),
    (lambda rows: rows.cast_column("a", datasets.Image()), {},
     r"cannot tell the image column of hub; its columns are image \(Image\), label \(ClassLabel\), a \(Image\)"),
])
def test_columns_that_cannot_be_told(change, options, message):
    rows = birds(a=["x"] * 12, b=["y"] * 12)
    if "its columns are label " in message:
        rows = rows.remove_columns(["a", "b"])
    with pytest.raises(UserError, match=message):
        hub_dataset(change(rows), **options)


def test_arrays_are_encoded_without_loss():
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    kinds = datasets.Features({"pixels": datasets.Array3D((5, 4, 3), "uint8"), "label": datasets.Value("int8")})
    rows = datasets.Dataset.from_dict({"pixels": list(values), "label": [0, 1, 2] * 2}, features=kinds)
    source = hub_dataset(rows, image_column="pixels").source
    assert np.array_equal(np.asarray(decode(source.read("train/4"), "x")), values[4])


def test_arrays_of_floats():
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.float32)
    for scale in (1, 255):               # 0..255, and fractions of 1
        cells = [(image / scale).tolist() for image in values]
        rows = datasets.Dataset.from_dict({"pixels": cells, "label": [0, 1, 2] * 2})
        source = hub_dataset(rows, image_column="pixels", label_column="label").source
        assert np.array_equal(np.asarray(decode(source.read("train/4"), "x")), values[4])


def test_a_dark_image_is_read_as_the_others_of_its_column_are():
    for bright, white in ((200.0, 1), (1.0, 255)):
        cells = [np.full((4, 4), value).tolist() for value in (0.0, 1.0, 0.0, bright, bright, bright)]
        rows = datasets.Dataset.from_dict({"pixels": cells, "label": [0, 1, 2] * 2})
        source = hub_dataset(rows, image_column="pixels", label_column="label").source
        assert np.asarray(decode(source.read("train/1"), "x")).max() == white


@pytest.mark.parametrize(("labels", "classes", "images"), [
    ([0, 1, -1] * 4, ("0", "1"), 8), ([-1, 1] * 6, ("-1", "1"), 12), ([-1, 0, 1, 2] * 3, ("0", "1", "2"), 9)])
def test_minus_one_is_no_label_where_classes_are_counted(labels, classes, images, caplog):
    split = hub_dataset(birds(label=datasets.Value("int64"), labels=labels)).split
    assert (split.classes, len(split.train)) == (classes, images)
    assert ("without a label" in caplog.text) == (images < 12)


def test_minus_one_in_a_split_whose_labels_are_kept_back():
    kind = datasets.Value("int64")
    subsets = datasets.DatasetDict(train=birds(label=kind), test=birds(3, label=kind, labels=[-1] * 3))
    split = hub_dataset(subsets).split
    assert (split.classes, split.test) == (("0", "1", "2"), ())


def test_classes_of_a_class_label_that_are_one_name():
    with pytest.raises(UserError, match="of hub has classes of one name, 'owl', 'owl '.*cast_column"):
        hub_dataset(birds(label=datasets.ClassLabel(names=["owl", "owl ", "jay"])))


@pytest.mark.parametrize("value", [-1.0, 300.0, 70000, float("nan")])
def test_numbers_that_are_no_plain_pixels(value):
    rows = datasets.Dataset.from_dict({"pixels": [[[value] * 4] * 4] * 6, "label": [0, 1, 2] * 2})
    source = hub_dataset(rows, image_column="pixels", label_column="label").source
    with pytest.raises(UserError, match="cannot read the image train/0: it"):
        source.read("train/0")


def test_cells_that_hold_no_image(tmp_path):
    cells = [{"bytes": None, "path": str(tmp_path / "gone.jpg")}, None, {"bytes": b"no image", "path": None}]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    good = [{"bytes": jpeg(1), "path": None}] * 3
    rows = datasets.Dataset.from_dict({"image": cells + good, "label": [0, 1, 2] * 2}, features=kinds)
    source = hub_dataset(rows).source
    with pytest.raises(UserError, match=r"cannot read the image train/0 at .*gone\.jpg: No such file.*; remove or"):
        source.read("train/0")
    with pytest.raises(UserError, match=r"cannot read the image train/1: the cell is empty; remove or replace it"):
        source.read("train/1")
    kept = hub_dataset(rows, skip_damaged=True).split.train
    assert [item.id for item in kept] == ["train/3", "train/4", "train/5"]


def test_classes_and_rows_that_are_not_used_are_said(caplog):
    split = hub_dataset(birds(labels=[0, 2, -1] * 4)).split
    assert split.classes == ("robin", "owl")
    assert [item.label for item in split.train].count(1) == 4
    assert len(split.train) == 8
    assert warnings_of(caplog) == ["ignored 4 of 12 images without a label in train",
                                   "1 of 3 classes of hub have no image and are left out: jay"]


def test_splits_that_are_not_used(caplog):
    dataset = hub_dataset(datasets.DatasetDict(train=birds(), test=birds(3), unlabelled=birds(3)))
    assert warnings_of(caplog) == ["ignored the splits unlabelled of hub"]
    assert len(dataset.split.test) == 3
    with pytest.raises(UserError, match="hub has no train split; its splits are a, b"):
        hub_dataset(datasets.DatasetDict(a=birds(), b=birds()))


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot load the data set '.*nowhere': .*; check path and config"):
        hub_dataset(str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"need the package datasets; pip install 'xrvlm\[datasets\]'"):
        hub_dataset("someone/birds")


def pixels(values, kind="uint8"):
    """Cells of numbers, image i of class i mod 3."""
    shaped = getattr(datasets, f"Array{np.asarray(values[0]).ndim}D")(np.asarray(values[0]).shape, kind)
    kinds = datasets.Features({"pixels": shaped, "label": datasets.ClassLabel(names=NAMES)})
    rows = {"pixels": list(values), "label": [index % 3 for index in range(len(values))]}
    return hub_dataset(datasets.Dataset.from_dict(rows, features=kinds), image_column="pixels").source


def test_arrays_of_each_plain_shape():
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    wide = np.arange(3 * 6 * 9, dtype=np.uint8).reshape(3, 6, 9)
    for values, there in ((grey[:, :, None], np.stack([grey] * 3, axis=2)), (wide, np.moveaxis(wide, 0, 2)),
                          (grey % 2 == 0, np.stack([grey % 2 == 0] * 3, axis=2) * 255)):
        source = pixels([values] * 3, str(values.dtype))
        assert np.array_equal(np.asarray(decode(source.read("train/0"), "0")), there)


@pytest.mark.parametrize("shape", [(6, 5, 2), (2, 5, 6), (1, 5, 4, 3)])
def test_arrays_of_no_plain_shape(shape):
    source = pixels([np.zeros(shape, np.uint8)] * 3)
    with pytest.raises(UserError, match=f"its numbers are {' x '.join(map(str, shape))}, not height x width"):
        source.read("train/0")


def test_a_row_of_numbers_is_no_image():
    rows = datasets.Dataset.from_dict({"pixels": [[7] * 784] * 6, "label": [0, 1, 2] * 2})
    with pytest.raises(UserError, match="its numbers are 784, not height x width"):
        hub_dataset(rows, image_column="pixels", label_column="label").source.read("train/0")


def test_a_streamed_set_is_refused():
    for rows in (birds().to_iterable_dataset(), datasets.IterableDatasetDict(train=birds().to_iterable_dataset())):
        with pytest.raises(UserError, match="Dataset.* found "):
            hub_dataset(rows)


def test_labels_that_the_training_images_do_not_have():
    numbers = birds(3, label=datasets.Value("int64"))
    more = birds(3, label=datasets.ClassLabel(names=["jay", "robin", "wren"]))
    for test, strange in ((numbers, "0, 1, 2"), (more, "wren")):
        with pytest.raises(UserError, match=f"the labels {strange} of hub are not among .*robin, jay, owl.*ClassLabel"):
            hub_dataset(datasets.DatasetDict(train=birds(), test=test))


def test_a_column_of_captions_is_not_taken_for_classes():
    captions = birds(6, label=datasets.Value("string"), labels=[f"bird {index}" for index in range(6)])
    with pytest.raises(UserError, match="each of the 6 rows of hub has another value in 'label'.*set label_column"):
        hub_dataset(captions)
    assert len(hub_dataset(captions, label_column="label").split.classes) == 6


PARTS = ["train", "test"] * 3 + ["val"] * 3 + ["Training"] * 3
PLACES = ["train", "test"] * 3 + ["val"] * 3 + ["train"] * 3


def places(dataset) -> list[str]:
    """The subset of each row, in the order of the rows."""
    found = {item.id: subset for subset in ("train", "val", "test") for item in getattr(dataset.split, subset)}
    return [found[f"train/{row}"] for row in range(len(found))]


@pytest.mark.parametrize("column", ["split", "Split", "subset", "partition", "which"])
@pytest.mark.parametrize("words", [True, False])
def test_a_column_of_subsets_says_what_is_for_testing(column, words):
    rows = birds(**{column: PARTS}) if words else birds(
        label=datasets.Value("string"), labels=[NAMES[row % 3] for row in range(12)], **{column: PARTS})
    assert places(hub_dataset(rows)) == PLACES
    assert set(places(hub_dataset(rows, split_column=None, label_column="label"))) == {"train"}


def test_a_column_of_classes_or_of_yes_and_no_says_it_too():
    kind = datasets.ClassLabel(names=["test", "train"])
    rows = birds().add_column("part", [row % 2 for row in range(12)])
    assert places(hub_dataset(rows.cast_column("part", kind))) == ["test", "train"] * 6
    assert places(hub_dataset(birds().add_column("is_test", [row % 2 == 0 for row in range(12)]))) == [
        "test", "train"] * 6


@pytest.mark.parametrize("column", ["fold", "test", "phase"])
def test_a_column_that_may_be_a_split_is_asked_about(column):
    rows = birds().add_column(column, [row % 5 for row in range(12)])
    with pytest.raises(UserError, match=f"hub has the column '{column}', which may say what is for testing: .*"
                                        "split_column=None"):
        hub_dataset(rows)
    assert set(places(hub_dataset(rows, split_column=None))) == {"train"}
    with pytest.raises(UserError, match="row [02] of the split train of hub: unknown subset"):
        hub_dataset(rows, split_column=column)
    with pytest.raises(UserError, match="hub has no column 'part'; its columns are label, "):
        hub_dataset(rows, split_column="part")


def test_two_columns_that_differ_on_what_is_for_testing_are_told(caplog):
    rows = birds(split=["train", "test"] * 6).add_column("subset", ["train", "train", "train", "test"] * 3)
    assert places(hub_dataset(rows)) == places(hub_dataset(birds(split=["train", "test"] * 6)))
    assert "the columns 'split' and 'subset' differ on which images are for testing, in 3 of 12 rows" in caplog.text


def test_a_column_must_not_contradict_the_splits():
    parts = datasets.DatasetDict(train=birds(split=["train", "val"] * 6), test=birds(3, split=["test"] * 3))
    dataset = hub_dataset(parts)
    assert [len(getattr(dataset.split, subset)) for subset in ("train", "val", "test")] == [6, 6, 3]
    parts["train"] = birds(split=["train", "test"] * 6)
    with pytest.raises(UserError, match="row 1 of the split train of hub is 'test' by its column 'split': use "
                                        "split_column=None to go by the splits"):
        hub_dataset(parts)
    assert len(hub_dataset(parts, split_column=None).split.train) == 12
    parts["train"] = birds(split=["a", "b"] * 6)           # of something else, beside splits that are plain
    assert len(hub_dataset(parts).split.train) == 12
