"""The sizes that keep the tree readable: entries of a folder, lines of a file and of a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xrvlm"
ZOOS = {"methods", "data/datasets"}      # one module for each method, and for each data set
MOST_ENTRIES, MOST_MODULES, MOST_FILE_LINES, MOST_FUNCTION_LINES = 20, 12, 300, 40
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})
FILES = sorted(path for folder in (PACKAGE, ROOT / "benchmarks", ROOT / "examples") for path in folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_package_has_few_entries():
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    assert len(entries) <= MOST_ENTRIES, entries


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_has_few_modules(folder):
    if folder.relative_to(PACKAGE).as_posix() in ZOOS:
        return
    modules = sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
    assert len(modules) <= MOST_MODULES, modules


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {f"{node.name} at line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: count for name, count in lines.items() if count > MOST_FUNCTION_LINES}
