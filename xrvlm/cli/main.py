"""The command line: `xrvlm COMMAND [DIR ...] key=value ...`. What each command does stands in commands.py.

Nothing heavy is imported before a command needs it: `xrvlm --help` imports neither hydra nor torch.
"""

import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from xrvlm.cli.usage import HELP, MORE
from xrvlm.errors import CONTROL, SPEAKS_KEYS, UserError, check_choice, unknown

# Values that are paths or names: taken literally, whatever Hydra's grammar would make of their characters.
LITERAL = ("data.root", "data.file", "data.path", "data.name", "images", "out", "run", "runs", "classes",
           "against", "baseline", "data.class_names", "text.templates", "text.descriptions", "text.parts",
           "data.hierarchy", "data.extra", "unknown", "parts", "answer", "kind",
           "backbone.pretrained", "second.pretrained", "second.model", "features.cache", "cache")
# the keys of arguments without `key=`, in their order; `images` takes all that follow
POSITIONAL = {"adapt": ["data.root"], "zeroshot": ["data.root"], "compare": ["data.root"], "data check": ["data.root"],
              "eval": ["run"], "export": ["run"], "predict": ["run", "images"], "explain": ["run", "images"],
              "report": ["runs"], "suspects": ["data.root"], "next": ["run", "images"], "serve": ["run"],
              "push": ["run", "repo"], "describe": ["data.root"], "prompts": ["data.root"]}
MANY = {"serve": "run"}                  # of a command, the key that takes all arguments that follow; else `images`
SHOWN = {"data.root": "DIR", "run": "RUN", "images": "PHOTO_OR_DIR ...", "runs": "RUNS",
         "repo": "OWNER/NAME"}           # of these, in messages
KEY = r"[~+]*[\w@./:-]+="                  # how an argument with a key begins
SWEEP = {"-m", "--multirun"}
FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", *SWEEP)
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p",
              "--info", "-i", "--experimental-rerun")
GROUPS = ("backbone", "second", "data", "features", "method", "recipe", "experiment")
TOGETHER = ("adapt", "zeroshot")         # commands that several processes can do together
RESUMED = ("adapt", "zeroshot", "predict", "compare", "demo")     # each run that is finished, or each image, is kept
# keys whose value may also be a list in Hydra's grammar
LISTS = ("data.class_names", "text.templates", "images", "classes", "parts", "answer")
NAMES = ("adapt", "zeroshot", "eval", "predict", "explain", "export", "compare", "report", "serve", "push", "demo",
         "suspects", "next", "describe", "prompts", "data check", "cache list", "cache prune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake of the user's, 130 for an interruption."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="backslashreplace")      # an ASCII terminal is no error
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version
        print(f"xrvlm {version('xrvlm')}")
        return 0
    of_two = any(name.startswith(f"{arguments[0]} ") for name in NAMES)
    command = " ".join(arguments[:1 + of_two])
    try:
        with naming_keys():
            if command in ("completion", "__complete"):
                from xrvlm.cli.complete import answer
                print(answer(command, arguments[1:]), flush=True)
                return 0
            if command not in NAMES:
                raise unknown("command", command, (*NAMES, "completion"), "see `xrvlm --help`")
            given = _with_keys(command, arguments[len(command.split()):])
            _tell_repeated(given)
            given.sort(key=lambda each: each not in SWEEP)         # Hydra wants the flag first
            lists = (*LISTS, MANY[command]) if command in MANY else LISTS
            overrides = [quote(each, sweep=bool(SWEEP & set(given)), lists=lists) for each in given]
            with _group() as group:
                return _run(group, command, overrides)
    except UserError as error:
        _tell(error)
        return 2
    except BrokenPipeError:                  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())    # what is left is flushed at exit
        return 0


def _help() -> str:
    from xrvlm.files import shipped

    choices = [textwrap.fill(f"{f'{group}=':10}{', '.join(shipped(group))}", 110, subsequent_indent=" " * 10)
               for group in ("method", "backbone", "second", "data", "recipe")]
    return "\n".join([HELP, *choices, MORE.rstrip(), ""])


