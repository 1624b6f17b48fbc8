"""The methods by name. A file conf/method/<name>.yaml registers one: its `_target_` is the class, the rest its options.

Other packages register theirs as entry points of the group `xrvlm.methods`: `name = package.module:Class`.
"""

from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from xrvlm.errors import UserError, unknown
from xrvlm.files import shipped, shipped_options

GROUP, TARGET = "method", "_target_"


@cache
def targets() -> dict[str, str]:
    """{name: dotted path of the class} of every registered method, sorted by name."""
    own = {name: shipped_options(GROUP, name)[TARGET] for name in shipped(GROUP)}
    others = {entry.name: entry.value.replace(":", ".") for entry in entry_points(group="xrvlm.methods")}
    return dict(sorted({**others, **own}.items()))


def classes() -> dict[str, str]:
    """{name of the class: its dotted path}."""
    return {target.rpartition(".")[2]: target for target in targets().values()}


def find(name: str, **options: Any) -> partial:
    """The method registered as `name` with its options, those of `options` changed, still without tower and classes.

    UserError for a name that is not registered; it lists those that are.
    """
    if name not in targets():
        raise unknown("method", name, targets(), "or pass a subclass of xrvlm.Method")
    given = shipped_options(GROUP, name) if name in shipped(GROUP) else {}
    known = {key: value for key, value in given.items() if not key.startswith("_")}
    return partial(imported(targets()[name]), **known | options)


def name_of(method: type) -> str:
    """What a run calls the class: the name that it is registered by, the shortest of several; else its dotted path."""
    path = f"{method.__module__}.{method.__qualname__}"
    return min((name for name, target in targets().items() if target == path), key=len, default=path)


def class_called(name: str) -> type:
    """The class of a registry name, or of the dotted path of one that is not registered."""
    return imported(targets().get(name, name))


def imported(path: str) -> Any:
    """What the dotted `path` names; UserError where there is no such module or name."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot find the method {path}: {error}; install the package that holds it, or put its folder "
                        "on PYTHONPATH") from error


