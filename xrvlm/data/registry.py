"""The data sets by name. A file conf/data/<name>.yaml registers a loader (`_target_`) and its options."""

from functools import partial
from typing import Any

from xrvlm.data.dataset import Dataset
from xrvlm.errors import UserError, check_options, imported, option, unknown
from xrvlm.files import shipped, shipped_options

GROUP, TARGET, REQUIRED = "data", "_target_", "???"
# {dotted path of a loader in saved runs of earlier versions: its name}; never imported
FORMER = {
    "xrvlm.data_folder.image_folder": "folder",
    "xrvlm.data_table.table": "table",
    "xrvlm.data_hub.hub_dataset": "hub",
    "xrvlm.demo.load_world": "drawn_birds",
    "xrvlm.datasets.aircraft.fgvc_aircraft": "aircraft",
    "xrvlm.datasets.caltech101.caltech_101": "caltech101",
    "xrvlm.datasets.cars.stanford_cars": "cars",
    "xrvlm.datasets.cub.cub_200_2011": "cub",
    "xrvlm.datasets.dogs.stanford_dogs": "dogs",
    "xrvlm.datasets.dtd.describable_textures": "dtd",
    "xrvlm.datasets.eurosat.euro_sat": "eurosat",
    "xrvlm.datasets.flowers102.oxford_flowers": "flowers102",
    "xrvlm.datasets.food101.food_101": "food101",
    "xrvlm.datasets.imagenet.imagenet_1k": "imagenet",
    "xrvlm.datasets.imagenet_a.imagenet_a": "imagenet_a",
    "xrvlm.datasets.imagenet_r.imagenet_r": "imagenet_r",
    "xrvlm.datasets.imagenet_sketch.imagenet_sketch": "imagenet_sketch",
    "xrvlm.datasets.imagenet_v2.imagenet_v2": "imagenet_v2",
    "xrvlm.datasets.nabirds.nabirds_v1": "nabirds",
    "xrvlm.datasets.oxford_pets.oxford_iiit_pets": "oxford_pets",
    "xrvlm.datasets.sun397.sun_397": "sun397",
    "xrvlm.datasets.ucf101.ucf_101": "ucf101",
}


def load_dataset(name: str, /, **options: Any) -> Dataset:
    """Load a data set by the registry name of its loader, as `load_dataset("cub", root="CUB_200_2011")`.

    A data set loads again by `load_dataset(dataset.loader["name"], **dataset.loader["options"])`.

    Args:
        name: "folder", "table", "hub", "drawn_birds", "cub" ...
        options: of the loader, `name` for the data set included; those not given are as in conf/data/<name>.yaml.

    Raises:
        UserError: no loader is registered as `name`, an option is unknown or missing, or the data set cannot be loaded.
    """
    return find(name, **options)()


def find(name: str, /, **options: Any) -> partial[Dataset]:
    """The loader registered as `name`, to be called, with its options and `options`. UserError: see `load_dataset`."""
    if name not in shipped(GROUP):
        raise unknown("data set", name, shipped(GROUP))
    defaults = shipped_options(GROUP, name)
    loader = imported(defaults[TARGET], "loader")
    check_options(loader, options, GROUP, f"option of the data set {name!r}")
    given = {key: value for key, value in (defaults | options).items() if not key.startswith("_")}
    if missing := next((key for key, value in given.items() if value == REQUIRED), None):
        raise UserError(f"{option(f'{GROUP}.{missing}')} is not given; the data set {name!r} needs it")
    return partial(loader, **given)
