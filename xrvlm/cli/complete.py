"""Shell completion: commands, the keys of a command, the configurations of a group, files and folders.

It reads the YAML files alone, so that a completion takes no longer than `xrvlm --help`.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from xrvlm.cli.main import GROUPS, NAMES, POSITIONAL, config_name
from xrvlm.cli.usage import SCALARS
from xrvlm.errors import UserError, unknown
from xrvlm.files import packaged, shipped, shipped_options

SHELLS = {
    "bash": """\
_xrvlm() {
    local IFS=$'\\n' word="${COMP_LINE:0:$COMP_POINT}"
    COMPREPLY=( $(xrvlm __complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" "${word##* }" 2>/dev/null) )
    if [[ "$COMP_WORDBREAKS" == *=* && "${word##* }" == *=* ]]; then
        COMPREPLY=( "${COMPREPLY[@]#*=}" )
    fi
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=/] ]] && compopt -o nospace
}
complete -o default -F _xrvlm xrvlm""",
    "zsh": """\
#compdef xrvlm
_xrvlm() {
    local -a found
    found=( ${(f)"$(xrvlm __complete ${words[2,CURRENT-1]} "${words[CURRENT]}" 2>/dev/null)"} )
    compadd -Q -S '' -a found
}
compdef _xrvlm xrvlm""",
    "fish": """\
complete -c xrvlm -f -a '(xrvlm __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'""",
}
CHOICES = {"run": ("latest",)} | {name: get_args(kind) for name, kind in SCALARS.items() if get_args(kind)}
PATHS = ("data.root", "data.file", "images", "run", "runs", "out", "cache", "classes", "features.cache",
         "data.class_names", "data.extra", "text.templates", "text.descriptions", "text.parts", "backbone.pretrained")


def answer(command: str, words: Sequence[str]) -> str:
    """What `completion SHELL` prints, and `__complete WORDS`, which the shell calls."""
    return script(words) if command == "completion" else "\n".join(complete(words))


def script(arguments: Sequence[str]) -> str:
    """What `eval "$(xrvlm completion SHELL)"` runs; UserError for another shell."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UserError(f"say `xrvlm completion` with one of {', '.join(SHELLS)}")
    return SHELLS[arguments[0]]


def complete(words: Sequence[str]) -> list[str]:
    """What the last of `words`, the arguments of `xrvlm` so far, may become."""
    *before, last = words or [""]
    command = next((name for name in NAMES if before[:len(name.split())] == name.split()), None)
    if command is None:
        begun = " ".join([*before, last])
        return sorted({name.split()[len(before)] for name in (*NAMES, "completion") if name.startswith(begun)
                       and len(name.split()) > len(before)})
    key, equals, value = last.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in _values(key, value) if choice.startswith(value)]
    flags = ["--help", "--cfg", "--multirun", "--config-dir"] if last.startswith("-") else []
    keys = [f"{name}=" for name in _keys(command, before)]
    return sorted(each for each in (*flags, *keys) if each.startswith(last)) + _paths(last)


def of_hydra(error: Exception, command: str, given: Sequence[str]) -> Exception:
    """The error itself, or for a key or a configuration that Hydra does not know, one that names the nearest."""
    if type(error).__name__ == "MissingConfigException" and "primary config" in str(error):
        return UserError(f"{' '.join(str(error).split('.')[0].split())}: --config-name needs --config-dir=DIR, with "
                         "the file in it; a file of settings here is an experiment: experiment=NAME")
    key = re.search(r"Could not override '([^']+)'", str(error))
    if key and key[1] == "runs" and POSITIONAL.get(command, ("",))[0] == "run":
        return UserError(f"`xrvlm {command}` has no runs=: name the run, or run=OTHER/latest for the newest in OTHER")
    if unread := getattr(error, "override", None):
        if (name := unread.partition("=")[0]).lstrip("+") not in (known := _keys(command, given)):
            return unknown("option", name, known)
        return UserError(f"cannot read {unread}: a value with signs such as , : [ ] {{ }} stands in two kinds of "
                         f"quotes, '{name}=\"...\"'; a list in brackets, {name}=[a,b]")
    if several := re.search(r"Ambiguous value for argument '(.*?)=(.*)'\n1", str(error), re.DOTALL):
        return UserError(f"{several[1]}={several[2]} holds several values: add -m for a run with each of them")
    choice = re.search(r"Could not find '(\w+)/([^']*)'", str(error))
    if key:
        return unknown("option", key[1], _keys(command, given))
    if choice and choice[1] == "data" and Path(choice[2]).expanduser().is_dir():
        return UserError(f"data= names a kind of data set; for the folder write data.root={choice[2]}")
    if choice and choice[1] in GROUPS:
        return unknown(choice[1], choice[2], shipped(choice[1]))
    return error


