"""How good predictions are: functions of scores (n, c) and true labels (n,), all as fractions of 1; and their files.

Letters: `n` images, `c` classes. Every function counts on the CPU, one row at a time in effect: a result depends on
neither the device nor how the images were batched. Of equal scores the lowest class index wins.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xrvlm import files
from xrvlm.errors import UserError, option
from xrvlm.evaluation.hierarchy import Hierarchy

CALIBRATION_BINS = 15
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# the metrics that tables show, with their headings: of every run, and of a run of one of these protocols
METRICS = {"top1": "Top-1", "top5": "Top-5", "mean_per_class": "Per class", "macro_f1": "Macro-F1", "ece": "ECE"}
SHOWN = {"base_to_new": {"top1": "Base", "new_top1": "New", "harmonic_mean": "Harmonic", "all_top1": "All"},
         "open_set": {"top1": "Top-1", "auroc": "AUROC", "fpr95": "FPR95", "aupr": "AUPR", "oscr": "OSCR"}}
NEAREST, MOST_PAIRS = 3, 3e8           # training images beside a test image
PREDICTIONS, METRICS_FILE = "predictions.csv", "metrics.json"


def predicted(scores: Tensor) -> Tensor:
    """The class of the highest score, (n, c) -> (n,) on the CPU."""
    scores = finite(scores)
    classes = torch.arange(scores.shape[1]).expand_as(scores)                # (n, c)
    # argmax leaves open which of equal scores it takes
    return classes.where(scores == scores.amax(1, keepdim=True), scores.shape[1]).amin(1)


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the true one, (n,): 0 is a hit, below k a top-k hit."""
    scores, labels = _checked(scores, labels)
    truth = scores.gather(1, labels[:, None])                                # (n, 1)
    first_of_equals = (scores == truth) & (torch.arange(scores.shape[1]) < labels[:, None])
    return ((scores > truth) | first_of_equals).sum(1)


def top1(scores: Tensor, labels: Tensor) -> float:
    return topk(scores, labels, k=1)


def topk(scores: Tensor, labels: Tensor, *, k: int = 5) -> float:
    """The share of images whose true class is among the `k` highest; with fewer than `k` classes always 1."""
    return _share(ranks(scores, labels) < k)


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """The mean of each class's own accuracy, over the classes that occur in `labels`."""
    hits, images, _ = _counts(scores, labels)
    seen = images > 0
    return (hits[seen] / images[seen]).mean().item()


def macro_f1(scores: Tensor, labels: Tensor) -> float:
    """The mean F1 over the classes that occur in `labels` or are predicted, as scikit-learn's average="macro"."""
    hits, images, predictions = _counts(scores, labels)
    seen = images + predictions > 0
    return (2 * hits[seen] / (images + predictions)[seen]).mean().item()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = CALIBRATION_BINS) -> float:
    """The mean gap of confidence and accuracy (Guo et al., ICML 2017, arXiv:1706.04599).

    The images fall into `bins` bins of equal width by the probability of their top class: bin i holds ((i-1)/bins,
    i/bins]. The gap of a bin is |mean confidence - accuracy|; the result weighs each by its share of the images.
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.double().amax(1)                              # (n,)
    if probabilities.min() < 0 or confidence.max() > 1 + 1e-3:
        raise ValueError("calibration needs probabilities, these scores leave 0..1: pass logits.softmax(dim=1)")
    images, confident, hits = calibration_bins(confidence, predicted(probabilities) == labels, bins=bins).T
    # |sum of gaps| of a bin is its |mean gap| times its images
    return ((confident - hits).abs().sum() / images.sum()).item()


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood of the true classes, in nats; a probability of 0 counts as 1e-38."""
    probabilities, labels = _checked(probabilities, labels)
    return -probabilities.double().gather(1, labels[:, None]).clamp_min(1e-38).log().mean().item()


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """The mean squared distance of the probabilities from 1 for the true class and 0 for the others: 0..2."""
    probabilities, labels = _checked(probabilities, labels)
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities.double() - truth).square().sum(1).mean().item()


