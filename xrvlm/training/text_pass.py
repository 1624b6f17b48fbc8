"""One computation of the class features for several batches (`Recipe.text_every`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError, option
from xrvlm.methods.base import Method
from xrvlm.text.learned_prompts import ClassPrompts


@contextmanager
def shared_class_features(method: Method, clip: FrozenCLIP, step: Callable[[], None]) -> Iterator[list[nn.Parameter]]:
    """Cache the class features across several batches; yields the parameters that they were computed from.

    Inside, `method.class_features` returns what it returned on entry. Of a method that maps prompts by trained weights,
    the output of its `class_prompts` is cached instead. Hold the yielded parameters back from the steps inside: on exit
    they are stepped once, with the summed gradients.
    """
    prompts = getattr(method, "class_prompts", None)
    owner, name = (prompts, "forward") if isinstance(prompts, ClassPrompts) else (method, "class_features")
    made = getattr(owner, name)(clip)
    if not isinstance(made, Tensor):
        raise UserError(f"{method.label} computes class features for every image, so that batches cannot share them: "
                        f"set {option('recipe.text_every', 1)}, or take the method's own {option('recipe')}")
    held = _made_of(made)
    shown = made.detach().requires_grad_(made.requires_grad)
    object.__setattr__(owner, name, lambda _: shown)                   # hides the method of the class
    try:
        yield held
    finally:
        object.__delattr__(owner, name)
    if shown.grad is not None:
        made.backward(shown.grad)
    if held:
        step()


def _made_of(value: Tensor) -> list[nn.Parameter]:
    """The parameters that `value` was computed from, found in its autograd graph."""
    if isinstance(value, nn.Parameter):
        return [value] if value.requires_grad else []
    found: list[nn.Parameter] = []
    waiting, seen = [value.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (parameter := getattr(node, "variable", None)) is not None:
            found.append(parameter)
        waiting += [before for before, _ in node.next_functions]
    return found
