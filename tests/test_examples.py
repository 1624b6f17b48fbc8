"""The examples run, on a few photos."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from photos import photo_folder
from slow import SLOW

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def photos(tmp_path, at_home, monkeypatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    return photo_folder(tmp_path / "photos")


def output(command, folder: Path) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quick_start(photos, tmp_path):
    said = output([EXAMPLES / "quick_start.py", photos, "--shots", "2"], tmp_path)
    assert "XR-VLM+ with 2 shots" in said
    assert (tmp_path / "model.safetensors").exists()


@SLOW
def test_a_method_of_ones_own_from_python(photos, tmp_path):
    assert output([EXAMPLES / "own_method.py", photos], tmp_path).count("weight") == 2


@SLOW
def test_a_method_of_ones_own_by_its_yaml(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
    said = output(["-m", "xrvlm", "adapt", "--config-dir", EXAMPLES / "conf", "method=prototypes", "backbone=tiny",
                   f"data.root={photos}", "shots=2", "method.weight=2", "workers=0"], tmp_path)
    assert "prototypes: top-1" in said


@SLOW
def test_the_notebook(photos, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the packages of xrvlm[dev]")
    nbclient = pytest.importorskip("nbclient", reason="needs the packages of xrvlm[dev]")
    monkeypatch.setenv("PHOTOS", str(photos))
    monkeypatch.setenv("SHOTS", "2")
    notebook = nbformat.read(EXAMPLES / "own_photos.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are left out of the file"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "with 2 shots; everything is in" in said