def calibration_bins(confidence: Tensor, right: Tensor, *, bins: int = CALIBRATION_BINS) -> Tensor:
    """A row a bin (bins, 3): its images, the sum of their confidences (n,), how many of them are `right` (n,)."""
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    bin_of = torch.bucketize(confidence.double(), inner_edges)               # (n,)
    weights = (torch.ones_like(confidence), confidence, right)
    return torch.stack([torch.bincount(bin_of, weights=weight.double(), minlength=bins) for weight in weights], dim=1)


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts (c, c): row = true class, column = predicted class."""
    scores, labels = _checked(scores, labels)
    classes = scores.shape[1]
    return torch.bincount(labels * classes + predicted(scores), minlength=classes**2).reshape(classes, classes)


def per_class(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> list[dict]:
    """One row a class: class, images, accuracy, precision, recall, f1; None where nothing defines the value.

    With one label an image the accuracy of a class is its recall; both names stand, for readers of either habit.
    """
    _check_names(classes, scores.shape[1])
    rows = []
    for name, *counts in zip(classes, *(count.tolist() for count in _counts(scores, labels)), strict=True):
        hits, images, predictions = counts
        recall = _ratio(hits, images)
        rows.append({"class": name, "images": int(images), "accuracy": recall, "precision": _ratio(hits, predictions),
                     "recall": recall, "f1": _ratio(2 * hits, images + predictions)})
    return rows


def most_confused(confusion: Tensor, classes: Sequence[str], *, k: int = 10) -> list[dict]:
    """The `k` most frequent errors: true, predicted, count, share (of the images of the true class).

    Equal counts stand in the order of the classes; a pair that never occurs is left out.
    """
    _check_names(classes, len(confusion))
    confusion = confusion.cpu()
    errors = confusion.clone().fill_diagonal_(0).flatten()                   # (c * c,)
    counts, order = errors.sort(descending=True, stable=True)
    images = confusion.sum(1).tolist()
    pairs = []
    for count, cell in zip(counts[:k].tolist(), order[:k].tolist(), strict=True):
        if count > 0:
            true, guess = divmod(cell, len(classes))
            pairs.append({"true": classes[true], "predicted": classes[guess], "count": count,
                          "share": count / images[true]})
    return pairs


def summarise(probabilities: Tensor, labels: Tensor, classes: Sequence[str],
              hierarchy: Mapping[str, str] | None = None) -> dict[str, float]:
    """{top1, top5, mean_per_class, macro_f1, ece} as fractions of 1, nll, brier, and the number of images.

    With a `hierarchy`, {node: parent}, also the figures of evaluation/hierarchy.py.
    """
    _check_names(classes, probabilities.shape[1])
    tree = {} if hierarchy is None else Hierarchy(tuple(classes), hierarchy).figures(*_checked(probabilities, labels))
    return {
        "top1": top1(probabilities, labels),
        "top5": topk(probabilities, labels),
        "mean_per_class": mean_per_class(probabilities, labels),
        "macro_f1": macro_f1(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        **tree,
        "images": len(labels),
    }


def details(scores: Tensor, labels: Tensor, classes: Sequence[str], *, pairs: int = 20) -> dict[str, list[dict]]:
    """{per_class: a row a class, most_confused: the `pairs` most frequent errors}."""
    return {"per_class": per_class(scores, labels, classes),
            "most_confused": most_confused(confusion_matrix(scores, labels), classes, k=pairs)}


def harmonic_mean(base: float, new: float) -> float:
    """Of two accuracies: high where both are; 0 where one is."""
    return 2 * base * new / (base + new) if base and new else 0.0


def write_scores(folder: Path, ids: Sequence[str], labels: Tensor, probabilities: Tensor, classes: Sequence[str],
                 suffix: str = "", hierarchy: Mapping[str, str] | None = None,
                 more: Mapping[str, Any] | None = None) -> dict[str, float]:
    """metrics.json, with `more`, and predictions.csv of labelled images, `suffix` behind their names. The summary."""
    summary = summarise(probabilities, labels, classes, hierarchy)
    by_class = details(probabilities, labels, classes) | dict(more or {})
    write_metrics(_suffixed(folder / METRICS_FILE, suffix), summary, by_class)
    write_predictions(_suffixed(folder / PREDICTIONS, suffix), ids, labels, probabilities, classes)
    return summary


def _suffixed(path: Path, suffix: str) -> Path:
    return path.with_stem(path.stem + suffix)


def write_metrics(path: Path, summary: dict, by_class: dict) -> None:
    """metrics.json: {"summary": ..., "per_class": [...], "most_confused": [...]}, of `summarise` and `details`."""
    files.write_json(path, {"summary": summary, **by_class})


def write_predictions(path: Path, ids: Sequence[str], labels: Tensor | None, probabilities: Tensor,
                      classes: Sequence[str], *, topk: int = 5) -> None:
    """predictions.csv: image, label (empty where unknown), prediction, class_1, probability_1, ... class_k."""
    values, order = (part[:, :topk].tolist() for part in finite(probabilities).float().sort(
        dim=1, descending=True, stable=True))                                # both (n, k)
    truths = [""] * len(ids) if labels is None else [classes[int(label)] for label in labels.tolist()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(1, min(topk, len(classes)) + 1)
    columns = (f"{word}_{rank}" for rank in ranks for word in ("class", "probability"))
    writer.writerow(["image", "label", "prediction", *columns])
    for image, truth, chances, indices in zip(ids, truths, values, order, strict=True):
        best = [(as_cell(classes[int(index)]), f"{chance:.6f}") for index, chance in zip(indices, chances, strict=True)]
        writer.writerow([as_cell(image), as_cell(truth), best[0][0], *(cell for pair in best for cell in pair)])
    # file names of other encodings reach Python as lone surrogates, which UTF-8 cannot say
    files.write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of `columns`; texts are written so that a spreadsheet takes none for a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: as_cell(value) if isinstance(value, str) else value for name, value in row.items()}
                     for row in rows)
    files.write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))


def write_nearest(folder: Path, test: Any, train: Any, classes: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """nearest.csv: of each test image the `NEAREST` training images that are nearest by the cosine of pooled features.

    Both are a `FeatureSource`. Returns (cosine, how far it is above the next, test image, training image). Where the
    features are not at hand, or there are more than `MOST_PAIRS` pairs, which take minutes, nothing is written.
    """
    if train is None or len(test.ids) * len(train.ids) > MOST_PAIRS:
        return []
    queries, keys = test.pooled, train.pooled                                              # (n, d), (m, d)
    if queries is None or keys is None:
        return []
    keys = keys.to(queries.device)       # of two banks one may stay on a GPU alone
    found = [(rows @ keys.T).sort(descending=True, stable=True) for rows in queries.split(256)]
    cosines, order = (torch.cat([each[side][:, :NEAREST] for each in found]).tolist() for side in (0, 1))
    write_rows(folder / "nearest.csv", ["image", *(f"{column}_{place + 1}" for place in range(min(NEAREST, len(keys)))
                                                   for column in ("nearest", "class", "cosine"))],
               [{"image": test.ids[index]} | {
                   f"{column}_{place + 1}": value for place, row in enumerate(rows) for column, value in (
                       ("nearest", train.ids[row]), ("class", classes[int(train.labels[row])]),
                       ("cosine", f"{cosines[index][place]:.4f}"))} for index, rows in enumerate(order)])
    return [(near[0], near[0] - near[min(1, len(near) - 1)], test.ids[index], train.ids[order[index][0]])
            for index, near in enumerate(cosines)]


def as_cell(text: str) -> str:
    """`text` so that a spreadsheet does not take it for a formula; `from_cell` reads it back, whatever it is."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def from_cell(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def finite(scores: Tensor) -> Tensor:
    """The scores (n, c) on the CPU; UserError where one is NaN or infinite."""
    scores = scores.detach().cpu()
    broken = int((~scores.isfinite()).any(1).sum())
    if broken:
        raise UserError(f"the scores of {broken} of {len(scores)} images are NaN or infinite: the training "
                        f"diverged or the tower's numbers are too large; lower the {option('recipe.learning_rate')} of "
                        f"a method that is trained by steps, or take {option('precision', 'fp32')}")
    return scores


def _checked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (n, c) and labels (n,), not {tuple(scores.shape)} and {tuple(labels.shape)}")
    if not len(labels):
        raise UserError("there are no images to evaluate on; give the data set a test set that is not empty")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, these lie in {labels.min()}..{labels.max()}")
    return finite(scores), labels


def _counts(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per class (c,): images that were hit, images, predictions; double, so that ratios are."""
    scores, labels = _checked(scores, labels)
    guesses, classes = predicted(scores), scores.shape[1]
    hits = torch.bincount(labels[guesses == labels], minlength=classes)
    return (hits.double(), torch.bincount(labels, minlength=classes).double(),
            torch.bincount(guesses, minlength=classes).double())


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _check_names(classes: Sequence[str], expected: int) -> None:
    if len(classes) != expected:
        raise ValueError(f"{len(classes)} class names for {expected} classes")
