"""A tree above the classes (species, genus, family), to say what is sure at least, and how bad a mistake is.

Letters: `n` images, `c` classes, `k` nodes: the classes first, in their order, then all nodes above them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xrvlm.errors import UserError

ROOT = ""                                # the parent of the topmost nodes; it is no node itself


@dataclass(frozen=True)
class Hierarchy:
    """Classes and the parent of every node. UserError for a cycle, for a class without a parent, for one that has a
    child.
    """

    classes: tuple[str, ...]
    parents: Mapping[str, str]           # node -> parent; of a topmost node: ROOT

    def __post_init__(self) -> None:
        if any(not isinstance(each, str) for pair in self.parents.items() for each in pair):
            raise UserError("the hierarchy holds something that is no name")
        if missing := [name for name in self.classes if name not in self.parents]:
            raise UserError(f"the hierarchy lacks {len(missing)} of {len(self.classes)} classes, such as "
                            f"{missing[0]!r}: give each class its place, by the name that the data have for it")
        above = set(self.parents.values())
        if both := [name for name in self.classes if name in above]:
            raise UserError(f"{both[0]!r} is a class and stands above another: name the node above otherwise")
        for node in self.parents:
            seen = {node}
            while (node := self.parents.get(node, ROOT)) != ROOT:
                if node in seen:
                    raise UserError(f"the hierarchy turns in a circle at {node!r}: a node stands above itself")
                seen.add(node)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The classes, then the nodes above them from the top down; nodes above no class are left out."""
        above = {node for name in self.classes for node in self.path(name)[1:]}
        return (*self.classes, *sorted(above, key=lambda node: (len(self.path(node)), node)))

    def path(self, node: str) -> list[str]:
        """The node and all above it, up to a topmost one."""
        found = []
        while node != ROOT:
            found.append(node)
            node = self.parents.get(node, ROOT)
        return found

    @cached_property
    def members(self) -> Tensor:
        """(c, k) 1 where a class is the node or stands below it."""
        column = {node: index for index, node in enumerate(self.nodes)}
        found = torch.zeros(len(self.classes), len(self.nodes), dtype=torch.float64)
        for row, name in enumerate(self.classes):
            found[row, [column[node] for node in self.path(name)]] = 1
        return found

    @cached_property
    def depth(self) -> Tensor:
        """(k,) how many nodes stand above each; a topmost node has 0."""
        return torch.tensor([len(self.path(node)) - 1 for node in self.nodes])

    def deepest(self, chances: Tensor, certainty: float) -> tuple[Tensor, Tensor]:
        """The deepest node whose classes together have at least `certainty` of `chances` (n, c): its index and chance.

        Both (n,). Of several as deep the most probable one; -1 and 1 where not even a topmost node has as much.
        """
        summed = chances.double() @ self.members                                           # (n, k)
        sure = summed >= certainty - 1e-9
        rank = torch.where(sure, self.depth + summed.clamp(max=1) / 2, -1.0)
        best = rank.argmax(1)
        some = sure.any(1)
        return torch.where(some, best, -1), torch.where(some, summed.gather(1, best[:, None])[:, 0], 1.0)

    @cached_property
    def common(self) -> Tensor:
        """(c, c) how many nodes two classes share, themselves included."""
        return self.members @ self.members.T

    @cached_property
    def severity(self) -> Tensor:
        """(c, c) the height of the lowest common ancestor, how many steps the deepest of its classes stands below it: 0
        of a class with itself; above all topmost nodes the tree's own height.
        """
        paths, height = [self.path(name) for name in self.classes], dict.fromkeys(self.nodes, 0)
        for path in paths:
            for steps, node in enumerate(path):
                height[node] = max(height[node], steps)
        top = max(map(len, paths))       # of what two classes have in common who share no node
        return torch.stack([torch.tensor([top, *(height[node] for node in reversed(path))]).float()[shared.long()]
                            for path, shared in zip(paths, self.common, strict=True)])

    def figures(self, chances: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures of probabilities (n, c) for images of the classes `labels` (n,), as fractions of 1.

        `level_0` ...: the share of images whose class's ancestor so far below the top, or the class itself where it
        stands higher, is the most probable of that level. `mistake_severity`: of the mistakes, the mean height of the
        lowest common ancestor (Bertinetto et al., arXiv:1912.09393). `hierarchical_precision`, `hierarchical_recall`:
        the share of the nodes above a prediction that are above the truth, and the other way about, over all images
        (Kiritchenko et al., 2006).
        """
        guesses = chances.argmax(1)
        found = {}
        for level in range(max(map(len, map(self.path, self.classes)))):
            groups = self.at_level(level)                                                  # (c,)
            summed = torch.zeros(len(chances), int(groups.max()) + 1, dtype=torch.float64)
            summed.index_add_(1, groups, chances.double())
            found[f"level_{level}"] = (summed.argmax(1) == groups[labels]).double().mean().item()
        wrong = guesses != labels
        shared, own = self.common[guesses, labels], self.common.diagonal()
        found["mistake_severity"] = self.severity[guesses, labels][wrong].mean().item() if wrong.any() else 0.0
        found["hierarchical_precision"] = (shared.sum() / own[guesses].sum()).item()
        found["hierarchical_recall"] = (shared.sum() / own[labels].sum()).item()
        return found

    def at_level(self, level: int) -> Tensor:
        """(c,) the number of each class's ancestor that stands `level` below the top; of a higher class its own."""
        names = [(path := self.path(name))[max(0, len(path) - 1 - level)] for name in self.classes]
        order = {name: index for index, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([order[name] for name in names])


def from_pairs(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    """{node: parent} of (node, parent) pairs; UserError for a node with two parents. `where` names their file."""
    found: dict[str, str] = {}
    for node, parent in pairs:
        if not node or node == parent:
            raise UserError(f"{where}: {node!r} stands below {parent!r}; each line names a node and another above it")
        if found.setdefault(node, parent) != parent:
            raise UserError(f"{where}: {node!r} has two parents, {found[node]!r} and {parent!r}; a tree has one")
    return found
