"""The steps of an epoch: whose rows are whose, and one pass of the language side for several batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.errors import UserError
from xrvlm.methods.base import Method
from xrvlm.text.learned_prompts import ClassPrompts


@contextmanager
def one_text_pass(method: Method, clip: FrozenCLIP, step: Callable[[], None]) -> Iterator[list[nn.Parameter]]:
    """In here `method.class_features`, or the `class_prompts` that a method makes them of with weights of its own,
    return what they returned at the start. Gives the parameters that this was made of: hold them back from the steps in
    here; at the end they take one, with the sum of their gradients.
    """
    prompts = getattr(method, "class_prompts", None)
    owner, name = (prompts, "forward") if isinstance(prompts, ClassPrompts) else (method, "class_features")
    made = getattr(owner, name)(clip)
    if not isinstance(made, Tensor):
        raise UserError(f"{method.label} makes class features of every image anew, so that batches cannot share them: "
                        "set recipe.text_every=1, or leave recipe= out")
    held = _made_of(made)
    shown = made.detach().requires_grad_(made.requires_grad)
    object.__setattr__(owner, name, lambda _: shown)                   # in front of the owner's own
    try:
        yield held
    finally:
        object.__delattr__(owner, name)
    if shown.grad is not None:
        made.backward(shown.grad)
    if held:
        step()


def _made_of(value: Tensor) -> list[nn.Parameter]:
    """The parameters that `value` was computed from, found in what autograd remembers of it."""
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
