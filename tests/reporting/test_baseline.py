"""Which row a row is compared with."""

import pytest
from results import record

from xrvlm.errors import UserError
from xrvlm.reporting.baseline import baseline_of
from xrvlm.reporting.results import Row, rows_of

FREE = {"label": "CLIP zero-shot", "method": "zero_shot", "shots": 0, "head": None}
ROWS = rows_of([
    record("d", prompts="descriptions", top1=0.4, **FREE),
    record("n", prompts="names", top1=0.6, **FREE),
    record("t", label="Trans", method="trans_clip", shots=0, prompts="names", transductive=True, top1=0.9),
    *(record(f"c{shots}", label="CoOp", method="coop", shots=shots) for shots in (1, 4)),
    record("p4", label="XR-VLM+", method="xr_vlm_plus", shots=4, prompts="part_descriptions", head=None),
])


def compared(wanted: str | None, rows: list[Row] = ROWS) -> dict[str, str]:
    """The runs of the rows with those of their baselines."""
    baseline = baseline_of(rows, wanted)
    return {row.first.run: other.first.run for row in rows if (other := baseline.of(row))}


def test_by_default_the_best_zero_shot_without_test_images():
    assert compared(None) == dict.fromkeys(("d", "t", "c1", "c4", "p4"), "n")
    assert baseline_of(ROWS, None).title == "CLIP zero-shot, names"
    assert compared(None, [row for row in ROWS if row.first.run != "n" and row.first.run != "d"]) == dict.fromkeys(
        ("c1", "c4", "p4"), "t")
    assert baseline_of([row for row in ROWS if row.first.shots], None).rows == ()


def test_zero_shot_is_that_of_the_row_s_own_kind_of_text():
    assert compared("zero_shot") == compared("CLIP zero-shot") == {"t": "n", "c1": "n", "c4": "n", "p4": "d"}
    assert baseline_of(ROWS, "zero_shot").title == (
        "zero-shot of the row's own kind of text (CLIP zero-shot, names or CLIP zero-shot, descriptions)")


def test_a_baseline_is_called_as_on_the_command_line():
    tips = rows_of([record("plain", label="Tip-Adapter", method="tip_adapter", shots=4),
                     record("trained", label="Tip-Adapter-F", method="tip_adapter", shots=4),
                     record("other", shots=4)])
    assert compared("tip_adapter_f", tips) == {"plain": "trained", "other": "trained"}
    assert compared("tip_adapter", tips) == {"trained": "plain", "other": "plain"}


def test_of_several_zero_shots_of_a_kind_the_best_counts():
    rows = rows_of([*(run for row in ROWS for run in row.runs),
                     record("e", prompts="names", top1=0.7, series="1", **FREE)])
    assert compared("zero_shot", rows)["c4"] == "e"
    assert compared("zero_shot", rows)["p4"] == "d"


def test_a_trained_method_is_compared_at_the_same_shots():
    assert compared("CoOp") == compared("coop") == {"p4": "c4"}
    assert compared("MaPLe") == {}


@pytest.mark.parametrize("wanted", [
    "CLIP zero-shot, descriptions", "zero_shot prompts=descriptions", "CLIP zero-shot  prompts=descriptions"])
def test_one_of_several_by_its_whole_name_or_by_what_only_it_has(wanted):
    assert compared(wanted) == dict.fromkeys(("n", "t", "c1", "c4", "p4"), "d")
    assert compared("zero_shot prompts=parts") == {}


def test_a_trained_method_with_several_rows_must_be_named_in_full():
    rows = rows_of([record(f"x{parts}", options={"image_parts": parts, "deep": {"a": 1}}) for parts in (1, 4)])
    with pytest.raises(UserError, match=r"baseline='xr_vlm' fits several rows: XR-VLM \(image_parts=1\); XR-VLM "
                                        r"\(image_parts=4\); .*full, or .*\"baseline='xr_vlm image_parts=1'\""):
        baseline_of(rows, "xr_vlm")
    assert baseline_of(rows, "xr_vlm image_parts=4").rows == (rows[1],)
    assert compared("trans_clip") == dict.fromkeys(("n", "d", "c1", "c4", "p4"), "t")
