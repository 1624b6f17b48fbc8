"""Tables of images: CSV, JSON Lines, Parquet, and the errors that name the line."""

import csv
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from xrvlm.data.table import table
from xrvlm.errors import UserError

PHOTOS = Path(__file__).parents[3] / "shared" / "data"
ROWS = [{"path": "1.jpg", "class": "robin", "split": "train"}, {"path": "sub/2.jpg", "class": "jay", "split": "train"},
        {"path": "3.jpg", "class": "jay", "split": "val"}, {"path": "4.jpg", "class": "robin", "split": "test"}]


def birds(root: Path, names: Sequence[str] = ("1.jpg", "sub/2.jpg", "3.jpg", "4.jpg")) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, format="PNG")
    return root


def write(path: Path, rows: Sequence[dict], delimiter: str = ",", encoding: str = "utf-8") -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        from pyarrow import parquet
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)


def found(dataset) -> list[tuple[str, str, str]]:
    return [(subset, item.id, dataset.split.classes[item.label])
            for subset in ("train", "val", "test") for item in getattr(dataset.split, subset)]


EXPECTED = [("train", "1.jpg", "robin"), ("train", "sub/2.jpg", "jay"), ("val", "3.jpg", "jay"),
            ("test", "4.jpg", "robin")]


@pytest.mark.parametrize(("file", "options"), [
    ("split.csv", {}), ("t.tsv", {"delimiter": "\t"}), ("tab.csv", {"delimiter": "\t"}),
    ("excel.csv", {"delimiter": ";"}), ("pipe.csv", {"delimiter": "|"}),
    ("bom.csv", {"encoding": "utf-8-sig"}), ("t.jsonl", {}), ("t.parquet", {})])
def test_formats(tmp_path, file, options):
    root = birds(tmp_path / "birds")
    write(root / file, ROWS, **options)
    dataset = table(root, file=file)
    assert found(dataset) == EXPECTED
    assert dataset.split.classes == ("jay", "robin")
    assert dataset.name == "birds"
    assert dataset.source.read("sub/2.jpg") == (root / "sub/2.jpg").read_bytes()


@pytest.mark.parametrize("before", ["\n\n", "sep=;\n", "\r\n  \r\nsep=;\r\n", '"sep=;"\n'])
def test_what_stands_before_the_header_is_no_header(tmp_path, before):
    root = birds(tmp_path / "birds")
    write(root / "split.csv", ROWS, delimiter=";")
    whole = before.encode() + (root / "split.csv").read_bytes()
    (root / "split.csv").write_bytes(whole)
    assert found(table(root)) == EXPECTED
    (root / "split.csv").write_bytes(whole + b"5.jpg;;test\r\n")
    with pytest.raises(UserError, match=f"split.csv, line {before.count(chr(10)) + 6}: the cell of 'class' is empty"):
        table(root)


def test_utf_16_without_its_mark_is_told(tmp_path):
    root = birds(tmp_path / "birds")
    write(root / "split.csv", ROWS, encoding="utf-16-le")
    with pytest.raises(UserError, match=r"split.csv begins like UTF-16 without its mark; save it as UTF-8"):
        table(root)


