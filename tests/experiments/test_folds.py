import pytest
import torch
from photos import Files

from xrvlm.data.dataset import Item
from xrvlm.errors import UserError
from xrvlm.training.folds import folds_of

DISTINCT = Files()


def items_of(*sizes: int) -> list[Item]:
    return [Item(f"{label}/{index}.jpg", label) for label, size in enumerate(sizes) for index in range(size)]


def test_every_image_is_held_out_once_and_folds_are_even():
    items = items_of(10, 7, 3)
    fold = folds_of(items, DISTINCT, 5, seed=1)
    assert fold.bincount().tolist() == [4, 4, 4, 4, 4]
    labels = torch.tensor([item.label for item in items])
    assert fold[labels == 0].bincount(minlength=5).tolist() == [2] * 5
    assert all(count in (1, 2) for count in fold[labels == 1].bincount(minlength=5).tolist())
    assert len(set(fold[labels == 2].tolist())) == 3


@pytest.mark.parametrize("folds", [2, 3, 5, 40])
def test_no_fold_leaves_a_class_without_a_training_image(folds):
    items = items_of(2, 3, 1, 5, 2)
    fold, labels = folds_of(items, DISTINCT, folds, seed=3), torch.tensor([item.label for item in items])
    assert fold[labels == 2].tolist() == [-1]
    assert (fold[labels != 2] >= 0).all()
    for number in range(folds):
        assert set(labels[fold != number].tolist()) == {0, 1, 2, 3, 4}


def test_the_draw_depends_on_the_paths_and_the_seed_alone():
    items = items_of(6, 6)
    fold = dict(zip(items, folds_of(items, DISTINCT, 3, seed=1).tolist(), strict=True))
    assert fold == dict(zip(items[::-1], folds_of(items[::-1], DISTINCT, 3, seed=1).tolist(), strict=True))
    assert fold != dict(zip(items, folds_of(items, DISTINCT, 3, seed=2).tolist(), strict=True))


def test_one_image_a_class_cannot_be_cross_validated():
    with pytest.raises(UserError, match="each class has one labelled image .*, and cross-validation needs two"):
        folds_of(items_of(1, 1, 1), DISTINCT, 5, seed=1)
    copied = Files({f"1/{index}.jpg": b"the same" for index in range(3)})
    with pytest.raises(UserError, match="each class but one has one labelled image .*copies count once"):
        folds_of(items_of(1, 3, 4), copied, 5, seed=1)


def test_one_class_alone_cannot_be_scored():
    """Any method that always names it would be at 100 %."""
    with pytest.raises(UserError, match="each class but one has one labelled image .* needs two classes with two"):
        folds_of(items_of(1, 9, 1), DISTINCT, 5, seed=1)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_copies_are_held_out_together_and_count_once(folds):
    items = items_of(8, 8, 4)
    same = Files({f"{label}/{index}.jpg": f"{label} {index // 2}".encode() for label in range(3) for index in range(8)})
    fold = folds_of(items, same, folds, seed=2)
    assert fold.view(-1, 2).diff().abs().sum() == 0                              # each pair in one fold
    assert fold.min() == 0
    for label, first in ((0, 0), (1, 8)):
        assert len(set(fold[first:first + 8].tolist())) == min(folds, 4), label


@pytest.mark.parametrize("seed", range(8))
def test_bytes_that_are_in_two_classes_leave_no_class_without_a_training_image(seed):
    items = items_of(2, 2, 3)
    same = Files({"0/0.jpg": b"both", "1/0.jpg": b"both", "1/1.jpg": b"three", "2/0.jpg": b"three"})
    fold, labels = folds_of(items, same, 2, seed), torch.tensor([item.label for item in items])
    at = {item.id: int(number) for item, number in zip(items, fold, strict=True)}
    for number in range(2):
        assert set(labels[fold != number].tolist()) == {0, 1, 2}
        held = {same.read(item.id) for item in items if at[item.id] == number}
        learned = {same.read(item.id) for item in items if at[item.id] != number}
        assert not held & learned
