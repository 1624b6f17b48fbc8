"""The image files that are labelled: those that are named, and those below a folder."""

import pytest

from xrvlm.errors import UserError
from xrvlm.experiments.predict import image_files


def test_image_files(tmp_path):
    root = tmp_path / "some photos"
    (root / "b").mkdir(parents=True)
    for name in ("b/2.jpg", "1.PNG", ".hidden.jpg", "notes.txt"):
        (root / name).write_text("x")
    assert image_files(str(root)) == (root.resolve(), ("1.PNG", "b/2.jpg"))
    assert image_files(root / "b" / "2.jpg") == (root.resolve() / "b", ("2.jpg",))
    with pytest.raises(UserError, match=r"there is no image or folder .*nowhere; check the path"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"found no image below .*texts, only 1 \.txt files; it must hold"):
        image_files(tmp_path / "texts")
