"""A second tower and a second look, as a user types them: from adapt to predict, explain and errors."""

import json

import pytest
from command_line import TINY, told
from photos import photo_folder

from xrvlm.cli.main import main

pytestmark = pytest.mark.usefixtures("at_home")
NAMES = ("blue tit", "wren")
SHORT = ("shots=2", "features.views=0", *TINY)


@pytest.fixture
def photos(tmp_path):
    return photo_folder(tmp_path / "birds", images=4, classes=NAMES)


def test_a_run_with_two_towers_opens_by_its_file(photos, tmp_path, capsys):
    assert main(["adapt", str(photos), "method=xr_vlm_plus", "method.image_parts=2", "method.pairs=2", "second=tiny",
                 "second_look=2", "look.where=fixed", *SHORT]) == 0
    (record,) = tmp_path.glob("runs/*/record.json")
    said = json.loads(record.read_text())
    assert said["backbone"] == "tiny + 2 looks (fixed) + tiny"
    photo = next(photos.rglob("*.png"))
    assert main(["predict", "latest", str(photo), "device=cpu"]) == 0
    assert any(name in capsys.readouterr().out for name in NAMES)
    assert main(["explain", "latest", str(photo), "device=cpu", "out=explained"]) == 0
    found, = json.loads((tmp_path / "explained" / "explanations.json").read_text())["images"]
    assert found["windows"] == [[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.5, 0.5]]


def test_slips_name_the_fix(photos, capsys):
    adapt = "adapt", str(photos), *SHORT
    assert "reads nothing of a second tower" in told(capsys, *adapt, "method=coop", "second=tiny")
    assert "add one (second=photo" in told(capsys, *adapt, "method=linear_probe", "method.inputs=second")
    assert "add second_look=3, or leave it out" in told(capsys, *adapt, "method=gda", "look.where=random")
    assert "look.where" in told(capsys, *adapt, "method=gda", "second_look=2", "look.where=center")
    assert "unknown option 'second.trunk'" in told(capsys, *adapt, "method=gda", "second=tiny", "+second.trunk=lite0")
    assert "second_look" in told(capsys, *adapt, "method=gda", "second_look=two")
    assert "is not read with a run" in told(capsys, "predict", "somewhere", str(photos), "second_look=2")
