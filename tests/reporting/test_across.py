"""Means over data sets."""

import statistics

import pytest
from results import record

from xrvlm.experiments.record import append_record
from xrvlm.reporting.across import across_data
from xrvlm.reporting.report import write_report
from xrvlm.reporting.results import rows_of

SCORES = {("birds", 1): 0.50, ("birds", 2): 0.54, ("cars", 1): 0.70, ("cars", 2): 0.70}


def runs(label: str, scores: dict[tuple[str, int], float] = SCORES, **changes) -> list:
    return [record(f"{label}-{data}-{seed}-{sorted(changes.items())}", label=label, data=data, seed=seed, top1=top1,
                   **({"setting": f"{label}{data}"} | changes)) for (data, seed), top1 in scores.items()]


def cells(records: list, shots: int | str = 4) -> dict[str, list[str]]:
    one, = across_data(rows_of(records))
    return {row[0]: row[1:] for row in one.by_data[shots].cells}


def test_the_mean_over_data_sets_and_its_deviation_over_the_seeds():
    found = cells(runs("CoOp"))
    assert found == {"CoOp": ["52.0 ± 2.8", "70.0 ± 0.0", "61.0 ± 1.4"]}
    assert statistics.stdev([60, 62]) == pytest.approx(1.41, abs=0.01)       # of the seeds' means over the data sets


def test_no_deviation_where_the_seeds_are_not_the_same():
    found = cells(runs("CoOp", {("birds", 1): 0.5, ("birds", 2): 0.54, ("cars", 1): 0.7, ("cars", 3): 0.7}))
    assert found["CoOp"][-1] == "61.0"


def test_zero_shot_stands_beside_each_number_of_shots():
    free = runs("CLIP", {("birds", 1): 0.2, ("cars", 1): 0.4}, shots=0, method="zero_shot")
    records = [*free, *runs("CoOp"), *runs("CoOp", shots=16, setting="")]
    one, = across_data(rows_of(records))
    assert list(one.by_data) == [16, 4]
    assert [row[0] for row in one.by_data[16].cells] == ["CLIP", "CoOp"]
    assert one.by_data[16].cells[0][1:] == ["20.0", "40.0", "30.0"]
    assert one.over_shots is not None
    assert one.over_shots.header == ["Method", "0", "4", "16"]
    assert one.over_shots.cells == [["CLIP", "30.0", "-", "-"], ["CoOp", "-", "61.0 ± 1.4", "61.0 ± 1.4"]]
    assert "birds, cars; over the shots, only methods run on all" in one.over_shots.caption


def test_a_method_that_lacks_a_data_set_has_no_mean_and_one_of_a_single_data_set_no_row():
    third = runs("A", {("dogs", 1): 0.9, ("cars", 1): 0.8, ("birds", 1): 0.7})
    one, = across_data(rows_of([*third, *runs("B"), *runs("C", {("dogs", 1): 0.3})]))
    table = one.by_data[4]
    assert one.title == "Mean over 3 data sets · ViT-B-16/openai"
    assert table.header == ["Method", "birds", "cars", "dogs", "Mean"]
    assert [row[0] for row in table.cells] == ["A", "B"]
    assert table.cells[0][-1] == "80.0"
    assert table.cells[1][1:] == ["52.0 ± 2.8 (2)", "70.0 ± 0.0 (2)", "-", "-"]
    assert "no mean in 1 row: not run on all data sets" in table.caption


def test_towers_protocols_and_worlds_are_held_apart():
    other = runs("CoOp", backbone="tiny")
    base = runs("CoOp", protocol="base_to_new",
                metrics=record().metrics | {"new_top1": 0.4, "all_top1": 0.3, "harmonic_mean": 0.44})
    titles = [one.title for one in across_data(rows_of([*runs("CoOp"), *other, *base]))]
    assert titles == [f"Mean over 2 data sets · {benchmark}" for benchmark in
                      ("ViT-B-16/openai", "ViT-B-16/openai · base to new", "tiny")]
    worlds = [record(f"w{world}", data="drawn_birds", world=world) for world in (0, 2)]
    assert across_data(rows_of(worlds))[0].by_data[4].header == ["Method", "drawn_birds 0", "drawn_birds 2", "Mean"]


def test_what_differs_in_its_options_is_no_mean():
    records = [record("a", data="birds"), record("b", data="cars", options={"image_parts": 1})]
    assert across_data(rows_of(records)) == []
    double = [record(f"a{i}", data="birds", setting=f"s{i}", series=f"s{i}") for i in range(2)]
    assert across_data(rows_of([*double, record("b", data="cars")])) == []
    one, = across_data(rows_of([*double, record("b", data="cars"), *runs("CoOp")]))
    assert "1 method left out: on one data set several rows" in one.by_data[4].caption


def test_the_report_begins_with_the_means(tmp_path):
    for run in [*runs("CoOp", shots=4), *runs("A&B", shots=16, setting="")]:
        append_record(tmp_path, run)
    page = write_report(tmp_path).markdown
    text = page.read_text(encoding="utf-8")
    assert text.index("## Mean over 2 data sets") < text.index("## birds")
    assert "| A&B | 52.0 ± 2.8 | 70.0 ± 0.0 | 61.0 ± 1.4 |" in text
    html = page.with_suffix(".html").read_text(encoding="utf-8")
    assert html.index('id="mean-1"') < html.index('id="benchmark-1"')
    assert '<td class="best">61.0 ± 1.4</td>' in html
    latex = page.with_name("tables.tex").read_text(encoding="utf-8")
    assert r"A\&B & 52.0 $\pm$ 2.8 & 70.0 $\pm$ 0.0 & 61.0 $\pm$ 1.4 \\" in latex