def test_quotes_behind_a_space_are_no_part_of_a_cell(tmp_path):
    (birds(tmp_path) / "split.csv").write_text(
        'path, class, split\n"1.jpg", "robin, red", "train"\n"3.jpg", "jay", "train"\n"4.jpg", "jay", "test"\n')
    assert found(table(tmp_path)) == [("train", "1.jpg", "robin, red"), ("train", "3.jpg", "jay"),
                                      ("test", "4.jpg", "jay")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_other_names_and_no_split(tmp_path, suffix):
    root = birds(tmp_path)
    file = f"t{suffix}"
    write(root / file, [{"file": row["path"], "bird": index % 2, "part": row["split"], "more": "x"}
                        for index, row in enumerate(ROWS)])
    dataset = table(root, file=file, path_column="file", class_column="bird")
    assert dataset.split.classes == ("0", "1")
    assert [subset for subset, *_ in found(dataset)] == ["train", "train", "val", "test"]       # by its cells
    named = table(root, file=file, path_column="file", class_column="bird", split_column="part", name="mine")
    assert (named.name, len(named.split.test)) == ("mine", 1)


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", ROWS)
    write(root / "turned.csv", ROWS[::-1])
    assert table(root).split == table(root, file="turned.csv").split


@pytest.mark.parametrize("word", ["val", "valid", "validation", " Val "])
def test_words_for_validation_and_spaces_around_cells(tmp_path, word):
    root = birds(tmp_path)
    write(root / "split.csv", [*ROWS[:2], {**ROWS[2], "split": word, "class": " jay "}, ROWS[3]])
    assert found(table(root)) == EXPECTED


ODD_NAMES = ["with space", "a,b", "it's \"quoted\"", "a=b", "(1)", "~tilde", "caf\u00e9", "a;c"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_odd_names(tmp_path, suffix):
    paths = [f"{name}/{name}.jpg" for name in ODD_NAMES] + ["~.jpg", "~x.jpg"]
    root = birds(tmp_path / "~ my, birds", paths)
    write(root / f"t{suffix}", [{"path": path, "class": f"class {path}"} for path in paths])
    assert found(table(root, file=f"t{suffix}")) == [("train", path, f"class {path}") for path in sorted(paths)]


@pytest.mark.parametrize(("row", "message"), [
    ({"path": "1.jpg\0", "class": "jay"}, "the path '1.jpg.x00' holds a control character"),
    ({"path": "a\tb.jpg", "class": "jay"}, "the path 'a.tb.jpg' holds a control character"),
    ({"path": "1.jpg", "class": "\x1b[31mred"}, "the class '.x1b.31mred' holds a control character")])
def test_control_characters_are_refused(tmp_path, row, message):
    root = birds(tmp_path)
    write(root / "t.jsonl", [row])
    with pytest.raises(UserError, match=f"t.jsonl, line 1.*: {message}; write it without"):
        table(root, file="t.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize(("suffix", "text"), [
    (".csv", "path,class\r\n1.jpg,jay\r\n2.jpg,Bl\u00e4ss\r\n"),
    (".jsonl", '{"path": "1.jpg", "class": "jay"}\n{"path": "2.jpg", "class": "Bl\u00e4ss"}\n')])
def test_a_table_in_the_encodings_of_spreadsheets(tmp_path, encoding, suffix, text):
    (birds(tmp_path, ["1.jpg", "2.jpg"]) / f"t{suffix}").write_bytes(text.encode(encoding))
    assert found(table(tmp_path, file=f"t{suffix}")) == [("train", "1.jpg", "jay"), ("train", "2.jpg", "Bl\u00e4ss")]


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "table.jsonl").write_text('{"path": "1.jpg", "class": "jay", "class": "wren"}\n')
    with pytest.raises(UserError, match="line 1: the key 'class' occurs twice; write one JSON object a line"):
        table(tmp_path, file="table.jsonl")


