"""The command line: `xrvlm COMMAND key=value ...`. What each command does stands in commands.py."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from xrvlm.cli.commands import COMMANDS
from xrvlm.distributed import Group, PeerFailedError, joined, processes
from xrvlm.errors import UserError, naming_keys

HELP = """\
xrvlm adapts a frozen CLIP to fine-grained recognition.

  xrvlm adapt data.root=DIR [shots=16|all] [method=xr_vlm] [backbone=vit_b16_openai] [seed=1]
  xrvlm adapt data.root=DIR protocol=base_to_new    train on half of the classes, measure the others too
  xrvlm zeroshot data.root=DIR                      score a data set without a label
  xrvlm eval run=RUNDIR [data.root=OTHER]           score a finished run again, on other images or new classes
                        [among=data]                ... and mask the classes that these images do not have
  xrvlm predict run=RUNDIR images=FILE_OR_DIR [classes=names.txt] [topk=5] [out=preds.csv]
  xrvlm predict backbone=vit_b16_openai classes=names.txt images=DIR        without a run: zero-shot
  xrvlm explain run=RUNDIR [images=FILE_OR_DIR] [against=CLASS] [out=DIR]   what the parts look at, and what decides
  xrvlm export run=RUNDIR [format=onnx] [out=FILE]  a model that runs without xrvlm and torch
  xrvlm compare data.root=DIR [budget=10m] [shots=all] [folds=5]            which method should I take?
  xrvlm report runs=DIR [baseline=METHOD]           one page, tables and plots of all runs in a folder
  xrvlm data check data=cub data.root=DIR           what of a data set is there and what is missing
  xrvlm demo [small=true]                           the main job on the embedded default, offline

`torchrun --nproc_per_node=2 -m xrvlm.cli adapt ...` does one run by several processes.

Behind each command: Hydra overrides (`key=value`), `--cfg job` shows the configuration, `-m` sweeps over
comma-separated values, `--help` lists the choices, `--config-dir DIR` adds configurations of your own.
"""

# Values that are paths or names: taken as they stand, whatever Hydra's grammar would make of their characters.
LITERAL = ("data.root", "data.file", "data.path", "data.name", "images", "out", "run", "runs", "classes",
           "against", "baseline", "data.class_names", "text.templates", "text.descriptions", "text.parts",
           "backbone.pretrained", "features.cache")
GROUPS = ("backbone", "data", "features", "method", "recipe", "experiment")
SPLIT = ("adapt", "zeroshot")            # commands that several processes can do together
LISTS = ("data.class_names", "text.templates")    # may also be a list in Hydra's grammar
SCALARS: dict[str, tuple[type, str]] = {
    "seed": (int, "a whole number"), "workers": (int, "a whole number, at least 0"), "topk": (int, "a whole number"),
    "folds": (int, "a whole number, at least 2"),
    "val": (bool, "true or false"), "force": (bool, "true or false"), "small": (bool, "true or false"),
    "pictures": (bool, "true or false"), "all_shots": (bool, "true or false"), "photos": (bool, "true or false"),
    "runs": (str, "a folder"), "device": (str, "auto, cpu, cuda or mps"), "images": (str, "a file or a folder"),
    "precision": (str, "auto, fp32, bf16 or fp16"), "selection": (str, "last or val"),
    "protocol": (str, "few_shot or base_to_new"), "among": (str, "run or data"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake of the user's, 130 for an interruption."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"xrvlm {version('xrvlm')}")
        return 0
    words = " ".join(arguments[:2])
    command = words if words in COMMANDS else arguments[0]
    overrides = arguments[len(command.split()):]
    try:
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}; available: {', '.join(COMMANDS)}; see `xrvlm --help`")
        with naming_keys(), joined() as group:
            return _run(group, command, [quote(override) for override in overrides])
    except UserError as error:
        _tell(error)
        return 2


def _run(group: Group, command: str, overrides: list[str]) -> int:
    """The exit code. Where several processes fail, the first one tells why: the others do because it did."""
    try:
        if group.world > 1 and (command not in SPLIT or {"-m", "--multirun"} & set(overrides)):
            raise UserError(f"several processes do one run of {' or '.join(SPLIT)} together: start other commands, and "
                            "a sweep, without torchrun")
        for group_name in GROUPS:
            if f"{group_name}=null" in overrides:
                raise UserError(f"{group_name}=null names no configuration: leave {group_name}= out for the default")
        return 2 if _run_hydra(command, overrides) else 0
    except (UserError, PeerFailedError, HydraException, OmegaConfBaseException) as error:
        if group.first_to_fail():
            _tell(error)
        return 2
    except KeyboardInterrupt:
        if group.first_to_fail():
            print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except Exception:
        if group.first_to_fail():
            raise
        return 2


def config_name(command: str) -> str:
    """The primary configuration of a command of one word or two: `data check` has conf/data_check.yaml."""
    return command.replace(" ", "_")


def quote(override: str) -> str:
    """`data.root=~/my (birds), all` with its value quoted for Hydra's grammar, where the key takes a path or a name."""
    key, equals, value = override.partition("=")
    quoted = value[:1] == value[-1:] and value[:1] in ("'", '"') and len(value) > 1
    a_list = key in LISTS and value.startswith("[") and value.endswith("]")
    if not equals or key.lstrip("+") not in LITERAL or quoted or a_list or value in ("null", ""):
        return override
    if key == "runs" and value.startswith("~"):
        value = os.path.expanduser(value)    # noqa: PTH111 (Hydra too writes there; a trailing slash stays)
    # backslashes count as such but before a quote, where the grammar wants them twice
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{value.replace('${', chr(92) + '${')}'"


