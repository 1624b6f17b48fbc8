"""Many data sets as one: names, ids, draws, hierarchies, and what cannot be joined."""

import json
from dataclasses import replace

import pytest
from photos import photo_folder, write_photo

from xrvlm.data.dataset import Item, Split, own_id, sample_shots, with_test_set
from xrvlm.data.folder import image_folder
from xrvlm.data.joint import joint
from xrvlm.data.registry import load_dataset
from xrvlm.errors import UserError
from xrvlm.evaluation.hierarchy import Hierarchy

FLOWERS, SWEETS = ("Rose", "lily", "tulip"), ("cake", "rose")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    photo_folder(root / "flowers", classes=FLOWERS)
    photo_folder(root / "sweets", classes=SWEETS)
    return root


@pytest.fixture
def sets(folders):
    return [image_folder(folders / name) for name in ("flowers", "sweets")]


def test_only_names_that_meet_are_told_apart(sets):
    found = joint(sets)
    assert found.name == "flowers+sweets"
    assert found.split.classes == ("Rose (flowers)", "lily", "tulip", "cake", "rose (sweets)")
    assert found.joint
    assert Hierarchy(found.split.classes, found.hierarchy or {}).path("rose (sweets)") == ["rose (sweets)", "sweets"]


@pytest.mark.parametrize("val", [False, True])
def test_the_images_of_a_run_are_those_of_each_set_alone(sets, val):
    whole = with_test_set(joint(sets).split)
    for seed in (1, 2):
        drawn = sample_shots(whole, 2, seed, val)
        for part in ("train", "val", "test"):
            alone = [(each.name, item.id) for each in sets
                     for item in getattr(sample_shots(with_test_set(each.split), 2, seed, val), part)]
            assert [(item.id.partition("/")[0].removeprefix("joint:"), own_id(item.id))
                    for item in getattr(drawn, part)] == alone


def test_images_are_read_from_their_own_set(sets):
    found = joint(sets)
    item = next(item for item in found.split.train if item.label == 4)
    assert item.id.startswith("joint:sweets/rose/")
    own = sets[1].source
    assert found.source.read(item.id) == own.read(own_id(item.id))
    assert found.source.sha256(item.id) == own.sha256(own_id(item.id))


def test_sets_are_given_in_many_ways(folders, sets, monkeypatch):
    expected = joint(sets)
    (folders / "flowers.csv").write_text("path,class\nlily/0.png,lily\n")
    (folders / "sets.yaml").write_text("- flowers\n- {name: sweets, root: sweets}\n")
    monkeypatch.chdir(folders)
    for given in ([{"data": "folder", "root": "flowers"}, "sweets"], ["flowers", folders / "sweets"], "sets.yaml"):
        assert joint(given) == expected
    monkeypatch.chdir("/")
    assert joint(folders / "sets.yaml") == expected
    assert expected.loader is not None
    kept = json.loads(json.dumps(expected.loader))
    assert load_dataset(kept["name"], **kept["options"]) == expected


def test_a_folder_with_a_split_is_a_table(folders):
    photo_folder(folders / "listed", classes=("oak", "elm"), images=2)
    (folders / "listed" / "split.csv").write_text("path,class\noak/0.png,OAK\noak/1.png,OAK\nelm/0.png,ELM\n"
                                                  "elm/1.png,ELM\n")
    found = joint([folders / "flowers", {"name": "trees", "root": folders / "listed"}])
    assert found.split.classes[3:] == ("ELM", "OAK")
    assert found.name == "flowers+trees"


def test_trees_of_the_sets_stand_below_them(sets):
    flowers = replace(sets[0], hierarchy={"lily": "monocots", "tulip": "monocots", "Rose": "others", "monocots": "",
                                          "others": ""})
    sweets = replace(sets[1], hierarchy={"cake": "others", "rose": "others", "others": ""})
    found = joint([flowers, sweets])
    tree = Hierarchy(found.split.classes, found.hierarchy or {})
    assert tree.path("tulip") == ["tulip", "monocots", "flowers"]
    assert tree.path("rose (sweets)") == ["rose (sweets)", "others (sweets)", "sweets"]


