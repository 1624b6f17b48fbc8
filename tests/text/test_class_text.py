"""Class names, templates, descriptions and part sentences, by name, by path and in memory."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from towers import tiny_vit

from xrvlm.errors import UserError
from xrvlm.files import packaged
from xrvlm.text.class_names import name_classes, read_list
from xrvlm.text.class_text import (
    class_text,
    few,
    readable,
    templates,
    user_path,
)

CLASSES = ("robin", "Baird's_Sparrow", "café (1), a=b")


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_names_are_rendered_in_the_default_template():
    text = class_text(CLASSES)
    assert text.names == CLASSES
    assert text.prompts == (("a photo of a robin.",), ("a photo of a Baird's Sparrow.",),
                            ("a photo of a café (1), a=b.",))
    assert (text.parts, text.part_names, text.kind) == (None, None, "names")


@pytest.mark.parametrize("path", sorted((packaged("prompts") / "templates").glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_templates(path):
    found = templates(path.stem)
    assert all(template.count("{}") == 1 for template in found)
    assert len(set(found)) == len(found) == (8 if path.stem == "ensemble" else 1)
    assert len(class_text(["robin"], templates=path.stem).prompts[0]) == len(found)


@pytest.mark.parametrize(("name", "count", "one"), [("openai", 7, "a {} in a video game."),
                                                    ("openai_imagenet", 80, "a bad photo of a {}.")])
def test_templates_of_open_clip(name, count, one):
    found = templates(name)
    assert (len(found), len(set(found))) == (count, count)
    assert one in found and set(templates("openai")) <= set(templates("openai_imagenet"))
    assert all(template.count("{}") == 1 for template in found)
    assert class_text(["a_b"], templates=name).prompts[0] == tuple(line.format("a b") for line in found)
    with pytest.raises(UserError, match="unknown template list 'openai_image'; did you mean 'openai_imagenet'"):
        templates("openai_image")


def test_the_templates_that_the_readme_names_are_there():
    shipped = {path.stem for path in (packaged("prompts") / "templates").glob("*.txt")}
    assert {"photo", "birds", "flowers", "cars", "aircraft", "dogs", "food", "textures", "ensemble",
            "pets", "satellite", "actions"} <= shipped


def test_templates_from_a_file_a_sentence_and_a_list(tmp_path):
    path = write(tmp_path / "mine.txt", "\ufeff# my own\n\na {} drawn.\nthe {}.\n")
    assert class_text(["a_b"], templates=path).prompts == (("a a b drawn.", "the a b."),)
    assert class_text(["x"], templates="one {} here").prompts == (("one x here",),)
    assert class_text(["x"], templates=["1 {}", "2 {}"]).prompts == (("1 x", "2 x"),)


def test_a_name_with_braces_is_not_a_template():
    assert class_text(["{}", "{0}"]).prompts == (("a photo of a {}.",), ("a photo of a {0}.",))


@pytest.mark.parametrize(("wanted", "message"), [
    ("phot", "unknown template list 'phot'; did you mean 'photo'.*available: .*ensemble.*photo.*; or pass a path"),
    ("/no/where.txt", "no template list at /no/where.txt; check the path"),
    ("mine.txt", "no template list at mine.txt; check the path"),
    (["no place"], "'no place' in templates must hold exactly one {}"),
    ("{} and {}", "must hold exactly one {}"),
    (["a {name}"], "must hold exactly one {}"),
    ([], "^templates is empty"),
])
def test_wrong_templates(wanted, message):
    with pytest.raises(UserError, match=message):
        class_text(["x"], templates=wanted)


@pytest.mark.parametrize(("content", "message"), [
    ("# only this\n", "holds no template"), ("a {}\nno place\n", "'no place' in .*mine.txt must hold exactly one {}")])
def test_wrong_template_files(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        templates(write(tmp_path / "mine.txt", content))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"\xff\xfe a {}")
    with pytest.raises(UserError, match="save it as UTF-8"):
        templates(str(tmp_path / "mine.txt"))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.txt", "the {}.")
    assert templates("~/mine.txt") == ("the {}.",)
    assert user_path("~no such user") == Path("~no such user")


def test_classes_that_read_the_same_are_an_error():
    for same in (["a", "a"], ["a b", "a_b"], ["caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")]):
        with pytest.raises(UserError, match="duplicate class names"):
            class_text(same)


DESCRIPTIONS = {"robin": ["A red breast.", "A thin bill."], "Baird's Sparrow": "A yellow face.",
                "café (1), a=b": ["x"], "not asked for": ["y"]}


@pytest.mark.parametrize("by_path", [True, False])
def test_descriptions(tmp_path, by_path):
    given = write(tmp_path / "d.json", DESCRIPTIONS) if by_path else DESCRIPTIONS
    text = class_text(CLASSES, descriptions=given)
    assert text.prompts == (("A red breast.", "A thin bill."), ("A yellow face.",), ("x",))
    assert text.kind == "descriptions"


@pytest.mark.parametrize(("names", "message"), [
    (["", "a"], "one of the class names is empty"), ([" ", "a"], "is empty"), (["_", "a"], "is empty"),
    (["a" * 5000, "b"], r"has 5,000 characters \('a{40}'\.\.\.\): write a name of at most 500"),
    (["a\ud800", "b"], "holds half a character"), ([1, 2], r"classes must be a list of texts, found \[1, 2\]")])
def test_names_that_are_no_names(names, message):
    with pytest.raises(UserError, match=message) as raised:
        class_text(names)
    assert len(str(raised.value)) < 200


def test_descriptions_meet_their_classes_whatever_the_underscores_and_the_file_system():
    spelt = {"a b": "1", "c_d": "2", unicodedata.normalize("NFD", "caf\u00e9"): "3"}
    assert class_text(["a_b", "c d", "caf\u00e9"], descriptions=spelt).prompts == (("1",), ("2",), ("3",))
    with pytest.raises(UserError, match=r"no descriptions for 1 of 1 classes in descriptions: 'Robin'; add"):
        class_text(["Robin"], descriptions={"robin": "case is as is"})


@pytest.mark.parametrize("wrong", [[], "", " ", ["a", ""], [1], 3, None, {"a": "b"}])
def test_wrong_descriptions_name_the_class(wrong):
    with pytest.raises(UserError, match=r"descriptions of class 'robin' in descriptions must be a sentence or"):
        class_text(["robin"], descriptions={"robin": wrong})


@pytest.mark.parametrize(("content", "message"), [
    ("{", "cannot read .*d.json: .*; correct it"), ("[1]", "must hold one JSON object"),
    ('{"jay": "x"}', "no descriptions for 1 of 1 classes in .*d.json: 'robin'")])
def test_wrong_description_files(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        class_text(["robin"], descriptions=write(tmp_path / "d.json", content))


def test_unknown_descriptions_and_parts():
    with pytest.raises(UserError, match="unknown descriptions file 'birds'; available: none; or pass a path"):
        class_text(["robin"], descriptions="birds")
    with pytest.raises(UserError, match="unknown parts file 'no such'"):
        class_text(["robin"], parts="no such")


PARTS = {"robin": {"bill": "Thin.", "tail": "Short."}, "jay": {"bill": "Stout.", "tail": "Blue."}, "owl": {"ear": "-"}}


@pytest.mark.parametrize("by_path", [True, False])
def test_parts(tmp_path, by_path):
    text = class_text(["jay", "robin"], parts=write(tmp_path / "p.json", PARTS) if by_path else PARTS)
    assert text.part_names == ("bill", "tail")
    assert text.parts == (("Stout.", "Blue."), ("Thin.", "Short."))
    assert (text.kind, text.prompts[0]) == ("names", ("a photo of a jay.",))


@pytest.mark.parametrize(("jay", "message"), [
    ({"bill": "x"}, "class 'jay' in parts has no part 'tail'"),
    ({"bill": "x", "tail": "y", "eye": "z"}, "class 'jay' in parts has the part 'eye', which earlier classes"),
    ({"tail": "y", "bill": "x"}, "parts in the order tail, bill; write them as bill, tail"),
    ({}, "parts of class 'jay' in parts must be"),
    (["x", "y"], "parts of class 'jay' in parts must be"),
    ({"bill": "x", "tail": ""}, "part 'tail' of class 'jay' in parts must have a name and a sentence, found ''"),
    ({"bill": ["x"], "tail": "y"}, r"part 'bill' of class 'jay' in parts must have .*, found \['x'\]"),
    ({3: "x", "tail": "y"}, "part 3 of class 'jay' in parts must have a name"),
])
def test_wrong_parts(jay, message):
    with pytest.raises(UserError, match=message):
        class_text(["robin", "jay"], parts={**PARTS, "jay": jay})
    with pytest.raises(UserError, match=r"no parts for 1 of 2 classes in parts: 'wren'"):
        class_text(["robin", "wren"], parts=PARTS)


@pytest.mark.parametrize(("content", "message"), [
    ("", "cannot read .*p.json: .*; correct it or pass another file"),
    ("{}", "no parts for 1 of 1 classes in .*p.json: 'robin'; add them, or set class_names to its names"),
    ('{"robin": {"bill": "x"}, "robin": {"bill": "y"}}', "cannot read .*p.json: the key 'robin' occurs twice"),
    ('{"robin": {"bill": "x", "bill": "y"}}', "cannot read .*p.json: the key 'bill' occurs twice"),
    ('{"robin": {"bill": "x"}, "a b": {"bill": "x"}, "a_b": {"bill": "y"}}',
     "duplicate class names in .*p.json: 'a b' and 'a_b'"),
    ('{"robin": {"bill": 3}}', "part 'bill' of class 'robin' in .*p.json must have a name and a sentence, found 3"),
])
def test_wrong_part_files(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        class_text(["robin"], parts=write(tmp_path / "p.json", content))


def test_a_class_that_is_no_text():
    with pytest.raises(UserError, match=r"^3 in parts is no class name"):
        class_text(["robin"], parts={"robin": {"bill": "x"}, 3: {"bill": "y"}})


def test_an_unknown_part_file_lists_the_shipped_ones():
    with pytest.raises(UserError, match="did you mean 'flowers17'.*available: drawn_birds, flowers17"):
        class_text(["robin"], parts="flower17")


@pytest.mark.parametrize("path", sorted((packaged("prompts") / "parts").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_parts(path):
    """The validator reads all of it; no sentence is there twice, and each names its class."""
    table = json.loads(path.read_text(encoding="utf-8"))
    text = class_text(list(table), parts=path.stem)
    assert len(text.part_names) == (6 if path.stem == "drawn_birds" else 5)
    sentences = [sentence for row in text.parts for sentence in row]
    assert len(set(sentences)) == len(sentences)
    assert all(name in sentence for name, row in zip(text.names, text.parts, strict=True) for sentence in row)
    tiny_vit().sentence_layout(sentences)    # 77 tokens: UserError for one that is longer
    assert max(map(len, sentences)) < 150


def test_the_parts_of_the_flowers_are_those_of_the_named_classes():
    table = json.loads((packaged("prompts") / "parts" / "flowers17.json").read_text(encoding="utf-8"))
    assert tuple(table) == read_list("flowers17")


def test_shipped_class_names():
    found = read_list("flowers17")
    assert len(found) == 17
    assert found[0] == "bluebell"
    assert {"lily of the valley", "tiger lily"} <= set(found)
    head = (packaged("prompts") / "class_names" / "flowers17.txt").read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("#")
    assert "Flowers-17" in head
    with pytest.raises(UserError, match=r"unknown class-name list 'flower17'; .*'flowers17'.*or pass a path"):
        read_list("flower17")


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.json", '["iris", "rose"]', ("iris", "rose")), ("a.txt", '["iris",\n "rose"]', ("iris", "rose")),
    ("a.json", '{"n1": "iris", "n2": "rose"}', ("iris", "rose")), ("a.txt", "[iris]\nrose", ("[iris]", "rose")),
    ("a.txt", "12\n13", ("12", "13")), ("a.txt", "7", ("7",)),
])
def test_a_list_of_names_may_be_json(tmp_path, name, content, expected):
    assert read_list(write(tmp_path / name, content)) == expected


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", '{\n "iris": "iris",\n}', "a.txt: .*; correct it, or write one text a line"),
    ("a.json", "iris\nrose", "a.json: .*; correct it, or write one text a line"),
    ("a.txt", '{"n1": "iris"}', "must hold one text a line, or a JSON list of texts"),
    ("a.json", "[1, 2]", "must hold one text a line, or a JSON list of texts"),
    ("a.json", "5", "must hold one text a line, or a JSON list of texts"),
    ("a.csv", "iris,1\nrose,2", "a.csv is a table: write the names alone, one per line, into a .txt file"),
])
def test_a_file_that_is_no_list_of_names_is_told(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_list(write(tmp_path / name, content))


def test_a_file_beside_the_shipped_lists_is_told_how_to_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "names.csv", "iris\n")
    with pytest.raises(UserError, match=r"names\.csv is no class-name list: write it as a \.txt file, one text a line"):
        read_list("names.csv")


def test_templates_may_be_a_json_list_and_one_may_be_bare(tmp_path):
    assert templates(write(tmp_path / "a.txt", '["a photo of a {}.", "{}"]')) == ("a photo of a {}.", "{}")
    assert templates(write(tmp_path / "b.txt", "{}\n")) == ("{}",)


def test_class_names_from_a_file(tmp_path):
    path = write(tmp_path / "names.txt", "# source\n# more\nrobin, red\n#4 grey\n\njay's\n")
    assert read_list(path) == ("robin, red", "#4 grey", "jay's")
    with pytest.raises(UserError, match="holds no class name"):
        read_list(write(tmp_path / "empty.txt", "# nothing\n"))
    with pytest.raises(UserError, match=r"duplicate class names in .*twice.txt: 'a b' and 'a_b'"):
        read_list(write(tmp_path / "twice.txt", "a b\na_b\n"))


def test_name_classes_in_every_form(tmp_path):
    folders = ["n01", "n02"]
    wanted = ("robin", "blue_jay")
    assert name_classes(folders, None) == ("n01", "n02")
    assert name_classes(folders, list(wanted)) == wanted
    assert name_classes(folders, {"n02": "blue_jay", "n01": "robin"}) == wanted
    assert name_classes(folders, write(tmp_path / "n.txt", "robin\nblue_jay\n")) == wanted
    assert name_classes(folders, write(tmp_path / "n.json", {"n02": "blue_jay", "n01": "robin"})) == wanted


@pytest.mark.parametrize(("names", "message"), [
    (["x"], "class_names holds 1 names for 2 classes; give one name per class, in this order: n01, n02"),
    ("flowers17", "flowers17 holds 17 names for 2 classes"),
    ("birds", "unknown class-name list 'birds'; available: .*flowers17.*; or pass a path"),
    (["x", "x"], "duplicate class names in class_names: 'x' and 'x'"),
    (["x_y", "x y"], "duplicate class names"),
    (["x", 3], "class name 3 in class_names is not a word"),
    (["x", " "], "class name ' ' in class_names is not a word"),
    ({"n01": "x"}, "class_names has no name for 1 of 2 classes: 'n02'; add them"),
    ({"n01": "x", "n02": "y", "n3": "z"}, "names classes that the data set does not have: 'n3'; its classes are n01"),
    ({"n01": "x", "n02": "x"}, "duplicate class names"),
])
def test_wrong_names(names, message):
    with pytest.raises(UserError, match=message):
        name_classes(["n01", "n02"], names)


def test_small_words():
    assert few("abc") == "a, b, c"
    assert few("abcdefgh", 3) == "a, b, c and 5 more"
    assert readable("a_b c__d") == "a b c  d"


@pytest.mark.parametrize("folder", ["xrvlm/prompts", "prompts"])
def test_the_texts_are_found_installed_and_in_a_checkout(tmp_path, folder):
    root = Path(__file__).parents[2]
    (tmp_path / "xrvlm" / "text").mkdir(parents=True)
    for module in ("errors", "files", "text/__init__", "text/class_text"):
        shutil.copy(root / "xrvlm" / f"{module}.py", tmp_path / "xrvlm" / f"{module}.py")
    (tmp_path / "xrvlm" / "__init__.py").write_text("")
    (tmp_path / folder / "templates").mkdir(parents=True)
    (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / folder / "templates" / "mine.txt").write_text("found the {}.")
    # -S: no site-packages finder of an editable install; filelock is all that is needed from there
    site = Path(sys.modules["filelock"].__file__ or "").parents[1]
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(site)!r}]; import xrvlm.text.class_text as t; " \
           "print(t.templates('mine'))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "('found the {}.',)"
