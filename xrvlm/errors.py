"""The one exception for what a user can mend, how its message names an option, and the checks of given values."""

import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

# set while the command line runs: an environment variable, so that processes which decode images inherit it
SPEAKS_KEYS = "XRVLM_ERRORS_NAME_KEYS"
_NO_VALUE: Any = object()
# a terminal follows them, they make a text look like another one, or no file can hold them
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MOST_ALIASES, LARGEST_WHOLE = 10_000, 2**64
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """A mistake in the input, told in one line that names the fix. The command line exits with code 2 on it."""


class WriteError(UserError):
    """A file cannot be written, such as on a full disk."""


def either(in_python: str, on_the_command_line: str) -> str:
    """The words for whoever reads the message."""
    return on_the_command_line if _speaks_keys() else in_python


def _speaks_keys() -> bool:
    return bool(os.environ.get(SPEAKS_KEYS))


def option(name: str, value: Any = _NO_VALUE) -> str:
    """How the reader writes an option: `skip_damaged=True` in Python, `data.skip_damaged=true` on the command line.

    Args:
        name: as the command line has it, with its group: "data.skip_damaged". Python knows the last word of it.
        value: what to set it to, as a Python object; left out, the name stands alone.
    """
    if not _speaks_keys():
        word = name.rpartition(".")[2]
        return word if value is _NO_VALUE else f"{word}={value!r}"
    return name if value is _NO_VALUE else f"{name}={_as_key_value(value)}"


def _as_key_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_key_value, value))}]"
    return str(value)


def unknown(kind: str, name: str, available: Iterable[str], hint: str = "") -> UserError:
    """`unknown template list 'phot'; did you mean 'photo'?; available: birds, photo; or pass a path`.

    Of more than 40 names, the nearest is shown alone.
    """
    known, word = sorted(available), name.rpartition(".")[2]
    close = [each for each in known if each.startswith(f"{name} ") or each.rpartition(".")[2] == word]
    group = [each for each in known if each.startswith(f"{name.rpartition('.')[0]}.")]     # recipe.* for recipe.lr
    known = group or known
    shown = ", ".join(known[:40]) + (f", and {len(known) - 40} more" if len(known) > 40 else "")
    words = {each.rpartition(".")[2]: each for each in reversed(known)}      # `recipe.` of all of them tells nothing
    close = close or [words[each] for each in get_close_matches(word, words, n=1)]
    parts = [f"unknown {kind} {name!r}", *(f"did you mean {each!r}?" for each in close[:1])]
    if not close or len(known) <= 40:
        parts.append(f"available: {shown or 'none'}")
    if hint:
        parts.append(hint)
    return UserError("; ".join(parts))


def check_choice(key: str, value: str, groups: Collection[str]) -> None:
    """UserError where `key` is one of `groups` of configurations and `value`, as typed, can be no name in it."""
    name = key.lstrip("+").partition("@")[0]
    words = [word.strip() for word in re.split(r"[,\[\]]", value)]
    no_name = r"[-+]?(null|true|false|inf|nan|[\d_.]+(e[-+]?\d+)?)"
    if name in groups and (any(re.fullmatch(no_name, word, re.IGNORECASE) for word in words)
                           or re.match(r"\s*\[.*[{]", value)):
        raise UserError(f"{key}={value} names no configuration: leave {name}= out for the default")


def imported(path: str, what: str) -> Any:
    """The object at the dotted `path`; UserError, which says `what` it is, where there is no such module or name."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot find the {what} {path}: {error}; install the package that holds it, or put its folder "
                        "on PYTHONPATH, as in PYTHONPATH=. xrvlm ...") from error


def odd_sign(text: str) -> str:
    """In words, the first sign of `text` that no name may hold; "" where there is none."""
    found = CONTROL.search(text)
    if found is None:
        return ""
    if found[0] <= "\u2069":
        return "a control character" if found[0] <= "\x9f" else "a sign that turns the direction of the text"
    return "half a character, which is not UTF-8" if sys.getfilesystemencoding() == "utf-8" else \
        f"signs that this system's encoding, {sys.getfilesystemencoding()}, lacks (set LC_ALL=C.UTF-8)"


def plain_text(value: Any) -> Any:
    """`value`, of a file that may come from anyone. ValueError where a text in it holds an `odd_sign`.

    ValueError, too, for a whole number beyond 64 bits, and where YAML's aliases repeat a value without end.
    """
    waiting, seen, again = [value], set[int](), 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            again += id(each) in seen
            seen.add(id(each))
            if again > MOST_ALIASES:
                raise ValueError("it refers to itself or repeats itself without end")
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, str) and (odd := odd_sign(each)):
            raise ValueError(f"a text with {odd}: {each[:60]!r}")
        elif isinstance(each, int) and abs(each) > LARGEST_WHOLE:
            raise ValueError("a whole number of more than 64 bits")
    return value


def seconds_of(name: str, value: Any, example: str, units: str, unit: str = "") -> float:
    """A time such as `90s` or `1.5h` in seconds.

    Args:
        name: the option that holds it, for the UserError of another value.
        example: times that the message shows.
        units: the letters that are read, of `SECONDS`.
        unit: that of a bare number; "": a bare number is an error.
    """
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) *([{units}]{'?' if unit else ''})", str(value).strip())
    seconds = float(found[1]) * SECONDS[found[2] or unit] if found else 0.0
    if not seconds:
        raise UserError(f"{option(name)} must be a time such as {example}; found {value!r}")
    return seconds


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: UserError where an argument has another type than its annotation, before anything is done."""
    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        parameters = signature(function).parameters
        if strange := _strange(kwargs, parameters):
            raise unknown(f"argument of {function.__name__}", strange, parameters)
        check_types(dict(zip(parameters, args, strict=False)) | kwargs, _hints(function))
        return function(*args, **kwargs)

    return checked


