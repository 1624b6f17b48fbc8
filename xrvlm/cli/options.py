"""Options that come from outside, held against the signature of what takes them."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from xrvlm.errors import UserError, unknown


def check_options(target: Callable, given: Mapping[str, Any], prefix: str) -> None:
    """UserError where `target` takes no option of a name in `given`, or one of another kind than its annotation says.

    `prefix` is the config group that the error names: "method" for `method.image_parts`.
    """
    parameters = inspect.signature(target).parameters
    keywords = {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    if isinstance(target, type) and keywords:    # what stands before them is handed over by the program
        parameters = keywords
    hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    for name, value in given.items():
        if name not in parameters:
            raise unknown("option", f"{prefix}.{name}", (f"{prefix}.{known}" for known in parameters))
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{prefix}.{name} must be {_words(hints[name])}, found {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (tuple, list):
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True                          # a kind that YAML does not have: the function's own business


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (tuple, list):
        return "a list"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