def test_a_set_without_test_images_gives_some_where_another_has_them(sets):
    own = sets[0].split
    tested = replace(sets[0], split=Split(own.classes, own.train[2:], test=own.train[:2]))
    found = joint([tested, sets[1]]).split
    assert [own_id(item.id) for item in found.test[:2]] == [item.id for item in own.train[:2]]
    assert [own_id(item.id) for item in found.test[2:]] == [item.id for item in with_test_set(sets[1].split).test]


def test_validation_sets_of_some_alone_are_left_out(sets, caplog):
    own = sets[0].split
    with caplog.at_level("INFO"):
        found = joint([replace(sets[0], split=Split(own.classes, own.train[2:], val=own.train[:2])), sets[1]])
    assert not found.split.val
    assert "the validation sets of flowers are left out" in caplog.text


@pytest.mark.parametrize(("change", "message"), [
    (lambda one, two: [one], "names 1 data set: a joint one has two at least"),
    (lambda one, two: [], "names 0 data sets"),
    (lambda one, two: "none.yaml", r"is a list such as .* or a \.yaml file of one; found none\.yaml"),
    (lambda one, two: [one, 3], "3 in sets is no data set"),
    (lambda one, two: [one, ["a"]], r"\['a'\] in sets is no data set"),
    (lambda one, two: [one, ""], "'' in sets is no data set"),
    (lambda one, two: [one, "/no/where"], "/no/where in sets: there is no folder /no/where"),
    (lambda one, two: [one, replace(two, name="")], "the set '' has no letter in its name"),
    (lambda one, two: [one, {"name": "x"}], "is no data set"),
    (lambda one, two: [one, {"data": 3}], "data must be "),
    (lambda one, two: [one, {"data": "flowers1"}], "flowers1 in sets: unknown data set 'flowers1'"),
    (lambda one, two: [one, {"data": "cub", "name": "birds"}], "birds in sets: root is not given"),
    (lambda one, two: [one, {"data": "folder", "root": "/", "rot": 1}], "unknown option of the data set"),
    (lambda one, two: [one, one], "flowers and flowers in sets are the same images: name each set once"),
    (lambda one, two: [one, replace(two, name="Flowers")], "two sets in sets are called 'flowers': give each its own"),
    (lambda one, two: [one, replace(two, name="a/b")], "the set 'a/b' has a / in its name"),
    (lambda one, two: [one, replace(two, name="lily")], "the set 'lily' is called as a class"),
    (lambda one, two: [one, joint([one, two])], r"flowers\+sweets is joint itself: list its sets instead"),
    (lambda one, two: [one, {"data": "joint", "sets": []}], "joint in sets is joint itself"),
    (lambda one, two: [one, replace(two, split=Split(("x", "y"), (Item("1", 0), Item("2", 1))))],
     "sweets in sets has no image left to test on: give a class two images"),
])
def test_what_cannot_be_joined(sets, change, message):
    with pytest.raises(UserError, match=message):
        joint(change(*sets))


def test_a_damaged_file_of_sets(tmp_path):
    for text in ("[a, b", "{a: b}", "3"):
        (tmp_path / "sets.yaml").write_text(text)
        with pytest.raises(UserError, match=r"such as \[\{name: flowers"):
            joint(tmp_path / "sets.yaml")


def test_extra_images_of_a_set_and_of_all(folders, tmp_path):
    write_photo(tmp_path / "a" / "rose" / "0.png", 0, 900)
    write_photo(tmp_path / "b" / "rose_(sweets)" / "0.png", 0, 901)
    own = {"root": folders / "flowers", "extra": str(tmp_path / "a")}
    found = joint([own, folders / "sweets"], extra=tmp_path / "b")  # pyright: ignore[reportCallIssue]
    assert [(item.id, item.label) for item in found.split.extra] == [
        ("joint:flowers/extra:rose/0.png", 0), ("extra:rose_(sweets)/0.png", 4)]
    assert found.source.read("joint:flowers/extra:rose/0.png") == (tmp_path / "a/rose/0.png").read_bytes()
    assert found.source.read("extra:rose_(sweets)/0.png") == (tmp_path / "b/rose_(sweets)/0.png").read_bytes()
