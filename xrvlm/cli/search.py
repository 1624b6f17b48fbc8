"""A sweep that searches (`hydra/sweeper=optuna`): by the validation images alone, never by a figure of the test set."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from xrvlm.errors import UserError, option

# what the sweeper is told where the command says nothing else: the objective is an accuracy, a trial that fails leaves
# the others running, and with a seed the same command makes the same trials, so that a search that was stopped goes on
DEFAULTS = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.n_jobs": "1", "hydra.sweeper.max_failure_rate": "1.0",
            "hydra.sweeper.sampler.seed": "1"}


def prepared(command: str, overrides: Sequence[str]) -> list[str]:
    """The arguments of a search with `DEFAULTS`. UserError for one that cannot be done, before anything runs."""
    given = {key: value for key, _, value in (each.lstrip("+").partition("=") for each in overrides)}
    if given["hydra/sweeper"] != "optuna":
        return list(overrides)
    if command != "adapt":
        raise UserError(f"hydra/sweeper=optuna goes with `xrvlm adapt` alone: leave it out of {command}")
    if not {"-m", "--multirun"} & set(overrides):
        raise UserError("hydra/sweeper=optuna searches in a sweep: add -m")
    if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise UserError("hydra/sweeper=optuna needs a plugin of Hydra: pip install 'xrvlm[sweep]'")
    if "selection" in given or "experiment" not in given:        # which may set it: `objective` sees it
        _check_selection(given.get("selection", "last").strip("'\""))
    if given.get("hydra/sweeper/sampler") == "grid":         # Optuna 2's ends in a traceback where its last trial fails
        raise UserError("a grid needs no search: leave hydra/sweeper=optuna out, and write all values, key=a,b,c")
    # of a launcher's processes it is not known here that a trial failed: the search ends with it
    left = {"hydra.sweeper.max_failure_rate": "hydra/launcher" in given}
    more = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in given and not left.get(key)]
    return [*overrides, *more]


def objective(command: str, config: Any, run: Callable[[Any], Any]) -> float:
    """Do the run of one trial: its top-1 on the validation images, 0..1. UserError where it has none."""
    if command != "adapt":
        raise UserError("a sweeper that searches goes with `xrvlm adapt` alone")
    _check_selection(config.selection)
    record = run(config).record
    if "val_top1" in record.metrics:
        return record.metrics["val_top1"]
    if not record.label_budget:
        raise UserError(f"{record.label} learns nothing and has no validation images to search by: choose a "
                        f"{option('method')} that learns")
    raise UserError(f"{record.run} was finished before a run kept its top-1 on the validation images: add "
                    f"{option('force', True)}, or search in another folder with {option('runs', 'DIR')}")


def _check_selection(selection: str) -> None:
    if selection != "val":
        raise UserError("a search on the test images is no honest result, and without "
                        f"{option('selection', 'val')} there are no validation images to search by: add it")
