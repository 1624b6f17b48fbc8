"""Every YAML composes, and what it says is what its constructor takes, with the same defaults."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from towers import tiny_vit

from xrvlm.cli.main import COMMANDS, config_name
from xrvlm.cli.options import check_options
from xrvlm.methods.base import ADAMW, FAST, Method
from xrvlm.text.class_text import class_text

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("backbone", "data", "method", "recipe", "features")
FILES = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml"))


def group_and_name(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.fixture(autouse=True)
def hydra_is_ready():
    with initialize_config_module("xrvlm.conf", version_base="1.3"):
        yield


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_a_configuration(command):
    assert compose(config_name(command)).device == "auto"


@pytest.mark.parametrize("path", FILES, ids=group_and_name)
def test_every_yaml_binds_to_its_signature(path):
    overrides = [group_and_name(path)]
    if path.parent.name == "method":
        overrides.append(f"recipe={path.stem}" if (CONF / "recipe" / path.name).exists() else "recipe=xr_vlm")
    config = compose("adapt", overrides)[path.parent.name]
    given = {key: value for key, value in OmegaConf.to_container(config).items() if not key.startswith("_")}
    for key in [key for key, value in given.items() if value == "???"]:
        given[key] = config[key] = "x"
    made = instantiate(config, _partial_=True, _convert_="all")
    assert isinstance(made, partial)
    check_options(made.func, made.keywords, path.parent.name)
    expected = {name: parameter.default for name, parameter in inspect.signature(made.func).parameters.items()
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)}
    for runtime in ("clip", "classes", "device", "precision", "allow_random"):
        expected.pop(runtime, None)
    if path.parent.name in ("method", "features", "data") or (path.parent.name == "recipe" and given["epochs"]):
        assert set(given) == set(expected), "a YAML names every option"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "method"], ids=group_and_name)
def test_a_method_repeats_its_defaults_and_its_recipe(path):
    config = compose("adapt", [f"method={path.stem}"])
    made = instantiate(config.method, _convert_="all")
    assert issubclass(made.func, Method)
    defaults = {name: parameter.default for name, parameter in inspect.signature(made.func).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY}
    module = made.func.__module__.rpartition(".")[2]
    changed = {name for name, value in made.keywords.items() if value != defaults[name]}
    assert bool(changed) == (path.stem != module), "a YAML that is called as its module repeats the defaults"
    assert instantiate(config.recipe, _convert_="all")() == made(tiny_vit(), class_text(["jay", "kite"])).recipe


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes(path):
    name = path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    OmegaConf.to_container(compose("adapt", [f"experiment={name}"]), resolve=True)


def test_the_cached_defaults_are_those_of_the_class():
    from xrvlm.features.source import FeatureSettings

    assert instantiate(compose("adapt").features, _convert_="all")() == FeatureSettings()


def test_no_yaml_stands_unread():
    composed = {path.parent.name for path in CONF.rglob("*.yaml")} - {"conf"}
    assert composed == {*GROUPS, "experiment", "job_logging", "hydra_logging"}


@pytest.mark.parametrize("recipe", [FAST, ADAMW], ids=lambda recipe: recipe.name)
def test_the_recipes_for_any_method_are_those_of_the_configuration(recipe):
    assert instantiate(OmegaConf.load(CONF / "recipe" / f"{recipe.name}.yaml"), _convert_="all")() == recipe