def _run_hydra(command: str, overrides: list[str]) -> list[str]:
    """Compose and run; returns the mistakes that jobs made and told."""
    mistakes: list[str] = []
    task = partial(_task, command, os.getpid(), mistakes)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")    # exceptions reach `main`, which tells them in one line
    before = sys.argv
    sys.argv = [f"xrvlm {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://xrvlm.conf", config_name=config_name(command))(task)()
    finally:
        sys.argv = before
    return mistakes


def _task(command: str, main_process: int, mistakes: list[str], config: DictConfig) -> None:
    """One job. A mistake is told at once; in a sweep the other jobs go on."""
    logging.captureWarnings(True)
    if not processes().first:
        logging.disable(logging.WARNING)
    try:
        _check_read(command)
        _check_scalars(command, config)
        COMMANDS[command](config)
    except (UserError, OmegaConfBaseException) as error:
        if processes().first_to_fail():
            _tell(error)
        mistakes.append(str(error))
        if os.getpid() != main_process:      # a launcher's process: its engine must see that the job failed
            raise


def _check_read(command: str) -> None:
    """UserError for a key that the command line adds (`+key=`) and nothing reads; groups check their own."""
    added = [override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task
             if override.startswith("+")]
    for key in added:
        place, _, name = key.rpartition(".")
        if key.split(".")[0] in (*GROUPS, "hydra"):
            continue
        own = compose(config_name(command))
        there = OmegaConf.select(own, place) if place else own
        if not isinstance(there, DictConfig) or name not in list(there.keys()):
            raise UserError(f"nothing reads {key}: leave it out; `xrvlm {command} --cfg job` shows what there is")


def _check_scalars(command: str, config: DictConfig) -> None:
    """UserError for a value at the top level that is of another kind than the program reads."""
    for name, (kind, words) in SCALARS.items():
        if name not in config or OmegaConf.is_missing(config, name):
            continue
        value = config[name]
        if name == "images" and value is None and command == "explain":    # those of the run
            continue
        if type(value) is not kind or (isinstance(value, int) and name == "workers" and value < 0):
            raise UserError(f"{name} must be {words}, found {'null' if value is None else repr(value)}")


def _tell(error: Exception) -> None:
    message = str(error) or type(error).__name__
    if isinstance(error, MissingMandatoryValue):
        message = f"{error.full_key} is not given; add {error.full_key}=VALUE"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)

