"""A tree above the classes, by numbers worked out by hand."""

import pytest
import torch

from xrvlm.errors import UserError
from xrvlm.evaluation.hierarchy import Hierarchy, from_pairs

CLASSES = ("lion", "tiger", "wolf", "oak")
PARENTS = {"lion": "cats", "tiger": "cats", "wolf": "dogs", "cats": "animals", "dogs": "animals", "animals": "",
           "oak": "plants", "plants": ""}


@pytest.fixture
def tree() -> Hierarchy:
    return Hierarchy(CLASSES, PARENTS)


def test_nodes_and_paths(tree):
    assert tree.nodes == (*CLASSES, "animals", "plants", "cats", "dogs")
    assert tree.path("lion") == ["lion", "cats", "animals"]
    assert tree.depth.tolist() == [2, 2, 2, 1, 0, 0, 1, 1]


def test_the_deepest_node_that_is_sure(tree):
    chances = torch.tensor([[0.5, 0.4, 0.05, 0.05], [0.4, 0.2, 0.3, 0.1], [0.95, 0.05, 0, 0], [0.3, 0.1, 0.1, 0.5]])
    index, chance = tree.deepest(chances, 0.9)
    assert [tree.nodes[each] if each >= 0 else None for each in index.tolist()] == ["cats", "animals", "lion", None]
    assert chance.tolist() == pytest.approx([0.9, 0.9, 0.95, 1.0])


def test_figures_by_hand(tree):
    # lion for lion, tiger for lion, wolf for lion, oak for lion
    chances = torch.eye(4)
    found = tree.figures(chances, torch.zeros(4, dtype=torch.long))
    assert found["level_2"] == 0.25                       # the class itself
    assert found["level_1"] == 0.5                        # cats: lion, tiger
    assert found["level_0"] == 0.75                       # animals: all but the oak
    # lion and tiger meet in cats, of height 1; lion and wolf in animals, 2; lion and oak above all, 3
    assert found["mistake_severity"] == pytest.approx((1 + 2 + 3) / 3)
    # of the paths: 3 of 3, 2 of 3, 1 of 3, 0 of 2 nodes of the prediction; of the truth 3, 2, 1, 0 of 3
    assert found["hierarchical_precision"] == pytest.approx(6 / 11)
    assert found["hierarchical_recall"] == pytest.approx(6 / 12)
    assert tree.figures(chances, torch.arange(4))["mistake_severity"] == 0.0


def test_probabilities_add_up_before_the_best_of_a_level_is_taken(tree):
    chances = torch.tensor([[0.3, 0.3, 0.4, 0.0]])        # wolf is the best class, cats the best of its level
    assert tree.figures(chances, torch.tensor([0]))["level_1"] == 1.0
    assert tree.figures(chances, torch.tensor([0]))["level_2"] == 0.0


@pytest.mark.parametrize(("change", "message"), [
    ({"cats": "lion"}, "is a class and stands above"),
    ({"animals": "cats"}, "circle"),
])
def test_a_tree_that_is_none(change, message):
    with pytest.raises(UserError, match=message):
        Hierarchy(CLASSES, PARENTS | change)


def test_a_class_that_is_missing():
    with pytest.raises(UserError, match="lacks 1 of 4 classes, such as 'oak'"):
        Hierarchy(CLASSES, {name: parent for name, parent in PARENTS.items() if name != "oak"})


def test_two_parents():
    with pytest.raises(UserError, match="'lion' has two parents, 'cats' and 'dogs'"):
        from_pairs([("lion", "cats"), ("lion", "dogs")], "tree.csv")
    assert from_pairs([("lion", "cats"), ("lion", "cats")], "tree.csv") == {"lion": "cats"}
