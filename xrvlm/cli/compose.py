"""From a composed configuration to the objects that it names: tower, data set, method, text, options of a run."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xrvlm.errors import UserError, unknown
from xrvlm.files import folder_of, user_path


def partial_of(config: DictConfig, group: str) -> partial:
    """What a config group's `_target_` names, with the group's values as plain Python, not yet called."""
    from xrvlm.cli.options import check_options

    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    made = instantiate(config, _partial_=True, _convert_="all")
    check_options(made.func, made.keywords, group)
    return made


def make_candidate(words: str) -> Any:
    """`xr_vlm recipe=adamw` as `xrvlm adapt method=xr_vlm recipe=adamw` would read it."""
    from xrvlm.experiments.compare import Candidate

    name, *options = words.split() or [""]
    if not name or "=" in name or any(not re.match(r"(method\.\w+|recipe(\.\w+)?)=", option) for option in options):
        raise UserError(f"a candidate is the name of a method and options of it or of its recipe, such as "
                        f"\"xr_vlm recipe=adamw\"; found {words!r}")
    composed = compose("adapt", [f"method={name}", *options])
    recipe = None if composed.get("recipe") is None else partial_of(composed.recipe, "recipe")()
    return Candidate(words, partial_of(composed.method, "method"), recipe)


def make_tower(config: DictConfig) -> Any:
    return partial_of(config.backbone, "backbone")(device=config.device, precision=config.precision)


def make_dataset(config: DictConfig) -> Any:
    return partial_of(config, "data")()


def make_recipe(config: DictConfig) -> Any:
    """The composed recipe; a method of one's own may have none beside its class.

    The group is optional for that reason, so Hydra itself lets a recipe pass that no configuration has.
    """
    if config.get("recipe") is not None:
        return partial_of(config.recipe, "recipe")()
    chosen = HydraConfig.get().runtime.choices
    if chosen.get("recipe") not in (None, chosen.get("method")):
        known = GlobalHydra.instance().config_loader().get_group_options("recipe")
        raise unknown("recipe", chosen["recipe"], known)
    return None


def make_text(config: DictConfig, dataset: Any) -> Any:
    return _text_maker(given_text(config), [getattr(dataset.source, "root", None) if dataset is not None else None])


def _text_maker(options: dict[str, Any], roots: Sequence[Path | None]) -> Any:
    """Files of sentences are looked for as they are named, then beside the images, in the first of `roots`."""
    from xrvlm.text.class_text import class_text

    found = dict(options)
    for name in ("descriptions", "parts"):
        if options.get(name) is not None and not user_path(options[name]).is_file():
            places = [root / options[name] for root in roots if root is not None]
            found[name] = next((str(place) for place in places if place.is_file()), options[name])
    return partial(class_text, **found)


def given_text(config: DictConfig) -> dict[str, Any]:
    """The options of `text` that are not null."""
    options = OmegaConf.to_container(config.get("text") or OmegaConf.create(), resolve=True)
    assert isinstance(options, dict)
    return {str(name): value for name, value in options.items() if value is not None}


def load_run(config: DictConfig) -> Any:
    """The model of `run=`; without a precision in that which its run was given."""
    from xrvlm.inference.classifier import Classifier

    own = OmegaConf.select(_saved_of(config), "precision")
    precision = own or config.precision if config.precision == "auto" else config.precision
    return Classifier.load(user_path(config.run), device=config.device, precision=precision)


def turned(classifier: Any, names: Sequence[str], config: DictConfig, root: Path | None) -> Any:
    """The run's model for the classes `names`, in the words of the command line, else in those of the run."""
    from xrvlm.text.class_text import few

    run = _saved_of(config)
    given, before = given_text(config), given_text(run)
    if "parts" in given and not classifier.about["classes"].get("parts"):
        raise UserError("text.parts is not read: this run was made without part descriptions; leave it out")
    if "templates" in given:
        before.pop("descriptions", None)         # which would take the place of the templates
    own = OmegaConf.select(run, "data.root")
    text = _text_maker(before | given, [root, None if own is None else user_path(own)])
    try:
        classifier.method.check_open()
        return classifier.for_classes(text(names))
    except UserError as error:
        new = [name for name in names if name not in classifier.names]
        which = f"{len(new)} of {len(names)} classes are unknown to this run ({few(map(repr, new))}): " if new else ""
        raise UserError(f"{which}{error}") from error


def own_images(folder: Path, class_names: Any) -> Any:
    """The data set of the run in `folder`, split as it was, its classes by other names where these are given."""
    from xrvlm.data.dataset import read_split
    from xrvlm.text.class_text import name_classes

    split, own = read_split(folder / "split.json"), _saved(folder).data
    if "class_names" in own:
        own.class_names = None                   # the names that the run knew stand in its split
    return replace(make_dataset(own), split=replace(split, classes=name_classes(split.classes, class_names)))


def source_of(folder: Path) -> Any:
    """Where the images of the run in `folder` are read from, their classes by any name."""
    own = _saved(folder).data
    own.update({name: value for name, value in (("class_names", None), ("skip_damaged", False)) if name in own})
    try:
        return _found(OmegaConf.to_yaml(own)).source
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the data of {folder} cannot be read again: {error}") from error


# most runs of a report share their data
_found = lru_cache(maxsize=16)(lambda data: make_dataset(OmegaConf.create(data)))  # pyright: ignore


def run_options(config: DictConfig) -> Any:
    from xrvlm.experiments.run import RunOptions

    return RunOptions(runs=config.get("runs", "runs"), features=partial_of(config.features, "features")(),
                      selection=config.get("selection", "last"), workers=config.workers,
                      force=config.get("force", False), config=_composed(config))


def _composed(config: DictConfig) -> str:
    """The configuration as it is kept beside the result: resolved, files named so that they are found from anywhere."""
    kept = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key in ("data.root", "data.class_names", "text.templates", "text.descriptions", "text.parts"):
        value = OmegaConf.select(kept, key)
        if (key == "data.root" and value is not None) or (isinstance(value, str) and user_path(value).is_file()):
            OmegaConf.update(kept, key, str(user_path(value).resolve()))
    return OmegaConf.to_yaml(kept)


def _saved_of(config: DictConfig) -> DictConfig:
    """The configuration of `run=`; empty where it has none."""
    folder = folder_of(user_path(config.run))
    return _saved(folder) if (folder / "config.yaml").exists() else OmegaConf.create()


def _saved(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} does not say where its images were; name them with data.root=DIR")
    try:
        saved = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, DictConfig) or "data" not in saved:
        raise UserError(f"{path} is damaged; delete it, and name the images with data.root=DIR")
    return saved


def read_shots(value: Any) -> int | None:
    if value == "all":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UserError(f"shots must be a number of images a class, or all; found {value!r}")
