"""What each command imports. Modules are counted; for seconds see benchmarks/start_up.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from photos import photo_folder

from xrvlm.cli.main import main

HEAVY = {"torch", "torchvision", "numpy", "hydra", "omegaconf", "open_clip", "transformers"}
# behind xrvlm, which mends a torchvision that does not fit torch
BASELINE = "import torch, xrvlm, open_clip"
NOT_TO_PREDICT = {"matplotlib", "sklearn", "scipy", "datasets", "jinja2", "transformers"}


def modules_after(code: str, *arguments: str) -> set[str]:
    """The names in `sys.modules` of a new process that has run `code`."""
    report = "import sys, json; open('modules.json', 'w').write(json.dumps(sorted(sys.modules)))"
    code = f"import atexit; atexit.register(lambda: exec({report!r})); {code}"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    return set(json.loads(Path("modules.json").read_text()))


def of(libraries: set[str], modules: set[str]) -> set[str]:
    """Those of `modules` that belong to `libraries`."""
    return {name for name in modules if name.split(".")[0] in libraries}


def libraries(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


@pytest.fixture(autouse=True)
def _at_home(at_home):
    pass


def test_the_package_alone_imports_no_library():
    assert not libraries(of(HEAVY, modules_after("import xrvlm")))


def test_open_clip_and_torchvision_can_be_imported_after_the_package():
    code = "import xrvlm, torch; from importlib.util import find_spec; find_spec('torchvision'); import open_clip; "
    assert "open_clip.model" in modules_after(code + "import torchvision; print(torchvision.__version__)")


def test_help_imports_no_library():
    code = "import sys; sys.argv = ['xrvlm', '--help']; from xrvlm.cli.main import main; main()"
    assert not libraries(of({"torch", "hydra", "numpy", "omegaconf"}, modules_after(code)))


def test_a_method_imports_no_library_of_another():
    found = modules_after("import xrvlm.methods.coop, xrvlm.methods.linear_probe, xrvlm.methods.xr_vlm.xr_vlm_plus")
    assert "xrvlm.methods.coop" in found
    assert not libraries(of({"sklearn", "matplotlib", "scipy", "open_clip", "transformers", "hydra"}, found))


def test_predict_imports_little_beyond_torch_and_open_clip(tmp_path):
    photos = photo_folder(tmp_path / "photos", images=4)
    assert main(["adapt", f"data.root={photos}", "backbone=tiny", "device=cpu", "workers=0", "shots=2",
                 "recipe.epochs=1", "features.views=0", "runs=runs", "method.image_parts=2", "method.text_parts=2",
                 "method.context_length=2", "method.hidden=8"]) == 0
    run, photo = next(Path("runs").glob("xr_vlm-*")), next(photos.rglob("*.png"))
    code = "import sys; from xrvlm.cli.main import main; assert main(sys.argv[1:]) == 0"
    found = modules_after(code, "predict", f"run={run}", f"images={photo}", "device=cpu")
    assert "xrvlm.experiments.predict" in found
    assert not sorted(of(NOT_TO_PREDICT, found - modules_after(BASELINE)))
