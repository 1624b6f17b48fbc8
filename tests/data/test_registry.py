"""Data sets by name, and what a data set remembers of its loader."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import replicas
import replicas_coop
from photos import photo_folder

from xrvlm.data.dataset import Dataset, assemble, registered
from xrvlm.data.folder import image_folder
from xrvlm.data.registry import FORMER, find, load_dataset
from xrvlm.data.table import table
from xrvlm.demo import drawn_birds
from xrvlm.errors import UserError
from xrvlm.files import FileSource, shipped, shipped_options

NAMES = sorted(shipped("data"))


def again(dataset: Dataset) -> Dataset:
    """The data set loaded from what it remembers, as a saved run keeps it."""
    assert dataset.loader is not None
    kept = json.loads(json.dumps(dataset.loader))
    return load_dataset(kept["name"], **kept["options"])


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(replicas, name) or hasattr(replicas_coop, name)])
def test_a_published_set_remembers_its_registry_name_and_options(tmp_path, monkeypatch, name):
    getattr(replicas if hasattr(replicas, name) else replicas_coop, name)(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset(name, root="set")
    defaults = {key: value for key, value in shipped_options("data", name).items() if not key.startswith("_")}
    assert dataset.loader == {"name": name, "options": defaults | {"root": str(tmp_path / "set")}}
    monkeypatch.chdir("/")
    assert again(dataset) == dataset


def test_every_published_set_is_tested_and_has_a_layout():
    others = {"folder", "table", "hub", "drawn_birds", "joint"}
    assert others < set(NAMES)
    assert {name for name in NAMES if find(name, **required(name)).func.__dict__["layout"]} == set(NAMES) - others
    assert all(hasattr(replicas, name) or hasattr(replicas_coop, name) for name in set(NAMES) - others)


def required(name: str) -> dict[str, str]:
    return {key: "x" for key, value in shipped_options("data", name).items() if value == "???"}


def test_class_folders_load_again_from_anywhere(tmp_path, monkeypatch):
    photo_folder(tmp_path / "birds", classes=("blue tit", "finch", "wren"))
    (tmp_path / "names.txt").write_text("Tit\nFinch\nWren\n")
    monkeypatch.chdir(tmp_path)
    dataset = image_folder("birds", class_names="names.txt", name="birds")    # the name is no path
    assert dataset.loader == {"name": "folder", "options": {
        "root": str(tmp_path / "birds"), "class_names": str(tmp_path / "names.txt"), "skip_damaged": False,
        "hierarchy": None, "name": "birds", "extra": None}}
    monkeypatch.chdir("/")
    assert again(dataset) == dataset
    monkeypatch.setenv("HOME", str(tmp_path))
    named = image_folder(Path("~/birds"), class_names=("a", "b", "c"))
    assert named.loader is not None
    assert named.loader["options"] == {"root": str(tmp_path / "birds"), "class_names": ["a", "b", "c"],
                                       "skip_damaged": False, "hierarchy": None, "name": None, "extra": None}
    assert again(named).split == named.split


def test_a_shipped_list_of_names_is_no_path(tmp_path, monkeypatch):
    photo_folder(tmp_path / "birds", classes=[f"class {index:02}" for index in range(17)], images=1)
    (tmp_path / "flowers17").mkdir()
    monkeypatch.chdir(tmp_path)
    dataset = image_folder("birds", class_names="flowers17")
    assert dataset.loader is not None
    assert dataset.loader["options"]["class_names"] == "flowers17"
    assert again(dataset) == dataset


@pytest.mark.parametrize("file", ["split.csv", "{}/elsewhere.csv"])
def test_a_table_remembers_its_file(tmp_path, monkeypatch, file):
    root = photo_folder(tmp_path / "birds", images=1)
    path = root / file.format(tmp_path)
    path.write_text("path,class\nwren/0.png,wren\nblue tit/0.png,tit\n")
    monkeypatch.chdir(tmp_path)
    dataset = table("birds", file=file.format(tmp_path))
    assert dataset.loader is not None
    assert dataset.loader["options"]["file"] == str(path)
    monkeypatch.chdir("/")
    assert again(dataset) == dataset


@pytest.mark.parametrize("root", [None, "birds"])
def test_a_world_of_drawn_birds_remembers_its_number_instead_of_its_folder(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawn_birds, "write", lambda folder, *_: photo_folder(folder))
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path))
    dataset = load_dataset("drawn_birds", world=3, root=root)
    assert dataset.loader == {"name": "drawn_birds", "options": {
        "world": 3, "root": None if root is None else str(tmp_path / "birds"), "train_images": 32, "test_images": 38,
        "extra": None}}
    assert again(dataset) == dataset


def test_a_wrapped_loader_is_remembered_by_the_outer_name(tmp_path):
    @registered("outer")
    def outer(root: str, *, world: int = 0) -> Dataset:
        return replace(image_folder(root), world=world)

    dataset = outer(str(photo_folder(tmp_path)), world=2)
    assert dataset.loader == {"name": "outer", "options": {"root": str(tmp_path), "world": 2, "extra": None}}
    assert inspect.signature(outer).parameters["world"].default == 0
    assert (outer.__name__, outer.__module__) == ("outer", __name__)


def test_a_set_in_memory_has_no_loader(tmp_path):
    found = {"train": [("1.jpg", "a"), ("2.jpg", "b")]}
    assert assemble("mine", FileSource(tmp_path), found).loader is None


def test_what_cannot_be_loaded_by_name(tmp_path):
    with pytest.raises(UserError, match=r"unknown data set 'cubs'; did you mean 'cub'.*available: aircraft, .*"):
        load_dataset("cubs", root=tmp_path)
    with pytest.raises(UserError, match="root is not given; the data set 'cub' needs it"):
        load_dataset("cub")
    with pytest.raises(UserError, match=r"unknown option of the data set 'cub' 'rot'; did you mean 'root'\?"):
        load_dataset("cub", rot=tmp_path)
    with pytest.raises(UserError, match="there is no folder /no/where"):
        load_dataset("cub", root="/no/where")


def test_former_loaders_have_the_names_of_today():
    assert sorted(FORMER.values()) == [name for name in NAMES if name != "joint"]
    for path, name in FORMER.items():
        target = shipped_options("data", name)["_target_"]
        assert path.rpartition(".")[2] == target.rpartition(".")[2]
        module, _, function = target.rpartition(".")
        assert callable(getattr(import_module(module), function))


def test_class_folders_do_not_import_what_only_other_data_needs():
    program = ("import sys, xrvlm.data.folder\n"
               "assert not {'scipy', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules), 'imported'")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
