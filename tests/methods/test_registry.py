import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from towers import tiny_vit

from xrvlm.errors import UserError
from xrvlm.inference.classifier import MethodHeader
from xrvlm.methods import CoOp, LinearProbe, TipAdapter, registry
from xrvlm.methods.base import Method
from xrvlm.text.class_text import class_text

ROOT = Path(__file__).parents[2]
CLASSES = class_text(["jay", "kite"])
NEW_METHOD = '''"""Steep (ours): zero-shot at a steeper scale."""

from xrvlm.methods.zero_shot import ZeroShot


class Steep(ZeroShot):
    label = "Steep"

    def __init__(self, clip, classes, *, factor: float = 2.0):
        super().__init__(clip, classes)
        self.logit_scale = factor * self.logit_scale
'''


@pytest.fixture
def refreshed():
    """The registry is read anew in the test, and again afterwards."""
    registry.targets.cache_clear()
    yield
    registry.targets.cache_clear()


def test_every_name_leads_to_its_class_and_back():
    for name in registry.targets():
        method = registry.class_called(name)
        assert issubclass(method, Method)
        assert registry.class_called(registry.name_of(method)) is method
    assert registry.name_of(TipAdapter) == "tip_adapter", "not tip_adapter_f"


def test_a_method_is_found_with_the_options_of_its_configuration():
    made = registry.find("tip_adapter_f", alpha=2.0)
    assert made.func is TipAdapter
    assert made.keywords == {"alpha": 2.0, "beta": 5.5, "fit_prior": False, "inputs": "pooled", "scaling": "none",
                             "trainable": True}
    with pytest.raises(UserError, match="unknown method 'coopp'; did you mean 'coop'.*available: .*coop.*"):
        registry.find("coopp")
    with pytest.raises(UserError, match="unknown option of coop 'contexts'; did you mean 'context'"):
        registry.find("coop", contexts="shared")


def test_the_paths_of_former_runs_are_looked_up_and_never_imported(monkeypatch):
    methods = {registry.class_called(name) for name in registry.targets()}
    assert set(registry.FORMER.values()) <= {registry.name_of(method) for method in methods}
    assert registry.class_called("xrvlm.methods.coop.CoOp") is CoOp
    assert registry.class_called("xrvlm.methods.xr_vlm.XRVLM").__module__ == "xrvlm.methods.xr_vlm.xr_vlm"
    monkeypatch.setattr("xrvlm.errors.import_module", lambda name: pytest.fail(f"{name} was imported"))
    for path in ("xrvlm.methods.gone.Gone", "xrvlm.cli.main.main", "gone"):
        with pytest.raises(UserError, match=f"unknown method '{path}'; available: "):
            registry.class_called(path)


def test_what_is_no_method_is_told(monkeypatch):
    monkeypatch.setitem(registry.targets(), "odd", "pathlib.Path")
    with pytest.raises(UserError, match="odd is not a method of xrvlm"):
        registry.class_called("odd")


def test_a_method_without_what_every_method_has_is_told_before_it_is_made():
    class Half(Method):
        def logits(self, x, class_features):
            return x.pooled

    with pytest.raises(UserError, match="Half lacks class_features: every method has it"):
        MethodHeader.of(Half)


def test_nothing_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("trap.Method", "pathlib.Path", "os.system"):
        with pytest.raises(UserError, match=f"the method {path}, which is not registered, and nothing is imported"):
            registry.class_called(path)
    mine = type("Mine", (CoOp,), {"__module__": "somewhere"})     # what the user has imported is known
    assert registry.class_called("somewhere.Mine") is mine


def test_another_package_registers_a_method_by_an_entry_point(tmp_path, monkeypatch, refreshed):
    (tmp_path / "steep_package").mkdir()
    (tmp_path / "steep_package" / "inner.py").write_text(NEW_METHOD)
    (tmp_path / "steep_package" / "__init__.py").write_text("from steep_package.inner import Steep\n")
    info = tmp_path / "steep-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steep\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xrvlm.methods]\nsteep = steep_package:Steep\n"
                                           "coop = steep_package:Steep\nbroken = steep_nowhere:Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.targets()["steep"] == "steep_package.Steep"
    assert registry.targets()["coop"] == "xrvlm.methods.coop.CoOp", "no package takes over a name of ours"
    made = registry.find("steep", factor=3.0)
    assert made.func is import_module("steep_package.inner").Steep
    assert registry.name_of(made.func) == "steep"
    assert made(tiny_vit(), CLASSES).label == "Steep"
    with pytest.raises(UserError, match="cannot find the method steep_nowhere.Broken"):
        registry.find("broken")
    with pytest.raises(UserError, match="unknown method 'steeep'; did you mean 'steep'.*available: .*steep"):
        registry.find("steeep")
    with pytest.raises(UserError, match="methods that score new classes: .*steep; "):
        LinearProbe(tiny_vit(), CLASSES).check_open()


def test_a_method_is_one_file_and_one_yaml(tmp_path):
    """Nothing else is touched: in a copy of the package, the help, the errors and the contract tests know it."""
    leave = ignore_patterns("__pycache__")
    copytree(ROOT / "xrvlm", tmp_path / "xrvlm", ignore=leave)
    copytree(ROOT / "conf", tmp_path / "xrvlm" / "conf", ignore=leave)
    copytree(ROOT / "prompts", tmp_path / "xrvlm" / "prompts", ignore=leave)
    (tmp_path / "tests" / "methods").mkdir(parents=True)
    for name in ("conftest.py", "towers.py", "zoo.py", "methods/test_contract.py"):
        (tmp_path / "tests" / name).write_text((ROOT / "tests" / name).read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "xrvlm" / "methods" / "steep.py").write_text(NEW_METHOD)
    (tmp_path / "xrvlm" / "conf" / "method" / "steep.yaml").write_text(
        "_target_: xrvlm.methods.steep.Steep\n_partial_: true\nfactor: 2.0\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", "from xrvlm.methods import registry, Steep\n"
                           "assert registry.find('steep').keywords == {'factor': 2.0}\n"
                           "assert registry.name_of(Steep) == 'steep' in registry.open_methods()\n"
                           "registry.find('nothing')"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.search("unknown method 'nothing'; available: .*steep", told.stderr), told.stderr
    told = subprocess.run([sys.executable, "-m", "xrvlm", "adapt", "--help"], cwd=tmp_path, env=environment, check=True,
                          capture_output=True, text=True)
    assert re.search("method: .* steep,", told.stdout)
    tested = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "steep", "-vv",
                             "tests/methods/test_contract.py"], cwd=tmp_path, env=environment, capture_output=True,
                            text=True)
    assert tested.returncode == 0, tested.stdout
    passed = re.findall(r"::(\w+)\[steep\] PASSED", tested.stdout)
    assert {"test_evaluation_does_not_depend_on_the_batch", "test_saved_and_loaded_it_gives_the_same_probabilities",
            "test_an_open_method_scores_new_classes_and_stays_as_it_is"} <= set(passed), tested.stdout


@pytest.mark.parametrize("name", registry.targets())
def test_a_module_says_in_its_first_line_what_paper_it_is(name):
    """The table of the methods in the docs is made of these lines."""
    first = (import_module(registry.class_called(name).__module__).__doc__ or "").splitlines()[0]
    assert re.fullmatch(r"[^()]+ \((ours|[^()]+, [^(),]+ \d{4}, arXiv:\d{4}\.\d{5})\): .+\.", first), first