def of_disk(error: OSError) -> Exception:
    """The error itself or, where a file of Hydra's cannot be written, one that says so."""
    if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return error
    if not error.filename:               # where a terminal or a pipe is meant, or what takes its place
        return UserError(f"cannot write the output: {error.strerror}; send it where there is space")
    return UserError(f"cannot write {error.filename}: {error.strerror}; choose another folder with runs=, one that you "
                     "may write to and that has space")


def unreadable(argument: str) -> UserError:
    """What to write instead of `shots =4` or `=4`."""
    return UserError(f"cannot read {argument!r}: an option is KEY=VALUE, without a space before the = sign (and no "
                     "file or folder has this name)")


def dashed(command: str, argument: str, value: str) -> UserError:
    """What to write instead of `--shots 4`, the form of other programs; UserError, too, where there is no such key."""
    name, equals, given = argument.lstrip("-").partition("=")
    key, known = name.replace("-", "_"), _keys(command, ())
    if key not in known:
        hint = f"a photo of that name is ./{argument}, an option has no dashes: KEY=VALUE"
        return unknown("option", argument, known, hint)
    if not equals:
        given = value if value and "=" not in value and value[0] != "-" and SCALARS.get(key) is not bool else "true"
    return UserError(f"an option has no dashes here: instead of {argument} write {key}={given}")


def _keys(command: str, before: Sequence[str]) -> list[str]:
    """The keys at the top, the groups, and the options of the configurations that are chosen."""
    config, groups = _composition(config_name(command))
    chosen = groups | dict(word.split("=", 1) for word in before if word.partition("=")[0] in groups)
    nested = [f"{name}.{option}" for name, value in config.items() if isinstance(value, dict) for option in value]
    options = [f"{group}.{option}" for group, name in chosen.items() if name in shipped(group)
               for option in shipped_options(group, name) if not option.startswith("_")]
    return [*(name for name, value in config.items() if not isinstance(value, dict)), *chosen, *nested, *options]


def _composition(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The own keys of a primary configuration and what it takes over, and the groups with their defaults."""
    config: dict[str, Any] = yaml.safe_load((packaged("conf") / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    groups: dict[str, str] = {}
    taken: dict[str, Any] = {}
    for entry in config.pop("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            taken |= _composition(entry)[0]
        elif isinstance(entry, dict):
            groups |= {key: str(value) for key, value in entry.items() if key in GROUPS}
    return {key: value for key, value in (taken | config).items() if key != "hydra"}, groups


def _values(key: str, value: str) -> list[str]:
    if key in GROUPS:
        return list(shipped(key))
    if key in CHOICES:
        return [*CHOICES[key], *(_paths(value) if key in PATHS else ())]
    if SCALARS.get(key) is bool:
        return ["true", "false"]
    return _paths(value) if key in PATHS else []


def _paths(begun: str) -> list[str]:
    """Files and folders that begin so; a folder ends in a slash."""
    folder, _, name = begun.rpartition("/")
    root = Path(folder or ("/" if begun.startswith("/") else ".")).expanduser()
    if not root.is_dir() or begun.startswith("-"):
        return []
    prefix = begun[:len(begun) - len(name)]
    with os.scandir(root) as entries:
        return sorted(f"{prefix}{entry.name}{'/' * entry.is_dir()}" for entry in entries
                      if entry.name.startswith(name) and (name or not entry.name.startswith(".")))