def check_types(given: Mapping[str, Any], hints: Mapping[str, Any], group: str = "") -> None:
    """UserError for the first of the values `given` that is of another type than its name has in `hints`.

    Args:
        group: of the options, for the message: "features" where the command line says `features.views`.
    """
    for name, value in given.items():
        if name not in hints or fits(value, hints[name]):
            continue
        named = option(f"{group}.{name}" if group else name)
        if typing.get_origin(hints[name]) is typing.Literal and isinstance(value, str):
            raise unknown(named, value, typing.get_args(hints[name]))
        wanted = in_words(hints[name], inside=isinstance(value, list | tuple))
        raise UserError(f"{named} must be {wanted}, found {_short(value)}")


def check_has(name: str, value: Any, what: str, *attributes: str) -> None:
    """UserError where the argument `name`, which should be `what`, lacks one of the `attributes` that tell one."""
    if isinstance(value, type) or not all(hasattr(value, attribute) for attribute in attributes):
        raise UserError(f"{name} must be {what}, found {_short(value)}")


def check_fields(record: Any, group: str = "", *, but: Sequence[str] = ()) -> None:
    """`check_types` of a dataclass's fields, for its `__post_init__`; those in `but` are not looked at."""
    check_types({name: value for name, value in vars(record).items() if name not in but},
                _hints(type(record)), group)


def check_options(target: Callable, given: Mapping[str, Any], group: str, kind: str = "option") -> None:
    """UserError where `target` has no option of a name in `given`, or one of another type, or that is not finite.

    The options of a class are its keyword-only parameters: the library passes the positional ones.
    """
    parameters: Mapping[str, Parameter] = signature(target).parameters
    chosen = {name: each for name, each in parameters.items() if each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD)}
    if isinstance(target, type) and chosen:
        parameters = chosen
    if strange := _strange(given, parameters):
        raise unknown(kind, option(f"{group}.{strange}"), [option(f"{group}.{known}") for known in parameters])
    check_types(given, _hints(target.__init__ if isinstance(target, type) else target), group)
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option(f'{group}.{name}')} must be a finite number, found {value}")


def _hints(target: Any) -> dict[str, Any]:
    """The annotations of `target`; none where one names what only a type checker imports."""
    try:
        return typing.get_type_hints(target)
    except NameError:
        return {}


def _strange(given: Iterable[str], parameters: Mapping[str, Parameter]) -> str | None:
    """The first of the names `given` that is no parameter."""
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
        return None
    return next((name for name in given if name not in parameters), None)


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`; True where a look at it cannot tell. A whole number is a float, too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (tuple, list, Sequence):
        counted = origin is tuple and arguments[-1] is not ...
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and (
            not counted or len(value) == len(arguments)) and all(
            fits(each, arguments[index if counted else 0]) for index, each in enumerate(value))
    if hint is float or hint is int:
        return isinstance(value, int | hint) and not isinstance(value, bool) and not _is_endless(value)
    checked = origin or hint
    return not isinstance(checked, type) or getattr(checked, "_is_protocol", False) or isinstance(value, checked)


def in_words(hint: Any, inside: bool = False) -> str:
    """The type `hint` as a message says it: "a whole number or None"; with `inside`, also what a list holds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(in_words(argument, inside) for argument in arguments))
    if origin is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if hint is bool or hint is type(None):
        return either("True or False", "true or false") if hint is bool else either("None", "null")
    if inside and origin in (list, Sequence) and str in arguments:
        return "a list of texts"
    if origin is tuple and arguments[-1] is not ...:
        return f"a list of {len(arguments)}: {', '.join(in_words(argument) for argument in arguments)}"
    names = {int: "a whole number", float: "a number", str: "a text", tuple: "a list", list: "a list",
             Sequence: "a list", Mapping: "a mapping", Callable: "a function"}
    found = names.get(origin or hint)
    return found or f"a {getattr(origin or hint, '__name__', hint)}"


def _is_endless(value: Any) -> bool:
    """Whether `value` is a whole number that no file of ours may hold (`plain_text`)."""
    return isinstance(value, int) and abs(value) > LARGEST_WHOLE


def _short(value: Any) -> str:
    if _is_endless(value):
        return "one of more than 64 bits"
    text = either("None", "null") if value is None else " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
