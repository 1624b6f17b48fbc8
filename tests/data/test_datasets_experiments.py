"""conf/experiment/<data set>_<tower>.yaml: each is the paper's run, whatever the number of shots."""

from itertools import product

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from xrvlm.cli.runs import recipe_of
from xrvlm.methods import XRVLM

DATA = {"cub": "cub_200_2011", "cars": "stanford_cars", "dogs": "stanford_dogs", "aircraft": "fgvc_aircraft",
        "nabirds": "nabirds_v1"}
TOWERS = {"rn50": "RN50-quickgelu", "vit_b16": "ViT-B-16-quickgelu"}


@pytest.fixture(autouse=True)
def hydra_is_ready():
    with initialize_config_module("xrvlm.conf", version_base="1.3"):
        yield


@pytest.mark.parametrize(("data", "tower"), list(product(DATA, TOWERS)))
@pytest.mark.parametrize("shots", [1, "all"])
def test_an_experiment_is_the_papers_run(data, tower, shots):
    plain = compose("adapt")
    config = compose("adapt", [f"experiment={data}_{tower}", "data.root=/somewhere", f"shots={shots}"])
    assert set(config) == set(plain), "an experiment adds no key of its own"
    assert config.data._target_.rpartition(".")[2] == DATA[data]
    assert (config.data.root, config.shots) == ("/somewhere", shots)
    assert (config.backbone.model, config.backbone.pretrained) == (TOWERS[tower], "openai")
    assert (config.backbone.resize_to, config.backbone.interpolation) == (256, "bilinear")
    features = instantiate(config.features)()
    assert (features.mode, features.crop_scale, features.flip) == ("online", (0.08, 1.0), True)
    method = instantiate(config.method)
    assert (method.func, method.keywords["head"], method.keywords["context_length"]) == (XRVLM, "cross", 16)
    assert (method.keywords["image_parts"], method.keywords["text_parts"]) == (4, 4)
    assert recipe_of(config.recipe) == {"name": "own"}, "the method's own"
    recipe = XRVLM.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.warmup_epochs) == (100, 64, 0.002, 5)
    assert {key: config[key] for key in ("text", "selection", "seed", "val")} == {
        key: plain[key] for key in ("text", "selection", "seed", "val")}


def test_what_is_typed_comes_before_what_an_experiment_says():
    config = compose("adapt", ["experiment=cub_vit_b16", "data.root=x", "backbone=tiny", "method=coop",
                               "features=cached", "backbone.resize_to=64", "runs=mine"])
    assert (config.backbone.resize_to, config.features.mode, config.recipe.name) == (64, "cached", "own")
    assert config.runs == "mine"
