import shlex

import pytest

from xrvlm.experiments.recommend import HEADER, Score, adapt_command, caption, cells, gap, markdown_report, recommend

HUNDRED = 100


def score(words: str, right: int, seconds: float = 0.1, learned: int = 10, *, shift: int = 0) -> Score:
    """`right` of 100 images are hit, in a row that begins at `shift`."""
    hits = tuple((image - shift) % HUNDRED < right for image in range(HUNDRED))
    return Score(words, words.upper(), hits, seconds, learned)


def test_the_gap_is_paired_over_the_images():
    mean, error = gap(score("a", 90), score("b", 80))                # 10 images of 100 differ, all to one side
    assert mean == pytest.approx(0.1)
    assert error == pytest.approx((0.1 * 0.9 / 99) ** 0.5)
    assert gap(score("a", 90), score("b", 80, shift=50))[1] > error
    assert gap(score("a", 90), score("b", 90)) == (0, 0)


def test_names_that_say_nothing_are_told():
    useless, useful = score("zero_shot", 13), score("zero_shot", 19)
    told = recommend([useless, score("b", 80)], classes=10).reasons[-1]      # 10 + 1.64 * 3.0 is 14.9 of 100
    assert told.startswith("The text says nothing of these photos: zero_shot is at 13.0% and chance at 10.0%. ")
    assert "class_names, describe the classes by descriptions" in told
    for scores in ([useful, score("b", 80)], [score("b", 3), score("c", 80)]):
        assert not any("says nothing" in reason for reason in recommend(scores, classes=10).reasons)


def test_the_best_is_taken_where_it_is_clearly_the_best():
    found = recommend([score("a", 70), score("b", 90, seconds=500, learned=10**6), score("c", 80)])
    assert found.chosen.words == "b"
    assert "b is the most accurate of 3 on held-out images: 90.0%." in found.reasons
    assert "The difference to every other is clear on 100 images." in found.reasons


def test_one_score_is_no_comparison():
    reason, = recommend([score("a", 20)]).reasons
    assert reason.startswith("a is the only one that was scored (")
    assert "nothing says that it is the best: compare more candidates, or give more time" in reason


def test_a_second_less_buys_no_four_points():
    found = recommend([score("quick", 86, seconds=0.1, learned=0, shift=5), score("gda", 90, seconds=1.4),
                       score("bad", 40)])
    assert found.chosen.words == "gda"
    assert "100 images cannot tell it from: quick (-4.0 ± 4.8)." in found.reasons


def test_the_cheaper_of_those_within_half_a_point_is_taken():
    slow, quick = (Score(words, words, tuple(image % 1000 < right for image in range(1000)), seconds, learned)
                   for words, right, seconds, learned in (("slow", 820, 60, 5), ("quick", 815, 3, 50)))
    found = recommend([slow, quick])
    assert found.chosen.words == "quick"
    assert any("quick is at most half a point behind it and cheaper: 81.5%" in reason for reason in found.reasons)
    assert any("60.0 s of training and 5 learned parameters" in reason for reason in found.reasons)
    assert recommend([slow, Score("quick", "q", tuple(image < 814 for image in range(1000)), 3, 0)]).chosen is slow


def test_where_the_times_are_alike_fewer_learned_parameters_decide():
    near = [score("a", 82, seconds=0.5, learned=300), score("b", 82, seconds=1.9, learned=100),
            score("c", 82, seconds=2.1, learned=1)]
    assert recommend(near).chosen.words == "b"                       # below a second no time counts, then twice that
    assert any("fewer learned parameters decide" in reason for reason in recommend(near).reasons)
    assert recommend([score("a", 82), score("b", 82)]).chosen.words == "a"


def test_the_table_says_what_it_is_and_what_was_left_out():
    scores = [score("a", 70), score("b", 90, seconds=12.34, learned=1234)]
    assert cells(scores) == [["B", "b", "90.0 ± 3.0", "-", "12.3", "1,234"],
                             ["A", "a", "70.0 ± 4.6", "20.0 ± 4.0", "0.1", "10"]]
    text = markdown_report(scores, {"coop": "it would take 3 hours"}, caption(100, 5, ["wren"], 3), ["Recommended: b."])
    assert text.startswith("# Which method?\n\nRecommended: b.\n\n")
    assert "its accuracy is a little too high" in text
    assert f"| {' | '.join(HEADER)} |" in text
    assert "- coop: it would take 3 hours" in text
    assert "not finished" in markdown_report([], {}, "", ())


def test_twelve_of_twelve_right_is_no_certainty():
    right, wrong = (Score("a", "a", (hit,) * 12, 1, 1) for hit in (True, False))
    assert [row[2] for row in cells([right, wrong])] == ["100.0 ± 8.0", "0.0 ± 8.0"]


def test_the_command_is_that_of_the_comparison_with_the_method():
    given = ["data.root='/my (first) birds'", "backbone=tiny", "folds=3", "budget=1m", "candidates=[coop]", "shots=4",
             "seed=1", "shots=4"]
    command = adapt_command("coop recipe.epochs=2", given)
    assert shlex.split(command) == ["xrvlm", "adapt", "data.root=/my (first) birds", "backbone=tiny", "shots=4",
                                    "seed=1", "method=coop", "recipe.epochs=2"]
