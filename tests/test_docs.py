"""What README and docs say can be done: commands compose, Python runs, names and links exist, the site builds."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from photos import photo_folder, write_photo

from xrvlm.cli.commands import COMMANDS
from xrvlm.cli.main import POSITIONAL, config_name, quote

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")] + sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# what stands for something of the reader's, by a value that composes
PLACEHOLDERS = {"DIR": "/photos", "RUN": "/runs/one", "PHOTO": "/photos/one.jpg", "CLASS": "jay", "HOST": "localhost",
                "FILE": "file"}
PACKAGES = ("xrvlm", "tests", "docs", "conf", "prompts", "examples", "benchmarks")


def blocks(path: Path, *languages: str) -> list[str]:
    return [found[3] for found in FENCE.finditer(path.read_text(encoding="utf-8")) if found[2] in languages]


def commands(path: Path) -> list[list[str]]:
    """The words of each `xrvlm` command in the fenced blocks of a page, without comments."""
    found = []
    typed = [*blocks(path, "sh"), *("\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
                                   for block in blocks(path, "console"))]
    for block in typed:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                words.pop(0)                     # PYTHONPATH=.
            if words[:1] == ["xrvlm"]:
                found.append(words[1:])
    return found


COMMAND_LINES = sorted({" ".join(map(shlex.quote, words)) for path in PAGES for words in commands(path)})


def overrides_of(command: str, words: list[str]) -> list[str]:
    """Short forms as keys, placeholders as values."""
    keys, found = list(POSITIONAL.get(command, [])), []
    for word in words:
        if "=" not in word and not word.startswith("-"):
            assert keys, f"{command} takes no further word without a key: {word!r}"
            word = f"{keys.pop(0) if len(keys) > 1 else keys[0]}={word}"
        key, equals, value = word.partition("=")
        for name, stand_in in PLACEHOLDERS.items():
            value = re.sub(rf"\b{name}\b", stand_in, value)
        found.append(key + equals + value)
    return found


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, the values of one key at a time (the first of all others)."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [[None] if not one.is_sweep_override() else [str(one.value().start)] if one.is_interval_sweep()
               else list(one.sweep_string_iterator()) for one in parsed]
    found = []
    for index, values in enumerate(choices):
        for value in values:
            chosen = [value if other == index else options[0] for other, options in enumerate(choices)]
            found.append([text if part is None else f"{one.key_or_group}={part}"
                          for text, one, part in zip(overrides, parsed, chosen, strict=True)])
    return found or [[]]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_compose(line):
    words = shlex.split(line)
    command = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert command in COMMANDS
    words = words[len(command.split()):]
    sweep = words[:1] == ["-m"]
    if sweep:
        words.pop(0)
    if "--config-dir" in words:
        return                                   # tests/test_examples.py runs it
    overrides = [quote(word) for word in overrides_of(command, words)]
    with initialize_config_module("xrvlm.conf", version_base="1.3"):
        for job in jobs(overrides) if sweep else [overrides]:
            compose(config_name(command), job)


def test_there_are_commands_to_compose():
    assert len(COMMAND_LINES) > 40
    assert {line.split()[0] for line in COMMAND_LINES} >= {"adapt", "zeroshot", "eval", "predict", "explain", "export",
                                                         "compare", "report", "data", "demo"}


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=lambda path: path.stem)
def test_python_compiles_and_imports_what_exists(path):
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("xrvlm"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xrvlm":
                assert hasattr(importlib.import_module("xrvlm"), node.attr), f"xrvlm.{node.attr}"


def test_the_python_of_the_readme_runs(at_home, tmp_path, capsys):
    photo_folder(tmp_path / "birds", images=4)
    write_photo(tmp_path / "robin.jpg", colour=0, key=1)
    (block,) = blocks(ROOT / "README.md", "python")
    small = block.replace("xrvlm.load_world()", 'xrvlm.image_folder("~/birds")').replace("shots=16", "shots=2")
    assert small.count("image_folder(\"~/birds\")") == 2, "the block loads the data once, and shows how to load others"
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "birds.safetensors").exists()
    assert "runs/xr_vlm_plus-" in capsys.readouterr().out


@pytest.fixture(scope="module")
def generate():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))


def test_the_table_of_methods_in_the_readme_is_that_of_the_registry(generate):
    from xrvlm.methods import registry

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generate.update_readme(readme) == readme, "run `python docs/generate.py`"
    assert all(f"`{name}`" in readme for name in registry.targets())


SHARED = ("device", "precision", "workers", "recipe", "second_look")     # told once for all commands that have them


def test_every_key_of_a_command_is_in_the_reference(generate):
    page = generate.cli_page()
    with initialize_config_module("xrvlm.conf", version_base="1.3"):
        for command in COMMANDS:
            assert f"## xrvlm {command}\n" in page
            own = page.split(f"## xrvlm {command}\n")[1].split("\n## ")[0]
            for key, value in OmegaConf.to_container(compose(config_name(command))).items():
                if not isinstance(value, dict) and key not in SHARED:
                    assert f"| `{key}` |" in own, f"{command}: {key}"


def test_every_public_name_is_in_the_reference(generate):
    import xrvlm

    pages = "".join(generate.api_pages().values())
    assert [name for name in xrvlm.__all__ if f'heading: "xrvlm.{name}"' not in pages] == []


def test_comments_of_yaml_reach_their_keys(generate):
    source = ("# head\nruns: runs   # where\n# before\nbaseline: null\ntext:   # all\n  parts: null # a\n"
              "              # b\n")
    found = generate._comments(source)
    assert found == {"runs": "where", "baseline": "before", "text": "all", "text.parts": "a b"}


# names on the page of the architecture ------------------------------------------------------------------------------

ARCHITECTURE = DOCS / "design" / "architecture.md"
NAMES = sorted({name for name in re.findall(r"`([^`\s=]+)`", ARCHITECTURE.read_text(encoding="utf-8"))
                if re.fullmatch(r"[\w./]+", name) and re.search(r"[./]|[A-Z]\w+", name)})


@pytest.fixture(scope="module")
def classes() -> dict[str, str]:
    """{class: its module} of the whole package."""
    found = {}
    for path in (ROOT / "xrvlm").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found |= {node.name: module for node in ast.parse(path.read_text(encoding="utf-8")).body
                  if isinstance(node, ast.ClassDef)}
    return found


def exists(name: str, classes: dict[str, str]) -> bool:
    """A path from the root or from xrvlm/, or a dotted name in the package or of a class of it."""
    if "/" in name or name.endswith((".md", ".py", ".jsonl")):
        return name == "results.jsonl" or any((base / name).exists() for base in (ROOT, ROOT / "xrvlm"))
    first, *rest = name.split(".")
    if first in classes:
        found = getattr(importlib.import_module(classes[first]), first)
    else:
        found = importlib.import_module("xrvlm")
        rest = [first, *rest]
    for word in rest:
        if not hasattr(found, word):
            if not hasattr(found, "__path__"):
                return word in getattr(found, "__annotations__", {})
            try:
                importlib.import_module(f"{found.__name__}.{word}")
            except ModuleNotFoundError:
                return False
        found = getattr(found, word)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_the_architecture_names_what_exists(name, classes):
    assert exists(name, classes), f"{name}, on {ARCHITECTURE.name}, is not in the tree"


def test_the_check_of_names_can_fail(classes):
    assert len(NAMES) > 30
    assert not exists("views.NoSuchThing", classes)
    assert not exists("Method.no_such_thing", classes)
    assert not exists("methods/no_such_file.py", classes)


@pytest.mark.parametrize("cited", sorted(set(re.findall(
    r"`(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs/design/reports.md").read_text(encoding="utf-8")))), ids="::".join)
def test_the_tests_of_the_reports_exist(cited):
    file, name = cited
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_paths_on_the_pages_exist():
    """`xrvlm/...py` and its like, on every page and in CONTRIBUTING."""
    missing = []
    for path in PAGES:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for name in re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w./]+)`", text):
            if "NAME" not in name and not any((base / name).exists() for base in (ROOT, path.parent)):
                missing.append(f"{path.name}: {name}")
    assert missing == []


# links --------------------------------------------------------------------------------------------------------------

def test_links_between_the_files_resolve():
    """As the files are in the repository, for readers on a code host; generated pages are only in the site."""
    missing = []
    for path in PAGES:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            link = "".join(target).partition("#")[0]
            generated = (path.parent / link).resolve().is_relative_to(DOCS / "reference")
            if link and "://" not in link and not generated and not (path.parent / link).exists():
                missing.append(f"{path.relative_to(ROOT)}: {link}")
    assert missing == []
