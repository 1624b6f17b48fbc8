"""What each command does with its composed configuration, whose objects composing.py makes."""

import logging
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xrvlm.cli.compose import (
    given_text,
    load_run,
    make_candidate,
    make_dataset,
    make_recipe,
    make_text,
    make_tower,
    own_images,
    partial_of,
    read_shots,
    run_options,
    source_of,
    turned,
)
from xrvlm.distributed import processes
from xrvlm.errors import UserError, unknown
from xrvlm.files import digest, folder_of, user_path

log = logging.getLogger(__name__)


def adapt(config: DictConfig) -> None:
    from xrvlm.experiments.run import adapt as adapt_tower

    dataset = make_dataset(config.data)
    run = adapt_tower(make_tower(config), dataset, partial_of(config.method, "method"), shots=read_shots(config.shots),
                      seed=config.seed, val=config.val, recipe=make_recipe(config), text=make_text(config, dataset),
                      protocol=config.protocol, options=run_options(config))
    _show(run)


def zeroshot(config: DictConfig) -> None:
    from xrvlm.experiments.run import zero_shot

    dataset = make_dataset(config.data)
    _show(zero_shot(make_tower(config), dataset, text=make_text(config, dataset), options=run_options(config)))


def evaluate(config: DictConfig) -> None:
    from xrvlm.data.dataset import hash_items, without_images_of
    from xrvlm.experiments.protocols import check_among, transfer_record
    from xrvlm.experiments.run import evaluate as evaluate_on

    check_among(config.among)
    folder = user_path(config.run)
    own = OmegaConf.is_missing(config.data, "root") and HydraConfig.get().runtime.choices["data"] == "folder"
    classifier = load_run(config)
    if own:
        dataset = own_images(folder, config.data.get("class_names"))
        items = dataset.split.test
    else:
        dataset = make_dataset(config.data)
        items = dataset.split.test or (*dataset.split.train, *dataset.split.val)
    hashes = hash_items(items, dataset.source)
    tested = digest([hashes[item.id] for item in items])
    if not own:
        items = without_images_of(folder / "split.json", items, hashes)
    # other images may have the same names
    names, key, told = dataset.split.classes, [*(item.id for item in items), tested], ""
    new = [name for name in names if name not in classifier.names]
    if new or given_text(config):               # other words for the same classes are a turn too
        classifier = turned(classifier, names, config, getattr(dataset.source, "root", None))
        key, told = [*key, classifier.about["classes"]], f"; {len(new)} of {len(names)} classes were not trained on"
    elif len(names) < len(classifier.names) and config.among == "data":
        key, told = [*key, "masked"], f"; among these {len(names)} of the run's {len(classifier.names)} classes"
    elif len(names) < len(classifier.names):
        told = f"; among all {len(classifier.names)} classes of the run (among=data: among these {len(names)})"
    place = folder / "eval" / f"{dataset.name}-{digest(key)[:10]}"
    summary = evaluate_on(classifier, dataset, items, place, features=run_options(config).features,
                          workers=config.workers, among=config.among)
    if not own:
        transfer_record(folder, place, dataset, classifier.about["classes"], summary, among=config.among,
                        tested=tested)
    print(f"{dataset.name}: {_figures(summary)}{told}\n{place}")


def predict(config: DictConfig) -> None:
    from xrvlm.inference.predict import predict_images, zero_shot_classifier
    from xrvlm.text.class_text import class_names

    images, out = user_path(config.images), None if config.out is None else user_path(config.out)
    if config.run is not None:
        classifier = load_run(config)
        if config.classes is not None or given_text(config):
            names = classifier.names if config.classes is None else class_names(config.classes)
            classifier = turned(classifier, names, config, folder_of(images))
    elif config.classes is not None:
        if "parts" in given_text(config):
            raise UserError("text.parts is not read without run=: zero-shot reads text.descriptions and text.templates")
        classifier = zero_shot_classifier(make_tower(config), make_text(config, None)(class_names(config.classes)))
    else:
        raise UserError("predict needs run=RUNDIR (an adapted model), or classes=names.txt for zero-shot")
    for line in predict_images(classifier, images, topk=config.topk, workers=config.workers, out=out):
        print(line)


