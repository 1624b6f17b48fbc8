"""How many files a reader must open to follow one command, and one image, through the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import files_of_image, shown
from photos import photo_folder

from xrvlm.cli.main import main
from xrvlm.features.bank import Store
from xrvlm.views import decode

ADAPT = ("adapt", "data.root=photos", "method=xr_vlm", "backbone=tiny", "device=cpu", "workers=0", "shots=2",
         "recipe.epochs=1", "features.views=1", "runs=runs", "method.image_parts=2", "method.text_parts=2",
         "method.context_length=2", "method.hidden=8")
# libraries are imported before the profile function, under which it takes long
RUN = "import json, sys, paths, hydra, open_clip; from xrvlm.cli.main import main; failed = []; " \
      "files = paths.files_run(lambda: failed.append(main(sys.argv[2:]))); assert failed == [0]; " \
      "open(sys.argv[1], 'w').write(json.dumps({file: sorted(names) for file, names in files.items()}))"


@pytest.fixture
def photos(at_home, tmp_path):
    return photo_folder(tmp_path / "photos", images=4)


def files_of_command(*arguments: str) -> dict[str, set[str]]:
    """In a new process: nothing that another test left in a cache can hide a call."""
    subprocess.run([sys.executable, "-c", RUN, "files.json", *arguments], check=True, capture_output=True,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"})
    return {file: set(names) for file, names in json.loads(Path("files.json").read_text()).items()}


def test_adapt_and_predict_run_through_few_files(photos):
    adapt = files_of_command(*ADAPT)
    run = next(Path("runs").glob("xr_vlm-*"))
    predict = files_of_command("predict", f"run={run}", f"images={next(photos.rglob('*.png'))}", "device=cpu")
    too_many = [f"{name}: {shown(files)}" for name, files, most in (("adapt", adapt, 25), ("predict", predict, 18))
                if len(files) > most]
    assert not too_many, "\n".join(too_many)
    assert {"cli/main.py", "training/fit.py", "features/bank.py"} <= set(adapt)      # the count sees what runs
    assert {"cli/main.py", "experiments/predict.py", "views.py"} <= set(predict)


def test_an_image_goes_through_few_files_from_reading_to_the_loss(photos):
    # from the decoded image on: hashes of a file's bytes are no step on its way
    sources = {decode.__code__, Store.read.__code__}
    failed = []
    files = files_of_image(lambda: failed.append(main(list(ADAPT))), sources)
    assert failed == [0]
    assert len(files) <= 8, shown(files)
    assert {"views.py", "backbones/tower.py", "features/bank.py", "features/source.py"} <= set(files)
