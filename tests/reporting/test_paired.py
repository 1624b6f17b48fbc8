"""Differences to a baseline on the same test images."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from results import record

from xrvlm.evaluation.metrics import harmonic_mean
from xrvlm.reporting import paired
from xrvlm.reporting.paired import Difference, interval, paired_difference
from xrvlm.reporting.results import Row, rows_of


def predictions(path: Path, right: str) -> None:
    """A file of images that were recognised ("1") or not ("0")."""
    lines = [f"{place}.jpg,wren,{'wren' if hit == '1' else 'jay'},0.5" for place, hit in enumerate(right)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["image,label,prediction,probability_1", *lines]))


def row_of(root: Path, label: str, rights: dict[int, str], **changes) -> Row:
    """A row whose runs, by their seed, recognised these images."""
    runs = []
    for seed, right in rights.items():
        run = f"{label}-{seed}"
        predictions(root / run / "predictions.csv", right)
        runs.append(record(run, seed=seed, label=label, top1=right.count("1") / len(right), **changes))
    return Row(tuple(runs))


def test_the_mean_is_that_of_the_seeds_and_the_interval_that_of_resampled_images(tmp_path):
    ours = {1: "1110011101", 2: "1111011100", 3: "0110111101"}
    theirs = {1: "1010010001", 2: "1010110000", 3: "0110100111"}
    found = paired_difference(row_of(tmp_path, "a", ours), row_of(tmp_path, "b", theirs), tmp_path)
    expected = [np.mean([int(mark) for mark in ours[seed]]) - np.mean([int(mark) for mark in theirs[seed]])
                for seed in (1, 2, 3)]
    assert found.mean == pytest.approx(100 * np.mean(expected))
    assert found.seeds == 3
    # by the plain recipe: draw ten images with replacement, the same for all runs, and compare
    gain = np.mean([[int(a) - int(b) for a, b in zip(ours[seed], theirs[seed], strict=True)] for seed in ours], axis=0)
    drawn = gain[np.random.default_rng(5).integers(0, 10, (40_000, 10))].mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(100 * np.percentile(drawn, [2.5, 97.5])), abs=1.5)


def test_a_small_case_agrees_with_counting_every_draw():
    right = np.array([[1, 1, 1, 0]])                                         # 4 images, one run, against none
    exact = {sum(draw) / 4: 0.0 for draw in itertools.product((0, 1), repeat=4)}
    for draw in itertools.product((1, 1, 1, 0), repeat=4):
        exact[sum(draw) / 4] += 1 / 256
    assert sum(exact.values()) == pytest.approx(1)
    assert exact[0] + exact[0.25] < 0.06 < exact[1]                          # 2.5 % lie within 0.25, 97.5 % within 1
    assert interval([right], lambda accuracy: accuracy[:, 0]) == (0.25, 1.0)


def test_it_covers_what_it_says():
    """Of samples of a population with a known difference, about 95 % have it within the interval."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        method, baseline = rng.random(200) < 0.7, rng.random(200) < 0.6
        low, high = interval([np.stack([method, baseline])], paired._accuracy)
        hits += low <= 0.1 <= high
    assert 180 <= hits <= 198


def test_it_is_the_same_at_every_call(tmp_path):
    rows = row_of(tmp_path, "a", {1: "1101010"}), row_of(tmp_path, "b", {1: "0101011"})
    assert paired_difference(*rows, tmp_path) == paired_difference(*rows, tmp_path)


def test_images_are_matched_by_their_names(tmp_path):
    ours, theirs = row_of(tmp_path, "a", {1: "1100"}), row_of(tmp_path, "b", {1: "1100"})
    path = tmp_path / "a-1" / "predictions.csv"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *reversed(lines)]))
    assert paired_difference(ours, theirs, tmp_path) == Difference(0, 0, 0, 1)


def test_zero_shot_is_paired_with_every_seed_and_others_with_their_own(tmp_path):
    ours = row_of(tmp_path, "a", {1: "1111", 2: "1110", 7: "1100"})
    free = row_of(tmp_path, "free", {1: "1000"}, shots=0)
    few = row_of(tmp_path, "few", {2: "1000", 7: "1100", 8: "0000"})
    assert paired_difference(ours, free, tmp_path).mean == pytest.approx(50)
    found = paired_difference(ours, few, tmp_path)
    assert (found.mean, found.seeds) == (pytest.approx(25), 2)
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference(ours, row_of(tmp_path, "other", {9: "1111"}), tmp_path)


def test_base_to_new_compares_harmonic_means(tmp_path):
    about = {"protocol": "base_to_new",
             "metrics": record().metrics | {"new_top1": 0.5, "harmonic_mean": 0.5, "all_top1": 0.5}}
    ours = row_of(tmp_path, "a", {1: "1110"}, **about)
    theirs = row_of(tmp_path, "b", {1: "1100"}, **about)
    predictions(tmp_path / "a-1" / "predictions_new.csv", "11000")
    predictions(tmp_path / "b-1" / "predictions_new.csv", "10000")
    found = paired_difference(ours, theirs, tmp_path)
    assert found.mean == pytest.approx(100 * (harmonic_mean(0.75, 0.4) - harmonic_mean(0.5, 0.2)))
    assert found.low < found.mean < found.high


def test_what_cannot_be_paired_says_why(tmp_path):
    ours = row_of(tmp_path, "a", {1: "1111"})
    with pytest.raises(ValueError, match="other images than the baseline"):
        paired_difference(ours, row_of(tmp_path, "b", {1: "11110"}), tmp_path)
    (tmp_path / "b-1" / "predictions.csv").write_text("image,label\n1,2\n")
    with pytest.raises(ValueError, match="no column prediction"):
        paired_difference(ours, Row((record("b-1", label="b"),)), tmp_path)
    (tmp_path / "b-1" / "predictions.csv").unlink()
    with pytest.raises(ValueError, match=r"a run has no predictions\.csv"):
        paired_difference(ours, Row((record("b-1", label="b"),)), tmp_path)


def test_a_difference_in_words_and_its_sign():
    assert Difference(3.14, 1.2, 5.06, 3).formatted == ("+3.1", "[+1.2, +5.1]")
    assert Difference(-0.01, -2.0, 0.04, 3).formatted == ("+0.0", "[-2.0, +0.0]")
    assert [Difference(0, low, high, 1).sign for low, high in ((0.1, 2), (-2, -0.1), (-1, 1), (0, 1))] == [1, -1, 0, 0]


def test_images_of_the_same_names_in_another_data_set_are_no_pairs(tmp_path):
    rows = rows_of([record("a", tested="blur"), record("b", label="CoOp", tested="noise")])
    read = lambda path: (("1.png", "2.png"), np.array([True, False]))    # noqa: E731
    with pytest.raises(ValueError, match="tested on other images"):
        paired_difference(rows[0], rows[1], tmp_path, read)
