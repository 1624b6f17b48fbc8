"""The commands: each composes its objects from the configuration and makes one public call of the library."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xrvlm.cli.composed import (
    config_dir,
    dataset_of,
    device_of,
    partial_of,
    plain,
    recipe_of,
    run_options_of,
    shots_of,
    text_of,
    tower_of,
)
from xrvlm.distributed import processes
from xrvlm.errors import UserError
from xrvlm.files import user_path


def adapt(config: DictConfig) -> None:
    from xrvlm.experiments.run import adapt as call

    # all that can be wrong before weights are fetched
    text, shots, recipe = text_of(config), shots_of(config.shots), recipe_of(config.recipe)
    dataset, method, options = dataset_of(config), partial_of(config.method, "method"), run_options_of(config)
    _show(call(tower_of(config), dataset, method, shots=shots, seed=config.seed, val=config.val, recipe=recipe,
               text=text, protocol=config.protocol, unknown=config.unknown, options=options))


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
    unread = [each for each in HydraConfig.get().overrides.task if each.lstrip("+").startswith("backbone")]
    if config.run is not None and unread:
        key = unread[0].partition("=")[0]
        raise UserError(f"{key}= is not read with a run, which names its own tower: leave it out, or leave the run "
                        "out for zero-shot (backbone=... classes=names.txt images=DIR)")
    call(config.run, plain(config.images), classes=plain(config.classes), topk=config.topk, asked=asked,
         out=config.out, echo=print, text=text_of(config), workers=config.workers,
         clip=tower_of(config) if zero_shot else None, **device_of(config))


def explain(config: DictConfig) -> None:
    from xrvlm.reporting.explanations import explain as call

    call(str(config.run), plain(config.images), against=config.against, out=config.out, pictures=config.pictures,
         echo=print, **device_of(config))


def export(config: DictConfig) -> None:
    from xrvlm.experiments.export import export as call

    if config.device not in ("auto", "cpu") or config.precision not in ("auto", "fp32"):
        raise UserError("export makes and checks a float32 file on the CPU: leave device= and precision= out")
    print(call(str(config.run), config.out, format=config.format))


def report(config: DictConfig) -> None:
    from xrvlm.reporting.report import report as call

    made = call(str(config.runs), config.out, baseline=None if config.baseline is None else str(config.baseline),
                all_shots=config.all_shots, photos=config.photos)
    print(f"{made.table}\n{made.markdown}\n{made.html}")


def compare(config: DictConfig) -> None:
    from xrvlm.experiments.compare import CompareOptions
    from xrvlm.experiments.compare import compare as call
    from xrvlm.experiments.recommend import adapt_command

    given, own = [*HydraConfig.get().overrides.task, f"shots={config.shots}", f"seed={config.seed}"], config_dir()
    options = CompareOptions(shots=shots_of(config.shots), seed=config.seed, folds=config.folds, budget=config.budget,
                             runs=config.runs, features=partial_of(config.features, "features")(),
                             workers=config.workers)
    named = [config.candidates] if isinstance(config.candidates, str) else config.candidates or []
    dataset = dataset_of(config)
    found = call(tower_of(config), dataset, [str(words) for words in named], text=text_of(config),
                 options=options, command=lambda words: adapt_command(words, given, own))
    print(found.table)


def suspects(config: DictConfig) -> None:
    from xrvlm.reporting.suspects import suspects as call

    dataset, method = dataset_of(config), partial_of(config.method, "method")
    print(call(tower_of(config), dataset, method, count=config.count, seed=config.seed, out=config.out,
               features=partial_of(config.features, "features")(views=0), workers=config.workers).summary)


def next_(config: DictConfig) -> None:
    from xrvlm.experiments.labelling.choose import next_to_label as call

    print("\n".join(map(str, call(str(config.run), plain(config.images), count=config.count, out=config.out,
                                  workers=config.workers, **device_of(config)))))


def demo(config: DictConfig) -> None:
    from xrvlm.demo.demo import run_demo

    photos = None if config.photos is None else user_path(config.photos)
    run_demo(user_path(config.runs), photos=photos, small=config.small, workers=config.workers, **device_of(config))


def data_check(config: DictConfig) -> None:
    from xrvlm.data.datasets.check import check

    made = partial_of(config.data, "data")
    finding = check(made.func, made.keywords)
    print("\n".join(finding.lines))
    if finding.faults:
        raise UserError(f"the data set is not complete: {'; '.join(finding.faults)}")


def cache_list(config: DictConfig) -> None:
    from xrvlm.features.cache import banks, table

    print(table(banks(config.cache)))


def cache_prune(config: DictConfig) -> None:
    from xrvlm.features.cache import prune, table

    print(table(prune(config.cache, older_than=config.older_than, every=config.all, dry_run=config.dry_run)))


COMMANDS: dict[str, Callable[[DictConfig], None]] = {
    "adapt": adapt, "zeroshot": zeroshot, "eval": evaluate, "predict": predict, "explain": explain, "export": export,
    "compare": compare, "report": report, "demo": demo, "suspects": suspects, "next": next_, "data check": data_check,
    "cache list": cache_list, "cache prune": cache_prune,
}


def _show(run: Any) -> None:
    if processes().first:
        protocol = {"base_to_new": ", base to new", "open_set": ", open set"}.get(run.record.protocol, "")
        figures = _figures(run.record.metrics, run.record.images, run.record.classes)
        print(f"{run.record.label}{protocol}: {figures}\n{run.folder}")


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