def _with_keys(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with those that have no key given theirs: `adapt DIR` is `adapt data.root=DIR`."""
    named = {each.partition("=")[0] for each in arguments if not os.path.exists(each)}       # noqa: PTH110
    keys = [key for key in POSITIONAL.get(command, ()) if key not in named]
    found, several, values, many = [], [], iter(arguments), MANY.get(command, "images")
    for argument in values:
        if argument == "--":
            continue
        if argument in WITH_VALUE:
            found += [argument, next(values, "")]
        elif argument.startswith("-") and not os.path.exists(argument):      # noqa: PTH110
            if argument not in FLAGS and argument.partition("=")[0] not in WITH_VALUE:
                from xrvlm.cli.complete import dashed
                raise dashed(command, argument, next(values, ""))
            found.append(argument)
        elif "=" in argument and not os.path.exists(argument):    # noqa: PTH110
            if not re.match(KEY, argument):
                from xrvlm.cli.complete import unreadable
                raise unreadable(argument)
            found.append(argument)
        elif keys and keys[0] != many:
            found.append(f"{keys.pop(0)}={argument}")
        elif keys:
            several.append(argument)
        else:
            keyed = "data.root=DIR" if command == "eval" else "key=value"
            raise UserError(f"what is {argument!r}? `xrvlm {command}` takes {_usage(command)} and {keyed}; see --help")
    told = several or "run" in named or any(each.startswith(("-", "images=")) for each in found)
    if command == "predict" and keys == ["images"] and not told:
        alone = next(each[4:] for each in found if each.startswith("run="))
        raise UserError(f"`xrvlm predict` takes {_usage(command)}: a run (its folder, or latest) before the photos; "
                        f"there is {alone} alone. Without a run: classes=names.txt images=PHOTO_OR_DIR")
    return found + ([f"{many}={several[0]}"] if len(several) == 1 else [_list(many, several)] if several else [])


def _usage(command: str) -> str:
    return " ".join(SHOWN[key] for key in POSITIONAL.get(command, ())) or "no argument"


def _list(key: str, values: Sequence[str]) -> str:
    return f"{key}=[{','.join(quote(f'images={value}').partition('=')[2] for value in values)}]"


@contextmanager
def naming_keys() -> Iterator[None]:
    """Inside, messages name the keys of the command line instead of arguments in Python (`errors.option`)."""
    before = os.environ.get(SPEAKS_KEYS)
    os.environ[SPEAKS_KEYS] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SPEAKS_KEYS, None)
        else:
            os.environ[SPEAKS_KEYS] = before


@contextmanager
def _group() -> Iterator[Any]:
    """The processes of a run that torchrun started, or this process alone."""
    if os.environ.get("WORLD_SIZE", "1").strip() in ("", "1"):
        yield None
        return
    from xrvlm.distributed import joined
    with joined() as group:
        yield group


def _run(group: Any, command: str, overrides: list[str]) -> int:
    """The exit code. Where several processes fail, the first one says why: the others fail because it did."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    mistakes = (UserError, HydraException, OmegaConfBaseException)
    if group is not None:
        from xrvlm.distributed import PeerFailedError
        mistakes = (*mistakes, PeerFailedError)
    try:
        if group is not None and (command not in TOGETHER or SWEEP & set(overrides)):
            raise UserError(f"several processes do one run of {' or '.join(TOGETHER)} together: start other commands, "
                            "and a sweep, without torchrun")
        for override in overrides:
            key, _, value = override.partition("=")
            check_choice(key, value, (*GROUPS, "hydra"))
        if any(each.startswith("hydra/sweeper=") for each in overrides):
            from xrvlm.cli.search import prepared
            overrides = prepared(command, overrides)
        return 2 if _run_hydra(command, overrides) else 0
    except mistakes as error:
        if _speaks(group):
            from xrvlm.cli.complete import of_hydra
            _tell(of_hydra(error, command, overrides))
        return 2
    except KeyboardInterrupt:
        if _speaks(group):
            print("interrupted" + "; the same command goes on where it was" * (command in RESUMED), file=sys.stderr)
        return 130
    except Exception:
        if _speaks(group):
            raise
        return 2


def _speaks(group: Any) -> bool:
    return group is None or group.first_to_fail()


def config_name(command: str) -> str:
    """The primary configuration of a command of one word or two: `data check` has conf/data_check.yaml."""
    return command.replace(" ", "_")


def quote(override: str, sweep: bool = False, lists: Sequence[str] = LISTS) -> str:
    """`data.root=~/my (birds), all` with its value quoted for Hydra's grammar, where the key takes a path or a name.

    In a sweep a comma parts two values, unless there is a file or a folder of the whole name, or it is a template.
    """
    key, equals, value = override.partition("=")
    quoted = value[:1] == value[-1:] and value[:1] in ("'", '"') and len(value) > 1
    a_list = key in lists and value.startswith("[") and value.endswith("]")
    if not equals or key.lstrip("+") not in LITERAL or quoted or a_list or value in ("null", ""):
        return override
    if sweep and re.match(r"(choice|shuffle)\(", value):
        return override
    if sweep and "," in value and not (os.path.exists(os.path.expanduser(value)) or "{" in value):    # noqa: PTH110, PTH111
        return f"{key}=" + ",".join(quote(f"{key}={each.strip()}").partition("=")[2] for each in value.split(","))
    if key == "runs" and value.startswith("~"):
        value = os.path.expanduser(value)    # noqa: PTH111 (Hydra too writes there; a trailing slash stays)
    # backslashes count as such but before a quote, where the grammar wants them twice
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{value.replace('${', chr(92) + '${')}'"


def _run_hydra(command: str, overrides: list[str]) -> list[str]:
    """Compose and run; returns the mistakes that jobs made, each reported when it was made."""
    import hydra

    mistakes: list[str] = []
    task = partial(_task, command, os.getpid(), mistakes)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")    # exceptions reach `main`, which reports them in one line
    before = sys.argv
    sys.argv = [f"xrvlm {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://xrvlm.conf", config_name=config_name(command))(task)()
    except OSError as error:                 # Hydra's own files, of a sweep
        from xrvlm.cli.complete import of_disk
        raise of_disk(error) from None
    except ValueError as error:              # of Optuna, at the end of a study
        if "No trials are completed" not in str(error):
            raise
        raise UserError("no trial of the search was finished, for the reasons above") from None
    finally:
        sys.argv = before
    return mistakes


def _task(command: str, main_process: int, mistakes: list[str], config: Any) -> float | None:
    """One job; of a search, its objective. A mistake is reported at once; in a sweep the other jobs go on."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    from xrvlm.cli.commands import COMMANDS
    from xrvlm.cli.runs import check_read, check_scalars, import_own_methods

    logging.captureWarnings(True)
    search = not HydraConfig.get().sweeper._target_.endswith(".BasicSweeper")
    if int(os.environ.get("RANK", "0") or 0):
        logging.disable(logging.WARNING)
    try:
        with naming_keys():                  # a launcher's process did not come through `main`
            check_read(command)
            check_scalars(command, config)
            import_own_methods()
            if not search:
                COMMANDS[command](config)
                return None
            from xrvlm.cli.search import objective
            return objective(command, config, COMMANDS[command])
    except (UserError, OmegaConfBaseException) as error:
        if _first_to_fail():
            _tell(error, command)
        mistakes.append(str(error))
        if search or os.getpid() != main_process:      # the sweeper, or a launcher's engine, must see that it failed
            raise
    except Exception as error:
        if search:                           # its sweeper tells the message alone, and goes on
            logging.exception("this trial failed")
            mistakes.append(str(error))
        raise


def _tell_repeated(given: Sequence[str]) -> None:
    pairs = [each.split("=", 1) for each in given if "=" in each and not each.startswith("hydra")]
    for key, last in dict(pairs).items():
        if values := [value for name, value in pairs if name == key and value != last]:
            print(f"warning: {key} is given as {' and as '.join([*values, last])}: {last} counts", file=sys.stderr)


def _first_to_fail() -> bool:
    """Whether no other process of a distributed run has failed before."""
    return "xrvlm.distributed" not in sys.modules or sys.modules["xrvlm.distributed"].processes().first_to_fail()


def _tell(error: Exception, command: str = "") -> None:
    message = str(error) or type(error).__name__
    if type(error).__name__ == "MissingMandatoryValue":
        key = getattr(error, "full_key", "")
        short = f", as in `xrvlm {command} {_usage(command)}`" if key in POSITIONAL.get(command, ()) else ""
        message = f"{key} is not given; add {key}=VALUE{short}"
    print(f"error: {CONTROL.sub(lambda found: ascii(found[0])[1:-1], ' '.join(message.split()))}", file=sys.stderr)