def test_levels_without_end_are_refused(tmp_path):
    (birds(tmp_path) / "t.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="t.jsonl, line 1: it is nested too deep; write one JSON object a line"):
        table(tmp_path, file="t.jsonl")


def test_absolute_paths_and_dots_become_one_id(tmp_path, monkeypatch):
    root = birds(tmp_path / "birds")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    names = [str(root / "1.jpg"), "./sub/../sub/2.jpg", str(tmp_path / "link" / "3.jpg"), "4.jpg", "1.jpg"]
    rows = [{**row, "path": name} for row, name in zip([*ROWS, ROWS[0]], names, strict=True)]
    write(tmp_path / "elsewhere.csv", rows)
    monkeypatch.setenv("HOME", str(tmp_path))
    for at in (root, tmp_path / "link", "~/birds"):
        assert found(table(at, file=tmp_path / "elsewhere.csv")) == EXPECTED
        assert found(table(at, file="~/elsewhere.csv")) == EXPECTED


def test_class_names_and_skip_damaged(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", ROWS)
    (root / "4.jpg").write_bytes(b"")
    split = table(root, class_names=["Jay", "Robin"], skip_damaged=True).split
    assert (split.classes, split.test) == (("Jay", "Robin"), ())
    with pytest.raises(UserError, match="holds 1 names for 2 classes"):
        table(root, class_names=["Jay"])


@pytest.mark.parametrize(("text", "message"), [
    ("path,class,split\n1.jpg,a,train\n3.jpg,b,trian\n",
     r"split\.csv, line 3: unknown subset 'trian'; use train, val or test, or split_column=None"),
    ("path,class,split\n1.jpg,a,\n", "line 2: the cell of 'split' is empty"),
    ("path,class\n1.jpg, \n", "line 2: the cell of 'class' is empty; fill it in or remove the line"),
    ("path,class\n1.jpg\n", "line 2: the cell of 'class' is empty"),
    ("path,class\n1.jpg,0\n3.jpg,1\n4.jpg,-1\n", "line 4: the cell of 'class' is -1, which is no class beside 0"),
    ("path,class\n1.jpg,a,b\n", "line 2: more cells than the 2 columns; quote a cell"),
    ("file,class,part\n1.jpg,a,b\n", "has no column 'path'; its columns are file, class, part: set path_column"),
    ("", "has no column 'path', 'class'"),
    ("path,class\n", "has no rows; write one for each image"),
    ("path,class\n1.jpg,a\n3.jpg,a\n", r"only one class in .* \(a\)"),
    ("path,class\n1.jpg,a\n1.jpg,b\n", "line 3: 1.jpg is 'b' in train here but 'a' in train in line 2; list every"),
    ("path,class,split\n1.jpg,a,train\n./1.jpg,a,test\n", "line 3: 1.jpg is 'a' in test here but 'a' in train in"),
    ("path,class\n1.jpg,a\n../out.jpg,b\n", r"line 3: \.\./out\.jpg is not inside .*; set root"),
    ("path,class\n1.jpg,a\n/etc/hosts,b\n", "line 3: /etc/hosts is not inside"),
    ("path,class\n1.jpg,a\n.,b\n", r"line 3: \. is not inside"),
    ("path,class\n1.jpg,a\n" + "".join(f"gone{index}.jpg,b\n" for index in range(7)),
     r"7 images named in .*split\.csv are not in .*: gone0\.jpg, .*gone4\.jpg and 2 more; check root"),
    ("path,class,split\n1.jpg,a,train\n3.jpg,b,train\n4.jpg,c,test\n", "no training image of 1 classes: c"),
    ('path,class\n"1.jpg"x,a\n', "cannot read the table .*; save it again"),
])
def test_csv_errors(tmp_path, text, message):
    root = birds(tmp_path)
    (root / "split.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        table(root)


@pytest.mark.parametrize(("text", "message"), [
    ('{"path": "1.jpg", "class": "a"}\n{"path"\n', r"t\.jsonl, line 2: .*; write one JSON object a line"),
    ('{"path": "1.jpg", "class": "a"}\n\n[1]\n', "line 3: not a JSON object"),
    ('{"path": "1.jpg", "class": "a"}\n{"path": "3.jpg"}\n', "line 2: the cell of 'class' is empty"),
    ('{"file": "1.jpg"}\n', "has no column 'path', 'class'; its columns are file"),
])
def test_json_errors(tmp_path, text, message):
    root = birds(tmp_path)
    (root / "t.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        table(root, file="t.jsonl")


def test_file_errors(tmp_path, monkeypatch):
    root = birds(tmp_path)
    with pytest.raises(UserError, match=r"there is no table .*split\.csv; check file"):
        table(root)
    with pytest.raises(UserError, match=r"there is no folder .*; check root"):
        table(root / "nowhere")
    (root / "t.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"cannot tell the format of the table .*t\.xlsx; save it as \.csv"):
        table(root, file="t.xlsx")
    (root / "split.csv").write_bytes("path,class\n1.jpg,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8 text: .*; save it as UTF-8"):
        table(root)
    (root / "t.parquet").write_text("x")
    with pytest.raises(UserError, match=r"cannot read the table .*; save it again"):
        table(root, file="t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow; pip install 'xrvlm\[datasets\]'"):
        table(root, file="t.parquet")


def test_the_split_column(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", [{**row, "split": str(index)} for index, row in enumerate(ROWS)])
    with pytest.raises(UserError, match="line 2: unknown subset '0'"):
        table(root)
    assert [subset for subset, *_ in found(table(root, split_column=None))] == ["train"] * 4
    with pytest.raises(UserError, match="has no column 'part'; its columns are path, class, split"):
        table(root, split_column="part")


@pytest.mark.parametrize("column", ["Split", " split", "SPLIT ", "subset", "partition", "usage", "which"])
def test_a_split_column_by_another_name_is_understood(tmp_path, column):
    root = birds(tmp_path)
    words = {"train": "Training", "val": "dev", "test": "holdout"}
    write(root / "split.csv", [{"Path": row["path"], "CLASS": row["class"], column: words[row["split"]]}
                               for row in ROWS])
    assert found(table(root)) == EXPECTED
    assert {subset for subset, *_ in found(table(root, split_column=None))} == {"train"}


def test_two_columns_that_differ_on_what_is_for_testing_are_told(tmp_path, caplog):
    root = birds(tmp_path)
    other = {"train": "test", "val": "train", "test": "train"}
    write(root / "split.csv", [{**row, "subset": other[row["split"]], "by": "me"} for row in ROWS])
    assert found(table(root)) == EXPECTED
    differ = sum(row["split"] != "val" for row in ROWS)
    assert f"the columns 'split' and 'subset' differ on which images are for testing, in {differ} of {len(ROWS)} rows" \
        in caplog.text
    assert "'split' counts, and split_column='subset' would take the other" in caplog.text
    caplog.clear()
    write(root / "split.csv", [{**row, "original": row["split"].replace("val", "train")} for row in ROWS])
    assert found(table(root)) == EXPECTED and not caplog.text        # val was taken from train: they agree on the test


PREDICTIONS = "image,label,prediction,class_1,probability_1,known,set,taxon,certainty,error\n"


def test_what_predict_wrote_is_read_with_the_labels_that_were_filled_in(tmp_path, caplog):
    root = birds(tmp_path)
    names = [row["path"] for row in ROWS]
    lines = [f'{names[0]},,Jay,Jay,0.9,0.5,"[""Jay""]",,,', f"{names[1]},Robin,unknown,Jay,0.4,0.1,,,,",
             f"{names[2]},Jay,Robin,Robin,0.9,0.5,,,,", f"{names[3]},,,,,,,,,cannot be read"]
    (root / "labels.csv").write_text(PREDICTIONS + "\n".join(lines) + "\n")
    dataset = table(root, file="labels.csv")
    assert {item.id: dataset.split.classes[item.label] for item in dataset.split.train} == {
        names[0]: "Jay", names[1]: "Robin", names[2]: "Jay"}
    assert f"left out 1 photos without an answer, such as {names[3]}" in caplog.text
    (root / "labels.csv").write_text(PREDICTIONS + "\n".join(lines).replace("Robin,unknown", ",unknown") + "\n")
    with pytest.raises(UserError, match=f"1 photos are called unknown, such as {names[1]}: write their classes into "):
        table(root, file="labels.csv", path_column="image", class_column="prediction")


def test_a_table_of_ones_own_with_a_column_of_predictions_is_read_by_its_own_columns(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", [{**row, "image": "x.jpg", "prediction": "Owl"} for row in ROWS])
    assert found(table(root)) == EXPECTED


def test_a_table_that_lies_elsewhere_is_named(tmp_path, monkeypatch):
    root = birds(tmp_path / "photos")
    (tmp_path / "labels.csv").write_text(PREDICTIONS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"check file, which is relative to the images: {tmp_path / 'labels.csv'}"):
        table(root, file="labels.csv")


@pytest.mark.parametrize("column", ["fold", "is_test", "test set", "Subset", "is_training_image", "isTest", "TrainTest",
                                    "kfold", "TESTSet", "istest"])
def test_a_column_that_may_be_a_split_is_asked_about(tmp_path, column):
    root = birds(tmp_path)
    write(root / "split.csv", [{"path": row["path"], "class": row["class"], column: "1"} for row in ROWS])
    with pytest.raises(UserError, match=f"has the column '{column}', which may say .*set split_column='{column}', or "
                                        "split_column=None"):
        table(root)
    assert {subset for subset, *_ in found(table(root, split_column=None))} == {"train"}


@pytest.mark.parametrize(("column", "cells"), [("held_out", "yn"), ("holdOut", "10"), ("used_for", ("eval", "fit")),
                                               ("role", ("Test", "gallery"))])
def test_columns_that_say_it_in_part_are_asked_about(tmp_path, column, cells):
    root = birds(tmp_path)
    write(root / "split.csv", [{"path": row["path"], "class": row["class"], column: cells[row["split"] != "test"]}
                               for row in ROWS])
    with pytest.raises(UserError, match=f"has the column '{column}', which may say what is for testing"):
        table(root)


def test_many_spellings_and_an_empty_cell_are_asked_about(tmp_path):
    words = ("train", "Training", "trn", "val", "dev", "valid", "test", "Testing", "")
    root = birds(tmp_path, [f"{row}.jpg" for row in range(len(words))])
    write(root / "split.csv", [{"path": f"{row}.jpg", "class": "ab"[row % 2], "which": word}
                               for row, word in enumerate(words)])
    with pytest.raises(UserError, match="has the column 'which', which may say what is for testing"):
        table(root)


def test_columns_of_other_words_are_not_asked_about(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", [{"path": row["path"], "class": row["class"], "vehicle": word, "note": f"test {word}"}
                               for row, word in zip(ROWS, ("train", "bus", "car", "tram"), strict=True)])
    assert {subset for subset, *_ in found(table(root))} == {"train"}


@pytest.mark.parametrize(("column", "cells"), [
    ("is_test", ("True", "False")), ("isTest", ("1", "0")), ("is_train", ("no", "yes")), ("istest", ("Y", "n")),
    ("is_training_image", ("0", "1"))])
def test_a_column_of_yes_and_no_is_understood(tmp_path, column, cells):
    root = birds(tmp_path)
    write(root / "split.csv", [{"path": row["path"], "class": row["class"], column: cells[row["split"] != "test"]}
                               for row in ROWS])
    whole = [("test" if subset == "test" else "train", *rest) for subset, *rest in EXPECTED]
    assert sorted(found(table(root))) == sorted(whole)


def test_yes_and_no_in_a_column_that_may_be_an_examination_is_asked_about(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", [{"path": row["path"], "class": row["class"], "test": str(int(row["split"] == "test"))}
                               for row in ROWS])
    with pytest.raises(UserError, match="has the column 'test', which may say"):
        table(root)
    assert {row[0] for row in found(table(root, split_column="test"))} == {"train", "test"}


def test_a_column_of_subsets_with_an_empty_cell_is_asked_about(tmp_path):
    root = birds(tmp_path)
    rows = [{"path": row["path"], "class": row["class"], "which": row["split"]} for row in ROWS]
    rows[0]["which"] = ""
    write(root / "split.csv", rows)
    with pytest.raises(UserError, match="has the column 'which', which may say what is for testing"):
        table(root)


def test_a_word_within_a_word_says_nothing(tmp_path):
    root = birds(tmp_path)
    rows = [{"path": row["path"], "class": row["class"], "strain": "1", "Latest": "2"} for row in ROWS]
    write(root / "split.csv", rows)
    assert {subset for subset, *_ in found(table(root))} == {"train"}


def test_two_columns_of_one_name(tmp_path):
    root = birds(tmp_path)
    (root / "twice.csv").write_text("path,class,class\n1.jpg,a,u\n3.jpg,b,v\n")
    with pytest.raises(UserError, match="has two columns 'class'; rename one of them"):
        table(root, file="twice.csv")
    write(root / "split.csv", [{**row, "split": "a", "SPLIT": "b"} for row in ROWS])
    assert found(table(root, split_column=None))
    with pytest.raises(UserError, match="has the columns 'split', 'SPLIT'; rename all but one"):
        table(root, split_column="Split")


def test_a_table_of_test_images_alone(tmp_path):
    root = birds(tmp_path)
    write(root / "split.csv", [{**row, "split": "test"} for row in ROWS])
    split = table(root).split
    assert (split.train, len(split.test)) == ((), 4)


@pytest.mark.parametrize(("cells", "classes"), [
    ([1.0, 0.0, 0.0, 1.0], ("0", "1")),
    ([True, False, False, True], ("False", "True")), (["robin ", " jay", "jay", "robin"], ("jay", "robin"))])
def test_cells_that_name_a_class_another_way(tmp_path, cells, classes):
    root = birds(tmp_path)
    write(root / "t.parquet", [{**row, "class": cell} for row, cell in zip(ROWS, cells, strict=True)])
    assert table(root, file="t.parquet").split.classes == classes


@pytest.mark.parametrize(("cells", "problem"), [
    ([["robin"], ["jay", "wet"], ["jay"], ["robin"]], r"\['robin'\] is no class; write one name a row"),
    ([0.5, 1.0, 0.0, 0.0], "0.5 is no class; write a name or a whole number"),
    ([float("nan"), 1.0, 0.0, 0.0], "cell of 'class' is empty"), (["nan", "a", "b", "a"], "cell of 'class' is empty"),
    ([b"robin", b"jay", b"jay", b"robin"], "b'robin' is no class; write one name a row as text"),
    ([{"name": "a"}, {"name": "b"}, {"name": "a"}, {"name": "b"}], "is no class; write one name a row")])
def test_cells_that_are_no_class(tmp_path, cells, problem):
    root = birds(tmp_path)
    write(root / "t.parquet", [{**row, "class": cell} for row, cell in zip(ROWS, cells, strict=True)])
    with pytest.raises(UserError, match=rf"t\.parquet, line 1.*{problem}"):
        table(root, file="t.parquet")


def test_paths_as_another_machine_writes_them(tmp_path):
    accents = [unicodedata.normalize(form, "caf\u00e9/1.jpg") for form in ("NFD", "NFC")]
    root = birds(tmp_path, ("sub/2.jpg", "sub/3.jpg", accents[0]))
    write(root / "split.csv", [{"path": path, "class": name} for path, name in
                               (("sub\\2.jpg", "jay"), ("sub/3.jpg", "jay"), (accents[1], "robin"))])
    assert [item_id for _, item_id, _ in found(table(root))] == [accents[0], "sub/2.jpg", "sub/3.jpg"]
    write(root / "split.csv", [{"path": path, "class": "jay"} for path in ("sub\\2.jpg", "sub/2.jpg")])
    with pytest.raises(UserError, match="names an image in two ways"):
        table(root)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photos are not there")
def test_real_photos():
    split = table(PHOTOS / "dtd10").split
    assert [len(items) for items in (split.train, split.val, split.test)] == [600, 240, 360]
    assert split.classes[0] == "banded"