def explain(config: DictConfig) -> None:
    from xrvlm.reporting.explanations import Photos, explain_images

    folder = folder_of(user_path(config.run))
    classifier = load_run(config)
    out = folder / "explain" if config.out is None else user_path(config.out)
    photos = (Photos.test_part(own_images(folder, None)) if config.images is None
              else Photos.below(user_path(config.images)))
    for line in explain_images(classifier, photos, out, against=config.against, pictures=config.pictures):
        print(line)


def export(config: DictConfig) -> None:
    from xrvlm.inference.classifier import Classifier
    from xrvlm.inference.export import export_onnx, sample_images

    if config.format != "onnx":
        raise unknown("format", str(config.format), ("onnx",))
    if config.device not in ("auto", "cpu") or config.precision not in ("auto", "fp32"):
        raise UserError("export makes and checks a float32 file on the CPU: leave device= and precision= out")
    run = user_path(config.run)
    folder = folder_of(run)
    classifier = Classifier.load(run, device="cpu", precision="fp32")
    images = None
    try:
        dataset = own_images(folder, None)
        images = sample_images(classifier, dataset.source, dataset.split.test)
    except UserError as error:
        log.info("checked on random images alone: %s", error)
    print(export_onnx(classifier, folder / "model.onnx" if config.out is None else config.out, images=images))


def report(config: DictConfig) -> None:
    from xrvlm.experiments.record import read_records
    from xrvlm.reporting.report import write_report
    from xrvlm.reporting.results import told_apart
    from xrvlm.reporting.tables import terminal_table

    runs = user_path(config.runs)
    print(terminal_table(told_apart(read_records(runs), folder_of(runs))))
    report = write_report(runs, None if config.out is None else user_path(config.out), all_shots=config.all_shots,
                          baseline=None if config.baseline is None else str(config.baseline),
                          source_of=source_of if config.photos else None)
    print(f"{report}\n{report.with_suffix('.html')}")


def compare(config: DictConfig) -> None:
    from xrvlm.experiments.budget import seconds_of
    from xrvlm.experiments.compare import Terms
    from xrvlm.experiments.compare import compare as compare_methods
    from xrvlm.experiments.recommend import adapt_command

    dataset = make_dataset(config.data)
    features = partial_of(config.features, "features")()
    terms = Terms(shots=read_shots(config.shots), seed=config.seed, folds=config.folds, features=features,
                  budget=seconds_of(config.budget), runs=config.runs, workers=config.workers)
    named = [config.candidates] if isinstance(config.candidates, str) else config.candidates or []
    candidates = [make_candidate(str(words)) for words in dict.fromkeys(named)]
    found = compare_methods(make_tower(config), dataset, candidates, terms=terms, text=make_text(config, dataset))
    hydra = HydraConfig.get()
    given = [*hydra.overrides.task, f"shots={config.shots}", f"seed={config.seed}"]
    own = next((source.path for source in hydra.runtime.config_sources if source.provider == "command-line"), None)
    print(found.write(adapt_command(found.recommendation.chosen.words, given, own)))


def demo(config: DictConfig) -> None:
    from xrvlm.demo.demo import run_demo

    run_demo(user_path(config.runs), small=config.small, device=config.device, precision=config.precision,
             workers=config.workers)


def data_check(config: DictConfig) -> None:
    from xrvlm.data.datasets.check import check

    made = partial_of(config.data, "data")
    finding = check(made.func, made.keywords)
    print("\n".join(finding.lines))
    if finding.faults:
        raise UserError(f"the data set is not complete: {'; '.join(finding.faults)}")


COMMANDS: dict[str, Callable[[DictConfig], None]] = {
    "adapt": adapt, "zeroshot": zeroshot, "eval": evaluate, "predict": predict, "explain": explain, "export": export,
    "compare": compare, "report": report, "demo": demo, "data check": data_check,
}


def _show(run: Any) -> None:
    from xrvlm.reporting.tables import terminal_table

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
