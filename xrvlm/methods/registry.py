"""The methods by name. A file conf/method/<name>.yaml registers one: its `_target_` is the class, the rest its options.

Other packages register theirs as entry points of the group `xrvlm.methods`: `name = package.module:Class`.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from xrvlm.backbones.base import Need
from xrvlm.errors import UserError, check_options, either, imported, option, unknown
from xrvlm.files import shipped, shipped_options

GROUP, TARGET = "method", "_target_"
# what runs call the classes that were written before they named methods as the registry does; never imported
FORMER = {
    "xrvlm.methods.clap.CLAP": "clap",
    "xrvlm.methods.clip_adapter.ClipAdapter": "clip_adapter",
    "xrvlm.methods.cocoop.CoCoOp": "cocoop",
    "xrvlm.methods.coop.CoOp": "coop",
    "xrvlm.methods.dclip.DCLIP": "dclip",
    "xrvlm.methods.gallop.GalLoP": "gallop",
    "xrvlm.methods.gda.GDA": "gda",
    "xrvlm.methods.linear_probe.LinearProbe": "linear_probe",
    "xrvlm.methods.lp_plus_plus.LPPlusPlus": "lp_plus_plus",
    "xrvlm.methods.plot.PLOT": "plot",
    "xrvlm.methods.prolip.ProLIP": "prolip",
    "xrvlm.methods.residual_probe.ResidualProbe": "residual_probe",
    "xrvlm.methods.task_res.TaskRes": "task_res",
    "xrvlm.methods.tip_adapter.TipAdapter": "tip_adapter",
    "xrvlm.methods.trans_clip.TransCLIP": "trans_clip",
    "xrvlm.methods.xr_vlm.XRVLM": "xr_vlm",
    "xrvlm.methods.xr_vlm_plus.XRVLMPlus": "xr_vlm_plus",
    "xrvlm.methods.zero_shot.ZeroShot": "zero_shot",
    "xrvlm.methods.zpe.ZPE": "zpe",
}


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
    """The class registered as `name` with its options, to be called with a tower and classes.

    Args:
        name: a registered name.
        options: values in place of those in conf/method/<name>.yaml.

    Raises:
        UserError: no method has this name, or the method has no such option; the message lists those there are.
    """
    if name not in targets():
        raise unknown("method", name, targets(), "or pass a subclass of xrvlm.Method")
    made = imported(targets()[name], GROUP)
    check_options(made, options, GROUP, f"option of {name}")
    values = shipped_options(GROUP, name) if name in shipped(GROUP) else {}
    return partial(made, **{key: value for key, value in values.items() if not key.startswith("_")} | options)


def name_of(method: type) -> str:
    """The registered name of a class, the shortest of several; its dotted path where it has none."""
    path = f"{method.__module__}.{method.__qualname__}"
    return min((name for name, target in targets().items() if target == path or _leads_to(target, method)),
               key=len, default=path)


def _leads_to(target: str, method: type) -> bool:
    """Whether another package registers `method` by a path that it is not defined at."""
    if target.startswith("xrvlm.") or target.rpartition(".")[2] != method.__name__:
        return False
    with suppress(UserError):
        return imported(target, GROUP) is method
    return False


def class_called(name: str) -> type:
    """The inverse of `name_of`: the class of a registered name, or of the dotted path of one that is imported already.

    A file may come from anyone, so nothing is imported because a file names it. A path that runs were saved with before
    is looked up in `FORMER`.

    Raises:
        UserError: the name is neither registered nor that of an imported method, or it names something else.
    """
    from xrvlm.methods.base import Method

    name = FORMER.get(name, name)
    if name not in targets():
        found = next((each for each in _below(Method) if f"{each.__module__}.{each.__qualname__}" == name), None)
        if found is None and "." in name and not name.startswith("xrvlm."):
            fix = either("import its module first", "add --config-dir DIR, the folder with its YAML")
            raise UserError(f"the file names the method {name}, which is not registered, and nothing is imported "
                            f"because a file says so: {fix}, or install the package that registers it (by the entry "
                            "point xrvlm.methods)")
        if found is None:
            raise unknown("method", name, targets(), "install the package or the version of xrvlm that has it")
        return found
    found = imported(targets()[name], GROUP)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{name} is not a method of xrvlm: a method is a subclass of xrvlm.Method")
    return found


def _below(method: type) -> Iterator[type]:
    for each in method.__subclasses__():
        yield each
        yield from _below(each)


def open_methods() -> list[str]:
    """The methods that can score new classes, each with the options it needs for that: "coop with a shared context"."""
    named: dict[str, Any] = {}
    for name in targets():
        with suppress(UserError):        # a package that cannot be imported says so when its method is asked for
            method = class_called(name)
            named[name_of(method)] = method
    always = [name for name, method in named.items() if method.open_classes]
    return always + [f"{name} with {method.opens_with}" for name, method in named.items()
                     if method.opens_with and not method.open_classes]


def check_second_is_read(needs: Collection[Need], name: str) -> None:
    """UserError where the method `name` reads nothing of a second tower."""
    if "second" not in needs:
        raise UserError(f"{name} reads nothing of a second tower or of a second look as parts: use "
                        f"{option('method', 'amu_tuning')}, linear_probe or xr_vlm_plus, or one of the methods that "
                        f"take {option('method.inputs', 'pooled+second')}; or leave the second out")
