"""Imports point down: a module may import what stands in its own layer or below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xrvlm"
LAYERS = (
    ("errors",),
    ("files",),
    ("distributed",),
    ("backbones", "evaluation"),
    ("views",),
    ("text",),
    ("data",),
    ("features",),
    ("methods",),
    ("training",),
    ("inference",),
    ("experiments",),
    ("reporting",),
    ("demo",),
    ("photo",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
ONLY_IMPORTERS = {
    "hydra": {"cli"}, "omegaconf": {"cli"}, "open_clip": {"backbones", "demo", "photo"}, "timm": {"backbones", "photo"},
    "transformers": {"backbones"}, "matplotlib": {"reporting"}, "jinja2": {"reporting"}, "gradio": {"reporting"},
    "sklearn": {"methods", "demo", "photo"}, "datasets": {"data"}, "scipy": {"data"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The dotted names that `path` imports anywhere, `from xrvlm import x` as `xrvlm.x`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inner = node.module == "xrvlm"
            names |= {f"xrvlm.{alias.name}" for alias in node.names} if inner else {str(node.module)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_up(path):
    assert unit(path) in HEIGHT, f"{path} has no layer: give it one in {__file__}"
    for name in imported(path):
        if name.startswith("xrvlm."):
            below = name.split(".")[1]
            assert HEIGHT[below] <= HEIGHT[unit(path)], f"{path} imports {name}, which stands above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_some_libraries_have_one_importer(path):
    for name in imported(path):
        library = name.split(".")[0]
        assert unit(path) in ONLY_IMPORTERS.get(library, {unit(path)}), f"{path} imports {library}"


def test_every_layer_exists():
    assert {unit(path) for path in MODULES} == set(HEIGHT)


def test_the_page_on_architecture_lists_every_package():
    page = (PACKAGE.parent / "docs" / "design" / "architecture.md").read_text(encoding="utf-8")
    missing = [name for name in HEIGHT if (PACKAGE / name).is_dir() and f"`{name}`" not in page]
    assert not missing
