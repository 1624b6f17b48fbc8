"""The steps of an epoch: whose rows are whose, and one pass of the language side for several batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xrvlm.backbone import Features, FrozenCLIP
from xrvlm.context import ClassPrompts
from xrvlm.distributed import Group
from xrvlm.errors import UserError
from xrvlm.features import FeatureSource
from xrvlm.method import Method
from xrvlm.recipe import Recipe


def own_shares(source: FeatureSource, order: Sequence[Tensor], epoch: int, group: Group,
               device: torch.device) -> Iterator[tuple[int, Features, Tensor]]:
    """Of each batch of `order`: its number of rows, and features and labels of this process's share of them."""
    # one whose share is empty reads an image all the same, and leaves it out: it takes part in what all sum up
    shares = [batch[group.share(len(batch))] for batch in order]
    read = [share if len(share) else batch[:1] for share, batch in zip(shares, order, strict=True)]
    for batch, share, (x, y) in zip(order, shares, source.batches(read, epoch), strict=True):
        own = x.map(lambda value: _moved(value[:len(share)], device))                      # noqa: B023
        yield len(batch), own, _moved(y[:len(share)], device)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """On `device`. A copy to a GPU goes through pinned memory: from any other the host would wait for it."""
    if value.device == device:
        return value
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


class Stepper:
    """Takes the steps of a recipe; parameters that are `held` keep their gradients for a later one."""

    def __init__(self, method: nn.Module, recipe: Recipe, optimizer: torch.optim.Optimizer, group: Group):
        self.method, self.recipe, self.optimizer, self.group = method, recipe, optimizer, group

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        kept = [parameter.grad for parameter in held]
        for parameter in held:
            parameter.grad = None        # the optimiser leaves it as it is
        self.group.sum_gradients(self.method.parameters())
        if self.recipe.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(held, kept, strict=True):
            parameter.grad = gradient


@contextmanager
def one_text_pass(method: Method, clip: FrozenCLIP, stepper: Stepper) -> Iterator[list[nn.Parameter]]:
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
        stepper.step()


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
