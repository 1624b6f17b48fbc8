import errno
import os
from pathlib import Path

import pytest

from xrvlm import files
from xrvlm.data.folder import listing
from xrvlm.errors import UserError


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"é": 1})
    files.write_json(path, {"b": [1, 2]})
    assert files.read_json(path, "fix") == {"b": [1, 2]}
    assert sorted(os.listdir(path.parent)) == [files.MARK, "a.json"]           # noqa: PTH208


def test_of_the_folders_that_are_made_the_outermost_is_marked(tmp_path):
    files.write_text(tmp_path / "runs" / "one" / "parts" / "a.txt", "x")
    files.write_text(tmp_path / "a.txt", "x")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(files.MARK)] == [f"runs/{files.MARK}"]
    assert files.holds_results(tmp_path / "runs")
    assert not files.holds_results(tmp_path)


@pytest.mark.parametrize("fail", ["write", "flush", "rename"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fail):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fail == "flush":
        monkeypatch.setattr(files.os, "fsync", full)
    if fail == "rename":
        monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=r"a\.txt: .*No space left on device; free some space"):
        files.write_atomically(path, full if fail == "write" else lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]                                   # noqa: PTH208


def test_an_error_of_the_writer_passes_through_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def broken(temporary):
        temporary.write_text("half")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        files.write_atomically(path, broken)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]                                   # noqa: PTH208


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose another folder"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_a_damaged_json_file_is_told_with_the_fix(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*a\.json: .*; start again"):
        files.read_json(tmp_path / "a.json", "start again")


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    files.write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_digest_ignores_the_order_of_keys():
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 2, "b": 1})


def test_a_link_to_itself_is_a_file_like_a_broken_link(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a").mkdir()
    assert listing(tmp_path) == ([tmp_path / "a"], [tmp_path / "loop.png"])


def test_an_empty_path_is_not_the_working_folder():
    with pytest.raises(UserError, match="a path is empty, as of a variable that is not set"):
        files.user_path("")
    assert files.user_path(".") == files.user_path("./")


def test_a_file_never_takes_the_place_of_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    for name in ("pipe", "device"):
        with pytest.raises(UserError, match=f"{name} is a pipe or a device, which a file would replace; name another"):
            files.write_text(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "pipe"]
    assert (tmp_path / "device").is_symlink()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which no file can be made")  # noqa: PTH112
def test_a_lock_that_cannot_be_made_is_not_taken_for_one_that_is_held():
    with pytest.raises(UserError, match="cannot write /proc: "), files.alone(Path("/proc/.xrvlm.lock"), "it is busy"):
        pass
    with pytest.raises(UserError, match="cannot write /proc: "), files.alone(Path("/proc/.xrvlm.lock")):
        pass
