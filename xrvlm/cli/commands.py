"""The commands: each composes its objects from the configuration and makes one public call of the library."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from xrvlm.cli.runs import (
    adapt,
    config_dir,
    dataset_of,
    device_of,
    evaluate,
    partial_of,
    plain,
    predict,
    shots_of,
    text_of,
    tower_of,
    zeroshot,
)
from xrvlm.errors import UserError
from xrvlm.files import user_path


def explain(config: DictConfig) -> None:
    from xrvlm.reporting.explanations import explain as call

    call(str(config.run), plain(config.images), against=config.against, out=config.out, pictures=config.pictures,
         nearest=config.nearest, echo=print, **device_of(config))


def export(config: DictConfig) -> None:
    from xrvlm.experiments.export import export as call

    if config.device not in ("auto", "cpu") or config.precision not in ("auto", "fp32"):
        raise UserError("export makes and checks a float32 file on the CPU: leave device= and precision= out")
    named = plain(config.parts)
    parts = [each.strip() for each in named.split(",")] if isinstance(named, str) else named
    made = call(str(config.run), config.out, format=config.format, int8=config.int8, max_drop=config.max_drop,
                parts=parts)
    print(*(made if isinstance(made, tuple) else (made,)), sep="\n")


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


def push(config: DictConfig) -> None:
    from xrvlm.reporting.hub.push import push as call

    print(call(str(config.run), str(config.repo), private=config.private, licence=config.licence, out=config.out))


def serve(config: DictConfig) -> None:
    from xrvlm.inference.answers import Asked
    from xrvlm.reporting.serve.page import PageLimits
    from xrvlm.reporting.serve.page import serve as call

    asked = Asked(**{each.name: config[each.name] for each in fields(Asked)})
    call(plain(config.run), host=config.host, port=config.port, asked=asked, topk=config.topk, nearest=config.nearest,
         limits=PageLimits(config.uploads, config.megabytes, config.waiting), **device_of(config))


def describe(config: DictConfig) -> None:
    from xrvlm.experiments.wording.describe import describe as call
    from xrvlm.experiments.wording.describe import folder_for

    dataset, parts = dataset_of(config), plain(config.parts)
    parts = [each.strip() for each in parts.split(",")] if isinstance(parts, str) else parts or []
    out = folder_for(dataset.name) if config.out is None else config.out
    print("\n".join(call(dataset.split.classes, kind=config.kind, parts=parts, sentences=config.sentences,
                         answer=plain(config.answer), out=out).lines))


def prompts(config: DictConfig) -> None:
    from xrvlm.experiments.wording.prompts import choose_prompts as call

    text, dataset = text_of(config), dataset_of(config)
    found = call(tower_of(config), dataset, shots=shots_of(config.shots), seed=config.seed, folds=config.folds,
                 features=partial_of(config.features, "features")(views=0), workers=config.workers, out=config.out,
                 **text)
    print(f"{found.table}\n{found.folder / 'prompts.csv'}\n{found.folder / 'prompts.json'}")


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


COMMANDS: dict[str, Callable[[DictConfig], Any]] = {
    "adapt": adapt, "zeroshot": zeroshot, "eval": evaluate, "predict": predict, "explain": explain, "export": export,
    "compare": compare, "report": report, "serve": serve, "push": push, "demo": demo, "suspects": suspects,
    "next": next_, "describe": describe, "prompts": prompts,
    "data check": data_check, "cache list": cache_list, "cache prune": cache_prune,
}
