"""What each command does with its composed configuration. Beside cli.py the only importer of Hydra and OmegaConf."""

import logging
import re
from collections.abc import Callable, Sequence
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

from xrvlm.distributed import processes
from xrvlm.errors import UserError, unknown
from xrvlm.files import user_path

log = logging.getLogger(__name__)


def adapt(config: DictConfig) -> None:
    from xrvlm.run import adapt as adapt_tower

    dataset = _dataset(config.data)
    run = adapt_tower(_tower(config), dataset, _partial(config.method, "method"), shots=_shots(config.shots),
                      seed=config.seed, val=config.val, recipe=_recipe(config), text=_text(config, dataset),
                      protocol=config.protocol, options=_options(config))
    _show(run)


def zeroshot(config: DictConfig) -> None:
    from xrvlm.run import zero_shot

    dataset = _dataset(config.data)
    _show(zero_shot(_tower(config), dataset, text=_text(config, dataset), options=_options(config)))


def evaluate(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.data import without_images_of
    from xrvlm.files import digest
    from xrvlm.protocols import check_among, transfer_record
    from xrvlm.run import evaluate as evaluate_on

    check_among(config.among)
    folder = user_path(config.run)
    own = OmegaConf.is_missing(config.data, "root") and HydraConfig.get().runtime.choices["data"] == "folder"
    classifier = Classifier.load(folder, device=config.device, precision=config.precision)
    if own:
        dataset = _own_images(folder, config.data.get("class_names"))
        items = dataset.split.test
    else:
        dataset = _dataset(config.data)
        items = dataset.split.test or (*dataset.split.train, *dataset.split.val)
        items = without_images_of(folder / "split.json", dataset.source, items)
    names, key, told = dataset.split.classes, [item.id for item in items], ""
    new = [name for name in names if name not in classifier.names]
    if new or _given_text(config):               # other words for the same classes are a turn too
        classifier = _turned(classifier, names, config, getattr(dataset.source, "root", None))
        key, told = [*key, classifier.about["classes"]], f"; {len(new)} of {len(names)} classes were not trained on"
    elif len(names) < len(classifier.names) and config.among == "data":
        key, told = [*key, "masked"], f"; among these {len(names)} of the run's {len(classifier.names)} classes"
    elif len(names) < len(classifier.names):
        told = f"; among all {len(classifier.names)} classes of the run (among=data: among these {len(names)})"
    place = folder / "eval" / f"{dataset.name}-{digest(key)[:10]}"
    summary = evaluate_on(classifier, dataset, items, place, features=_options(config).features,
                          workers=config.workers, among=config.among)
    if not own:
        transfer_record(folder, place, dataset, classifier.about["classes"], summary, among=config.among)
    print(f"{dataset.name}: {_figures(summary)}{told}\n{place}")


def predict(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.predict import predict_images, zero_shot_classifier
    from xrvlm.text import class_names

    images, out = user_path(config.images), None if config.out is None else user_path(config.out)
    if config.run is not None:
        classifier = Classifier.load(config.run, device=config.device, precision=config.precision)
        if config.classes is not None or _given_text(config):
            names = classifier.names if config.classes is None else class_names(config.classes)
            classifier = _turned(classifier, names, config, images if images.is_dir() else images.parent)
    elif config.classes is not None:
        if "parts" in _given_text(config):
            raise UserError("text.parts is not read without run=: zero-shot reads text.descriptions and text.templates")
        classifier = zero_shot_classifier(_tower(config), _text(config, None)(class_names(config.classes)))
    else:
        raise UserError("predict needs run=RUNDIR (an adapted model), or classes=names.txt for zero-shot")
    for line in predict_images(classifier, images, topk=config.topk, workers=config.workers, out=out):
        print(line)


def explain(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.explanations import explain_images

    run = user_path(config.run)
    classifier = Classifier.load(run, device=config.device, precision=config.precision)
    out = user_path(config.out) if config.out is not None else (run if run.is_dir() else run.parent) / "explain"
    for line in explain_images(classifier, user_path(config.images), out, against=config.against,
                               pictures=config.pictures):
        print(line)


def export(config: DictConfig) -> None:
    from xrvlm.classifier import Classifier
    from xrvlm.export import export_onnx, sample_images

    if config.format != "onnx":
        raise unknown("format", str(config.format), ("onnx",))
    if config.device not in ("auto", "cpu") or config.precision not in ("auto", "fp32"):
        raise UserError("export makes and checks a float32 file on the CPU: leave device= and precision= out")
    run = user_path(config.run)
    folder = run if run.is_dir() else run.parent
    classifier = Classifier.load(run, device="cpu", precision="fp32")
    images = None
    try:
        dataset = _own_images(folder, None)
        images = sample_images(classifier, dataset.source, dataset.split.test)
    except UserError as error:
        log.info("checked on random images alone: %s", error)
    print(export_onnx(classifier, folder / "model.onnx" if config.out is None else config.out, images=images))


def report(config: DictConfig) -> None:
    from xrvlm.records import read_records
    from xrvlm.report import write_report
    from xrvlm.tables import terminal_table

    runs = user_path(config.runs)
    print(terminal_table(read_records(runs)))
    report = write_report(runs, None if config.out is None else user_path(config.out), all_shots=config.all_shots,
                          baseline=None if config.baseline is None else str(config.baseline),
                          source_of=_source_of if config.photos else None)
    print(f"{report}\n{report.with_suffix('.html')}")


def compare(config: DictConfig) -> None:
    from xrvlm.budget import seconds_of
    from xrvlm.compare import Terms
    from xrvlm.compare import compare as compare_methods
    from xrvlm.recommend import adapt_command

    dataset = _dataset(config.data)
    terms = Terms(shots=_shots(config.shots), seed=config.seed, folds=config.folds, budget=seconds_of(config.budget),
                  runs=config.runs, features=_partial(config.features, "features")(), workers=config.workers)
    candidates = [_candidate(str(words)) for words in config.candidates]
    found = compare_methods(_tower(config), dataset, candidates, terms=terms, text=_text(config, dataset))
    given = [*HydraConfig.get().overrides.task, f"shots={config.shots}", f"seed={config.seed}"]
    print(found.write(adapt_command(found.recommendation.chosen.words, given)))


def demo(config: DictConfig) -> None:
    from xrvlm.demo.demo import run_demo

    run_demo(user_path(config.runs), small=config.small, device=config.device, precision=config.precision,
             workers=config.workers)


def data_check(config: DictConfig) -> None:
    from xrvlm.datasets.check import check

    made = _partial(config.data, "data")
    finding = check(made.func, made.keywords)
    print("\n".join(finding.lines))
    if finding.faults:
        raise UserError(f"the data set is not complete: {'; '.join(finding.faults)}")


COMMANDS: dict[str, Callable[[DictConfig], None]] = {
    "adapt": adapt, "zeroshot": zeroshot, "eval": evaluate, "predict": predict, "explain": explain, "export": export,
    "compare": compare, "report": report, "demo": demo, "data check": data_check,
}


def _partial(config: DictConfig, group: str) -> partial:
    """What a config group's `_target_` names, with the group's values as plain Python, not yet called."""
    from xrvlm.options import check_options

    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    made = instantiate(config, _partial_=True, _convert_="all")
    check_options(made.func, made.keywords, group)
    return made


def _candidate(words: str) -> Any:
    """`xr_vlm recipe=adamw` as `xrvlm adapt method=xr_vlm recipe=adamw` would read it."""
    from xrvlm.compare import Candidate

    name, *options = words.split() or [""]
    if not name or "=" in name or any(not re.match(r"(method\.\w+|recipe(\.\w+)?)=", option) for option in options):
        raise UserError(f"a candidate is the name of a method and options of it or of its recipe, such as "
                        f"\"xr_vlm recipe=adamw\"; found {words!r}")
    composed = compose("adapt", [f"method={name}", *options])
    recipe = None if composed.get("recipe") is None else _partial(composed.recipe, "recipe")()
    return Candidate(words, _partial(composed.method, "method"), recipe)


def _tower(config: DictConfig) -> Any:
    return _partial(config.backbone, "backbone")(device=config.device, precision=config.precision)


def _dataset(config: DictConfig) -> Any:
    return _partial(config, "data")()


def _recipe(config: DictConfig) -> Any:
    """The composed recipe; a method of one's own may have none beside its class.

    The group is optional for that reason, so Hydra itself lets a recipe pass that no configuration has.
    """
    if config.get("recipe") is not None:
        return _partial(config.recipe, "recipe")()
    chosen = HydraConfig.get().runtime.choices
    if chosen.get("recipe") not in (None, chosen.get("method")):
        known = GlobalHydra.instance().config_loader().get_group_options("recipe")
        raise unknown("recipe", chosen["recipe"], known)
    return None


def _text(config: DictConfig, dataset: Any) -> Any:
    return _text_maker(_given_text(config), [getattr(dataset.source, "root", None) if dataset is not None else None])


def _text_maker(options: dict[str, Any], roots: Sequence[Path | None]) -> Any:
    """Files of sentences are looked for as they are named, then beside the images, in the first of `roots`."""
    from xrvlm.text import class_text

    found = dict(options)
    for name in ("descriptions", "parts"):
        if options.get(name) is not None and not user_path(options[name]).is_file():
            places = [root / options[name] for root in roots if root is not None]
            found[name] = next((str(place) for place in places if place.is_file()), options[name])
    return partial(class_text, **found)


def _given_text(config: DictConfig) -> dict[str, Any]:
    """The options of `text` that are not null."""
    options = OmegaConf.to_container(config.get("text") or OmegaConf.create(), resolve=True)
    assert isinstance(options, dict)
    return {str(name): value for name, value in options.items() if value is not None}


def _turned(classifier: Any, names: Sequence[str], config: DictConfig, root: Path | None) -> Any:
    """The run's model for the classes `names`, in the words of the command line, else in those of the run."""
    from xrvlm.text import few

    place = user_path(config.run)
    folder = place if place.is_dir() else place.parent
    run = _saved(folder) if (folder / "config.yaml").exists() else OmegaConf.create()
    given, before = _given_text(config), _given_text(run)
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


def _own_images(folder: Path, class_names: Any) -> Any:
    """The data set of the run in `folder`, split as it was, its classes by other names where these are given."""
    from xrvlm.data import read_split
    from xrvlm.text import name_classes

    split, own = read_split(folder / "split.json"), _saved(folder).data
    if "class_names" in own:
        own.class_names = None                   # the names that the run knew stand in its split
    return replace(_dataset(own), split=replace(split, classes=name_classes(split.classes, class_names)))


def _source_of(folder: Path) -> Any:
    """Where the images of the run in `folder` are read from, their classes by any name."""
    own = _saved(folder).data
    own.update({name: value for name, value in (("class_names", None), ("skip_damaged", False)) if name in own})
    try:
        return _found(OmegaConf.to_yaml(own)).source
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the data of {folder} cannot be read again: {error}") from error


# most runs of a report share their data
_found = lru_cache(maxsize=16)(lambda data: _dataset(OmegaConf.create(data)))  # pyright: ignore


def _options(config: DictConfig) -> Any:
    from xrvlm.run import RunOptions

    return RunOptions(runs=config.get("runs", "runs"), features=_partial(config.features, "features")(),
                      selection=config.get("selection", "last"), workers=config.workers,
                      force=config.get("force", False), config=_composed(config))


def _composed(config: DictConfig) -> str:
    """The configuration as it is kept beside the result: resolved, the data where they are from anywhere."""
    kept = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    if OmegaConf.select(kept, "data.root") is not None:
        kept.data.root = str(user_path(kept.data.root).resolve())
    return OmegaConf.to_yaml(kept)


def _saved(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} does not say where its images were; name them with data.root=DIR")
    try:
        saved = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, DictConfig) or "data" not in saved:
        raise UserError(f"{path} is damaged; name the images with data.root=DIR")
    return saved


def _shots(value: Any) -> int | None:
    if value == "all":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UserError(f"shots must be a number of images a class, or all; found {value!r}")


def _show(run: Any) -> None:
    from xrvlm.tables import terminal_table

    if not processes().first:
        return
    print(terminal_table([run.record]))
    print(f"{run.record.label}: {_figures(run.record.metrics)}\n{run.folder}")


def _figures(metrics: dict[str, float]) -> str:
    if "harmonic_mean" in metrics:
        return (f"base {metrics['top1']:.1%}, new {metrics['new_top1']:.1%}, harmonic mean "
                f"{metrics['harmonic_mean']:.1%}; all classes {metrics['all_top1']:.1%}")
    return (f"top-1 {metrics['top1']:.1%}, top-5 {metrics['top5']:.1%}, mean per class "
            f"{metrics['mean_per_class']:.1%}, macro-F1 {metrics['macro_f1']:.1%}, calibration error "
            f"{metrics['ece']:.1%}")
