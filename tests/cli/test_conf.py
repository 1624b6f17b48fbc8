"""Every YAML composes, and what it says is what its constructor takes, with the same defaults."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from xrvlm.cli.commands import COMMANDS
from xrvlm.cli.main import config_name
from xrvlm.cli.runs import recipe_of
from xrvlm.errors import check_options
from xrvlm.methods.base import OWN, Method, Recipe, chosen_recipe, recipe_named

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("backbone", "second", "data", "method", "recipe", "features")
OWN_RECIPE = CONF / "recipe" / f"{OWN}.yaml"
FILES = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml") if path != OWN_RECIPE)
RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


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
    config = compose("adapt", [group_and_name(path)])[path.parent.name]
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
    if path.parent.name in ("method", "features", "data", "recipe"):
        assert set(given) == set(expected), "a YAML names every option"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "method"], ids=group_and_name)
def test_a_method_repeats_its_defaults(path):
    config = compose("adapt", [f"method={path.stem}"])
    made = instantiate(config.method, _convert_="all")
    assert issubclass(made.func, Method)
    defaults = {name: parameter.default for name, parameter in inspect.signature(made.func).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY}
    module = made.func.__module__.rpartition(".")[2]
    changed = {name for name, value in made.keywords.items() if value != defaults[name]}
    assert bool(changed) == (path.stem != module), "a YAML that is called as its module repeats the defaults"


def chosen(own, overrides):
    """The recipe by which a method with the recipe `own` is trained."""
    wanted = recipe_of(compose("adapt", overrides).recipe)
    changes = dict(wanted) if isinstance(wanted, dict) else {}
    return chosen_recipe(own, changes.pop("name", None) if changes else wanted, changes)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "method"], ids=group_and_name)
def test_a_method_is_trained_by_the_recipe_of_its_class(path):
    own = Recipe("its own", epochs=9)
    assert chosen(own, [f"method={path.stem}"]) is own
    assert chosen(own, [f"method={path.stem}", "recipe.epochs=3"]) == own.changed(epochs=3)


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


def test_the_own_recipe_changes_nothing_and_names_every_option():
    values = OmegaConf.to_container(OmegaConf.load(OWN_RECIPE))
    assert values.pop("name") == OWN
    assert set(values) == set(inspect.signature(Recipe).parameters) - {"name"}
    assert set(values.values()) == {None}


def test_a_recipe_for_any_method_is_called_as_its_file():
    assert RECIPES == ["adamw", "fast", "own"]
    for name in ("adamw", "fast"):
        assert chosen(None, [f"recipe={name}"]) == recipe_named(name)
        assert recipe_named(name).name == name
    changed = chosen(None, ["recipe=fast", "recipe.epochs=7", "recipe.soup=[0.5,1]"])
    assert (changed.name, changed.epochs, changed.soup, changed.text_every) == ("fast (changed)", 7, (0.5, 1.0), 10)


def test_a_recipe_of_a_users_own_is_read(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("_target_: xrvlm.methods.base.Recipe\n_partial_: true\n"
                                                   "name: mine\nepochs: 4\n")
    given = [f"hydra.searchpath=[file://{tmp_path}]", "recipe=mine", "recipe.epochs=5"]
    assert chosen(None, given) == Recipe("mine", epochs=5)
