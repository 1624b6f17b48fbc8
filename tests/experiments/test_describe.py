"""Questions to a language model, and what is made of its answers."""

import json
from pathlib import Path

import pytest
from photos import CLASSES, photo_folder

import xrvlm
from xrvlm.cli.main import main
from xrvlm.errors import UserError

pytestmark = pytest.mark.usefixtures("at_home")
PARTS = ("head", "wing")


def good(names=CLASSES, parts=PARTS) -> dict:
    return {name: {"sentences": [f"a photo of a {name}, number {place}.", f"{name} seen from side {place}."],
                   "parts": {part: f"the {part} of kind {place}." for part in parts}}
            for place, name in enumerate(names)}


def answer(content: object, name: str = "answer.txt") -> Path:
    path = Path(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_question_has_the_classes_the_parts_and_the_form():
    found = xrvlm.describe(CLASSES, kind="bird species", parts=PARTS, sentences=2)
    (path,) = found.files
    text = path.read_text()
    assert path == Path("words/question.txt").resolve() or path == Path("words/question.txt")
    assert "these bird species" in text
    assert text.rstrip().endswith("\n".join(CLASSES))
    form = json.loads(text[text.index("{"):text.rindex("}") + 1])
    assert form == {CLASSES[0]: {"sentences": ["...", "..."], "parts": {"head": "...", "wing": "..."}}}


def test_many_classes_are_asked_in_several_questions():
    names = [f"kind {number}" for number in range(60)]
    found = xrvlm.describe(names)
    assert [path.name for path in found.files] == ["question-1.txt", "question-2.txt", "question-3.txt"]
    asked = [line for path in found.files for line in path.read_text().split("The classes:\n\n")[1].splitlines()]
    assert asked == names


@pytest.mark.parametrize(("before", "after"), [
    ("", ""), ("Sure, {here} it is:\n```json\n", "\n```\nAnything else {?} {}"), ("\ufeff", "")])
def test_an_answer_is_read_whatever_stands_around_it(before, after):
    found = xrvlm.describe(CLASSES, parts=PARTS, answer=answer(before + json.dumps(good()) + after))
    descriptions, parts = (json.loads(path.read_text()) for path in found.files)
    assert descriptions == {name: entry["sentences"] for name, entry in good().items()}
    assert parts == {name: entry["parts"] for name, entry in good().items()}
    made = xrvlm.class_text(CLASSES, descriptions=str(found.files[0]), parts=str(found.files[1]))
    assert made.part_names == PARTS


@pytest.mark.parametrize("form", [
    lambda table: [{"name": name, **entry} for name, entry in table.items()],
    lambda table: {"classes": [{"class": name, **entry} for name, entry in table.items()]},
    lambda table: {"birds": table}])
def test_other_forms_that_language_models_like_are_read(form):
    found = xrvlm.describe(CLASSES, parts=PARTS, answer=answer(form(good())))
    assert json.loads(found.files[0].read_text()) == {name: entry["sentences"] for name, entry in good().items()}


def test_what_is_good_is_kept_and_the_rest_is_asked_again():
    with pytest.raises(UserError, match="no usable answer for 1 of 3 classes \\(wren\\); ask again with .*again.txt"):
        xrvlm.describe(CLASSES, parts=PARTS, answer=answer(good(CLASSES[:2])))
    assert Path("words/again.txt").read_text().rstrip().endswith("The classes:\n\nwren")
    assert not Path("words/descriptions.json").exists()
    rest = {"wren": good()["wren"]}
    xrvlm.describe(CLASSES, parts=PARTS, answer=answer(rest, "more.txt"))
    assert list(json.loads(Path("words/descriptions.json").read_text())) == list(CLASSES)


def test_several_answers_are_joined():
    files = [answer(good(CLASSES[:1]), "a.txt"), answer({CLASSES[1]: good()[CLASSES[1]]}, "b.txt"),
             answer({"WREN": good()["wren"]}, "c.txt")]
    found = xrvlm.describe(CLASSES, parts=PARTS, answer=files)
    assert set(json.loads(found.files[0].read_text())) == set(CLASSES)


@pytest.mark.parametrize(("content", "message"), [
    ("I cannot do that.", "holds no JSON object"),
    ("[1, 2]", "holds no JSON object"),
    ("{" * 2000, "holds no JSON object"),
    *[('{"a":' * levels + "1" + "}" * levels, "holds no JSON object|no usable answer")
      for levels in (300, 900, 990)],
    (good() | {"wren": {"sentences": ["a " * 41]}}, "wren: a sentence of 41 words, 40 at most"),
    (good() | {"wren": {"sentences": []}}, "wren: no sentences"),
    (good() | {"wren": {"sentences": [5]}}, "wren: no sentence"),
    (good() | {"wren": {"sentences": ["..."], "parts": good()["wren"]["parts"]}}, "the form was not filled in"),
    (good() | {"wren": {"sentences": ["red\x1b[31m bird"]}}, "control characters"),
    (good() | {"wren": {"sentences": ["a wren"], "parts": {"head": "its head"}}}, r"wren: wing \(no sentence\)"),
    (good() | {"wren": {"sentences": ["a wren"]}}, "wren: head"),
    ({name: {"sentences": [f"a photo of a {name}."], "parts": good()[name]["parts"]} for name in CLASSES},
     "no usable answer for 3 of 3 classes .*the same sentences for blue tit"),
    (good() | {"wren": {"sentences": ["a wren.", "A wren."]}}, "wren: the same sentence twice"),
    (json.dumps(good()).replace("{", '{"wren": ["a wren, told before."], ', 1), "wren: described twice"),
    (good() | {"Wren": {"sentences": ["a bird"]}}, "wren: described twice$"),
    ({}, "no usable answer for 3 of 3 classes"),
])
def test_a_bad_answer_is_told_and_writes_nothing(content, message):
    with pytest.raises(UserError, match=message):
        xrvlm.describe(CLASSES, parts=PARTS, answer=answer(content))
    assert not Path("words/descriptions.json").exists()


def test_without_parts_a_list_of_sentences_will_do():
    found = xrvlm.describe(CLASSES, answer=answer({name: [f"{name} is {name[::-1]}."] for name in CLASSES}))
    assert [path.name for path in found.files] == ["descriptions.json"]


def test_what_was_kept_of_other_parts_is_not_taken():
    with pytest.raises(UserError):
        xrvlm.describe(CLASSES, parts=PARTS, answer=answer(good(CLASSES[:2])))
    with pytest.raises(UserError, match="no usable answer for 2 of 3"):
        xrvlm.describe(CLASSES, parts=("tail",), answer=answer(good(CLASSES[:1], ("tail",))))


def test_files_of_the_users_own_stay():
    for name in ("question_notes.txt", "again-answer.txt", "question.txt.bak"):
        Path("words").mkdir(exist_ok=True)
        Path("words", name).write_text("mine")
    with pytest.raises(UserError):
        xrvlm.describe(CLASSES, parts=PARTS, answer=answer(good(CLASSES[:1]), "words/again-answer.txt"))
    xrvlm.describe(CLASSES)
    assert Path("words/question_notes.txt").read_text() == "mine"
    assert Path("words/again-answer.txt").exists()


def test_what_is_no_class_is_left_out_with_a_warning(caplog):
    found = xrvlm.describe(CLASSES, parts=PARTS, answer=answer(good() | {"ostrich": {"sentences": ["a bird"]}}))
    assert "'ostrich' is none of the classes" in caplog.text
    assert set(json.loads(found.files[0].read_text())) == set(CLASSES)


def test_parts_that_were_answered_stay_when_others_are_asked():
    xrvlm.describe(CLASSES, parts=PARTS, answer=answer(good()))
    xrvlm.describe(CLASSES, answer=answer(good()))
    found = xrvlm.describe(CLASSES, parts=("wing", "head"), answer=answer("{}"))
    assert list(json.loads(found.files[1].read_text())["wren"]) == ["wing", "head"]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"parts": ("head", "Head")}, "names a part twice"), ({"parts": {"a": "b"}}, "must be a list of names|parts"),
    ({"parts": ("",)}, "must be a list of names"), ({"sentences": 0}, "at least 1")])
def test_wrong_options_are_told(wrong, message):
    with pytest.raises(UserError, match=message):
        xrvlm.describe(CLASSES, **wrong)
    with pytest.raises(UserError, match="classes is empty"):
        xrvlm.describe([])


def test_the_commands(tmp_path, capsys):
    photos = photo_folder(tmp_path / "birds", images=4)
    assert main(["describe", str(photos), "kind=small birds", "parts=[head, wing]"]) == 0
    assert "question.txt" in capsys.readouterr().out
    assert "small birds" in Path("words/birds/question.txt").read_text()
    assert main(["describe", str(photos), "parts=head,wing", f"answer={answer(good())}"]) == 0
    assert "text.descriptions=words/birds/descriptions.json text.parts=" in capsys.readouterr().out
    assert main(["describe", str(photos), "answer=nowhere.txt"]) == 2
    assert "cannot read the answer" in capsys.readouterr().err
    assert main(["describe", str(photos), "sentences=0"]) == 2
    assert "sentences must be at least 1" in capsys.readouterr().err
