"""The wheel, installed elsewhere, is all that a user needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the files that git knows, so that nothing untracked slips in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)], cwd=source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> dict[str, str]:
    """The environment in which the wheel comes before this checkout."""
    site = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)])
    return os.environ | {"PYTHONPATH": str(site), "XRVLM_CACHE": str(tmp_path_factory.mktemp("cache")),
                         "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def test_the_wheel_holds_configurations_prompts_and_the_tower(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("conf", "**/*.yaml"), ("prompts", "**/*.txt"), ("prompts", "**/*.json"),
                            ("xrvlm/demo", "*.safetensors"),
                            ("xrvlm", "**/*.py"), ("xrvlm/reporting", "*.html"), ("xrvlm/reporting", "*.json")):
        for path in (ROOT / folder).glob(pattern):
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if folder.startswith("xrvlm") else f"xrvlm/{inside}") in names
    assert not [name for name in names if name.startswith(("tests", "conf/", "prompts/"))]
    assert any(name.endswith("LICENSE") for name in names)


def test_it_runs_from_another_folder(installed, tmp_path):
    where = run([sys.executable, "-c", "import xrvlm; print(xrvlm.__file__)"], env=installed, cwd=tmp_path).stdout
    assert where.startswith(installed["PYTHONPATH"])
    assert "xrvlm adapt DIR" in run(["xrvlm", "--help"], env=installed, cwd=tmp_path).stdout
    done = run(["xrvlm", "demo", "small=true", "device=cpu"], env=installed, cwd=tmp_path)
    lines = (tmp_path / "runs" / "demo" / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["method"] for line in lines} == {"zero_shot", "linear_probe", "xr_vlm_plus", "coop",
                                                             "xr_vlm"}
    report = tmp_path / "runs" / "demo" / "report" / "report.md"
    assert str(report.relative_to(tmp_path)) in done.stdout
    assert (report.parent / "parts.png").exists()
    assert "Where the parts look" in report.with_suffix(".html").read_text(encoding="utf-8")
