import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from sklearn.metrics import top_k_accuracy_score as reference_topk

from xrvlm.errors import UserError
from xrvlm.evaluation import metrics


def drawn(images: int = 300, classes: int = 11, seen: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right about half of the time; the last classes have no image but may be predicted."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, seen, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1.5
    return logits, labels


NAMES = [f"class {i}" for i in range(11)]


def test_agrees_with_scikit_learn():
    logits, labels = drawn()
    guesses = logits.argmax(1)
    assert (guesses >= 9).any()                                              # a class without images is predicted
    assert metrics.top1(logits, labels) == pytest.approx((guesses == labels).double().mean().item())
    assert metrics.topk(logits, labels) == pytest.approx(reference_topk(labels, logits, k=5, labels=range(11)))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert metrics.mean_per_class(logits, labels) == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert metrics.macro_f1(logits, labels) == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert metrics.confusion_matrix(logits, labels).tolist() == confusion_matrix(labels, guesses).tolist()


def test_per_class_agrees_with_scikit_learn():
    logits, labels = drawn()
    rows = metrics.per_class(logits, labels, NAMES)
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(11), zero_division=0)
    assert [row["class"] for row in rows] == NAMES
    assert [row["images"] for row in rows] == images.tolist()
    for row, *expected in zip(rows, precision, recall, f1, strict=True):
        assert [row[name] or 0 for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert rows[9]["accuracy"] is None                                       # no image: undefined, not zero
    assert rows[9]["precision"] == 0


def test_by_hand():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.4, 0.3, 0.3]])
    labels = torch.tensor([0, 0, 1, 1])                                      # one error: class 1 taken for class 0
    found = metrics.summarise(probabilities, labels, ["a", "b", "c"])
    assert found["images"] == 4
    assert found["top1"] == 0.75
    assert found["top5"] == 1
    assert found["mean_per_class"] == 0.75
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)            # class c neither occurs nor is predicted
    # bins of 1/15: 0.4 alone, wrong; 0.5, 0.6 and 0.7 each alone, right
    assert found["ece"] == pytest.approx((0.4 + 0.5 + 0.4 + 0.3) / 4, abs=1e-6)
    assert metrics.most_confused(metrics.confusion_matrix(probabilities, labels), ["a", "b", "c"]) == [
        {"true": "b", "predicted": "a", "count": 1, "share": 0.5}]


def test_calibration_averages_within_a_bin_and_not_across_bins():
    def scores(*confidences: float) -> torch.Tensor:
        return torch.tensor([[value, 1 - value] for value in confidences], dtype=torch.float64)

    # one bin of (12/15, 13/15]: mean confidence 0.84, accuracy 0.5, gaps of both signs cancel before the absolute value
    assert metrics.expected_calibration_error(scores(0.82, 0.86), torch.tensor([0, 1])) == pytest.approx(0.34)
    # two bins: they do not cancel
    assert metrics.expected_calibration_error(scores(0.6, 0.95), torch.tensor([0, 1])) == pytest.approx(1.35 / 2)
    # an upper edge belongs to its bin: 0.75 with 4 bins joins 0.6, gaps -0.25 and +0.6
    found = metrics.expected_calibration_error(scores(0.75, 0.6), torch.tensor([0, 1]), bins=4)
    assert found == pytest.approx((0.6 - 0.25) / 2)
    assert metrics.expected_calibration_error(scores(1.0, 1.0), torch.tensor([0, 0])) == 0


def test_calibration_refuses_logits():
    with pytest.raises(ValueError, match="softmax"):
        metrics.expected_calibration_error(*drawn())


def test_the_lowest_index_wins_among_equals():
    scores = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).repeat(4, 1)
    labels = torch.arange(4)
    assert metrics.predicted(scores).tolist() == [0, 0, 0, 0]
    assert metrics.ranks(scores, labels).tolist() == [0, 1, 2, 3]
    assert [metrics.topk(scores, labels, k=k) for k in (1, 2, 3)] == [0.25, 0.5, 0.75]


def test_fewer_classes_than_k():
    assert metrics.topk(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([1, 1])) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_neither_order_nor_batch_matters(dtype):
    logits, labels = drawn()
    logits = logits.to(dtype)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    batches = torch.cat([metrics.ranks(x, y) for x, y in zip(logits.split(7), labels.split(7), strict=True)])
    assert batches.equal(metrics.ranks(logits, labels))
    for measure in (metrics.top1, metrics.topk, metrics.mean_per_class, metrics.macro_f1):
        assert measure(logits[order], labels[order]) == measure(logits, labels)


def test_confused_pairs_are_ordered_by_count_then_class():
    confusion = torch.tensor([[5, 2, 0], [2, 1, 3], [0, 2, 0]])
    pairs = metrics.most_confused(confusion, ["a", "b", "c"], k=3)
    assert [(pair["true"], pair["predicted"], pair["count"]) for pair in pairs] == [
        ("b", "c", 3), ("a", "b", 2), ("b", "a", 2)]
    assert pairs[0]["share"] == 0.5
    assert confusion[0, 0] == 5                                              # the caller's matrix is left alone
    assert len(metrics.most_confused(confusion, ["a", "b", "c"], k=50)) == 4  # what never occurs is no error


def test_details():
    logits, labels = drawn()
    found = metrics.details(logits, labels, NAMES, pairs=4)
    assert len(found["most_confused"]) == 4
    right = sum(row["accuracy"] * row["images"] for row in found["per_class"] if row["images"])
    assert right / len(labels) == pytest.approx(metrics.top1(logits, labels))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(value):
    logits, labels = drawn()
    logits[7, 2] = value
    for call in (metrics.top1, metrics.macro_f1, metrics.expected_calibration_error, metrics.confusion_matrix):
        with pytest.raises(UserError, match=r"1 of 300 images .* learning_rate .*, or take precision='fp32'"):
            call(logits, labels)


def test_no_images():
    with pytest.raises(UserError, match="a test set that is not empty"):
        metrics.top1(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize(("labels", "message"), [
    (torch.tensor([0, 11]), "labels must lie in 0..10"),
    (torch.tensor([0, -1]), "labels must lie in 0..10"),
    (torch.tensor([0]), r"labels \(n,\)"),
])
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.top1(torch.zeros(2, 11), labels)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        metrics.summarise(torch.full((1, 3), 1 / 3), torch.tensor([0]), ["a", "b"])


def test_the_harmonic_mean_is_zero_where_one_accuracy_is():
    assert metrics.harmonic_mean(0.8, 0.4) == pytest.approx(2 / (1 / 0.8 + 1 / 0.4))
    assert metrics.harmonic_mean(0.0, 0.4) == metrics.harmonic_mean(0.0, 0.0) == 0.0
