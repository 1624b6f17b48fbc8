"""The commands of one run, and what every command is made of: a configuration as objects of the library."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from xrvlm.cli.main import GROUPS, config_name
from xrvlm.cli.usage import SCALARS
from xrvlm.distributed import processes
from xrvlm.errors import UserError, check_options, check_types, imported
from xrvlm.files import shipped

OF_ADAPT = ("selection", "calibrate", "scaling", "known_by", "follow")     # options of a run that zeroshot has not


def adapt(config: DictConfig) -> Any:
    from xrvlm.experiments.run import adapt as call

    # all that can be wrong before weights are fetched
    text, shots, recipe = text_of(config), shots_of(config.shots), recipe_of(config.recipe)
    dataset, method, options = dataset_of(config), partial_of(config.method, "method"), run_options_of(config)
    run = call(tower_of(config), dataset, method, shots=shots, seed=config.seed, val=config.val, recipe=recipe,
               text=text, protocol=config.protocol, unknown=config.unknown, options=options)
    _show(run)
    return run


def zeroshot(config: DictConfig) -> None:
    from xrvlm.experiments.run import zero_shot as call

    text, dataset = text_of(config), dataset_of(config)
    _show(call(tower_of(config), dataset, text=text, options=run_options_of(config)))


def evaluate(config: DictConfig) -> None:
    from xrvlm.experiments.evaluate import evaluate as call

    own = OmegaConf.is_missing(config.data, "root") and HydraConfig.get().runtime.choices["data"] == "folder"
    found = call(str(config.run), None if own else dataset_of(config), among=config.among,
                 class_names=plain(config.data.get("class_names")) if own else None, text=text_of(config),
                 features=partial_of(config.features, "features")(), workers=config.workers, **device_of(config))
    figures = _figures(found.metrics, int(found.metrics["images"]), found.classes)
    print(f"{found.data}: {figures}{f'; {found.note}' if found.note else ''}")
    if found.folder.exists():            # not of a run on a disk that may only be read
        print(found.folder)


def predict(config: DictConfig) -> None:
    from xrvlm.experiments.predict import predict as call
    from xrvlm.inference.answers import Asked

    given = {each.name: config[each.name] for each in fields(Asked)}
    asked = None if all(given[each.name] == each.default for each in fields(Asked)) else Asked(**given)
    zero_shot = config.run is None and config.classes is not None
    unread = [each for each in HydraConfig.get().overrides.task
              if each.lstrip("+").startswith(("backbone", "second_look", "look."))]
    if config.run is not None and unread:
        key = unread[0].partition("=")[0]
        raise UserError(f"{key}= is not read with a run, which names its own tower: leave it out, or leave the run "
                        "out for zero-shot (backbone=... classes=names.txt images=DIR)")
    call(config.run, plain(config.images), classes=plain(config.classes), topk=config.topk, asked=asked,
         out=config.out, echo=print, text=text_of(config), workers=config.workers,
         clip=tower_of(config) if zero_shot else None, **device_of(config))


def _show(run: Any) -> None:
    if processes().first:
        protocol = {"base_to_new": ", base to new", "open_set": ", open set"}.get(run.record.protocol, "")
        figures = _figures(run.record.metrics, run.record.images, run.record.classes)
        val = run.record.metrics.get("val_top1")
        chosen = "" if val is None else f"; validation images: top-1 {val:.1%}"
        lines = [f"{run.record.label}{protocol}: {figures}{chosen}", str(run.folder)]
        if run.record.domains:
            from xrvlm.evaluation.domains import in_words

            lines[1:1] = in_words(run.record.domains)
        print("\n".join(lines))


def _figures(metrics: dict[str, float], images: int, classes: int) -> str:
    tested = f" of {images:,} test images in {classes:,} classes (chance {1 / classes:.1%})" if images else ""
    if "harmonic_mean" in metrics:
        return (f"base {metrics['top1']:.1%}{tested}, new {metrics['new_top1']:.1%}, harmonic mean "
                f"{metrics['harmonic_mean']:.1%}; all classes {metrics['all_top1']:.1%}")
    open_set = "auroc" in metrics and (f"; unknown images: AUROC {metrics['auroc']:.1%}, {metrics['fpr95']:.1%} pass "
                                       f"where 95 % of the known do, OSCR {metrics['oscr']:.1%}")
    return (f"top-1 {metrics['top1']:.1%}{tested}, top-5 {metrics['top5']:.1%}, mean per class "
            f"{metrics['mean_per_class']:.1%}, macro-F1 {metrics['macro_f1']:.1%}, calibration error "
            f"{metrics['ece']:.1%}{open_set or ''}")


def import_own_methods() -> None:
    """Import the methods of the `--config-dir`, where there is one: a saved run may name them, and no others."""
    for path in sorted((Path(config_dir() or ".nowhere") / "method").glob("*.yaml")):
        target = (OmegaConf.to_container(OmegaConf.load(path)) or {}).get("_target_")  # pyright: ignore
        if isinstance(target, str):
            imported(target, "method")


def config_dir() -> str | None:
    """The folder that `--config-dir` names."""
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def tower_of(config: DictConfig) -> Any:
    """The frozen tower; with `second_look` one that looks again, with `second` one that has another beside it."""
    options = look_of(config)
    clip = partial_of(config.backbone, "backbone")(**device_of(config))
    if options:
        from xrvlm.backbones.composed.look import LookingTower

        clip = LookingTower(clip, options)
    if config.get("second") is not None:
        from xrvlm.backbones.composed.pair import paired

        clip = paired(clip, partial_of(config.second, "second")(**device_of(config)))
    return clip


def look_of(config: DictConfig) -> Any:
    """None without `second_look`; UserError where `look` is then set all the same."""
    given = [each for each in HydraConfig.get().overrides.task if each.lstrip("+").startswith("look.")]
    if config.second_look:
        from xrvlm.backbones.composed.look import LookOptions

        return LookOptions(config.second_look, **plain(config.look))
    if given:
        raise UserError(f"{given[0].lstrip('+')} is read with a second look alone: add second_look=3, or leave it out")
    return None


def device_of(config: DictConfig) -> dict[str, Any]:
    return {"device": config.device, "precision": config.precision}


def dataset_of(config: DictConfig) -> Any:
    return partial_of(config.data, "data")()


def text_of(config: DictConfig) -> dict[str, Any]:
    given = plain(config.get("text") or {})
    check_types({"text": given}, {"text": Mapping})
    return {name: value for name, value in given.items() if value is not None}


def recipe_of(config: DictConfig) -> Any:
    """What `adapt` takes as recipe: the name of one and changes, or a recipe of a `--config-dir` as a whole."""
    from xrvlm.methods.base import TRAINING_FREE

    given = {name: value for name, value in plain(config).items() if value is not None and not name.startswith("_")}
    if given.get("name") not in ("own", *shipped("recipe")):
        return partial_of(config, "recipe")()
    # the types, before a tower is loaded; the recipe itself may depend on the method
    replace(TRAINING_FREE, name=given["name"], epochs=10**6).changed(
        **{name: value for name, value in given.items() if name != "name"})
    return given


def run_options_of(config: DictConfig) -> Any:
    from xrvlm.experiments.record import RunOptions

    return RunOptions(runs=config.runs, features=partial_of(config.features, "features")(),
                      workers=config.workers, force=config.force,
                      **{name: config[name] for name in OF_ADAPT if name in config})


def shots_of(value: Any) -> int | None:
    if value == "all":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise UserError(f"shots must be a whole number of images a class, at least 1, or all; found {value!r}")


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def partial_of(config: DictConfig, group: str) -> partial:
    """What `_target_` of a group names, with the group's options as plain Python, not yet called."""
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if "_target_" in config:
        imported(str(config["_target_"]), group)
    made = instantiate(config, _partial_=True, _convert_="all")
    check_options(made.func, made.keywords, group)
    return made


def check_read(command: str) -> None:
    """UserError for a key that the command line adds (`+key=`) and nothing reads; groups check their own."""
    added = [override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task
             if override.startswith("+")]
    for key in added:
        node, _, name = key.rpartition(".")
        if key.split(".")[0] in (*GROUPS, "hydra"):
            continue
        own = compose(config_name(command))
        there = OmegaConf.select(own, node) if node else own
        if not isinstance(there, DictConfig) or name not in list(there.keys()):
            raise UserError(f"nothing reads {key}: leave it out; `xrvlm {command} --cfg job` shows what there is")


def check_scalars(command: str, config: Any) -> None:
    """UserError for a value at the top level that is of another type than the command reads."""
    given = {name: config[name] for name in SCALARS if name in config and not OmegaConf.is_missing(config, name)}
    folder = {"photos": str | None} if command == "demo" else {}                          # of report: yes or no
    check_types(given, {**SCALARS, **folder})
    if given.get("workers", 0) < 0:
        raise UserError(f"workers must be at least 0, found {given['workers']}")
