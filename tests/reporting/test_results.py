import statistics

import pytest
from results import record

from xrvlm.experiments.record import RunRecord
from xrvlm.reporting.results import by_curve, display_names, rows_of, shot_counts


def named(*records: RunRecord) -> dict[str, list[int | str]]:
    """The shots of each curve, by its name."""
    rows = rows_of(records)
    names = display_names(rows)
    return {names[next(iter(points.values()))]: list(points) for points in by_curve(rows)}


def test_a_curve_goes_on_over_shots_though_the_setting_hashes_differ():
    records = [record(f"{shots}-{seed}", shots=shots, seed=seed, setting=f"hash{shots}")
               for shots in (16, "all", 1) for seed in (1, 2)]
    rows = rows_of(records)
    assert [(row.first.shots, row.seeds, row.options_suffix, row.hash_suffix) for row in rows] == [
        (1, 2, "", ""), (16, 2, "", ""), ("all", 2, "", "")]
    assert named(*records) == {"XR-VLM": [1, 16, "all"]}
    assert shot_counts([*rows, *rows_of([record("zero", shots=0)])]) == [1, 16, "all"]


def test_the_mean_and_the_sample_deviation_are_of_the_runs_of_one_row():
    row, = rows_of([record("a", top1=0.5), record("b", seed=2, top1=0.56), record("c", seed=3, top1=0.59)])
    assert row.values("top1") == pytest.approx([50, 56, 59])
    assert row.percent("top1") == pytest.approx((55, statistics.stdev([50, 56, 59])))


@pytest.mark.parametrize(("change", "name"), [
    ({"prompts": "names"}, "XR-VLM, names"), ({"recipe": "long"}, "XR-VLM, long"),
    ({"head": "mlp"}, "XR-VLM, mlp"), ({"label": "XR-VLM+"}, "XR-VLM+"), ({"transductive": True}, "XR-VLM †"),
    ({"options": {"image_parts": 1}}, "XR-VLM (image_parts=1)"),
    ({"head": "mlp", "options": {"head": "mlp"}}, "XR-VLM (head=mlp)"),
    ({"prompts": "none", "options": {"part_prompts": None}}, "XR-VLM (part_prompts=None)"),
])
def test_other_methods_are_other_curves_and_the_name_says_what_differs(change, name):
    found = named(record("a", shots=1), record("b", shots=2), record("c", shots=2, **change))
    assert list(found.values()) == [[1, 2], [2]]
    assert list(found)[1] == name


def test_options_that_differ_at_different_shots_are_not_joined():
    assert named(record("a", shots=1, options={"image_parts": 1}), record("b", shots=4)) == {
        "XR-VLM (image_parts=1)": [1], "XR-VLM": [4]}


def test_a_name_tells_variants_only_where_options_do_not_and_options_only_where_they_differ():
    found = named(record("a", prompts="names", options={"depth": 2}), record("b", prompts="part", options={"depth": 2}),
                  record("c", prompts="part", options={"depth": 2, "image_parts": 1}),
                  record("d", label="Tip", options={"trainable": True}))
    assert set(found) == {"XR-VLM, names", "XR-VLM, part", "XR-VLM, part (image_parts=1)", "Tip"}


def test_an_option_that_a_column_shows_is_no_suffix():
    rows = rows_of([record("a"), record("b", prompts="vectors", options={"part_prompts": "vectors"}),
                     record("c", prompts="vectors", options={"image_parts": 1, "part_prompts": "vectors"})])
    assert sorted(row.options_suffix for row in rows) == ["", "", " (image_parts=1)"]


def test_what_differs_in_nothing_that_is_recorded_is_joined_by_the_hash_of_its_series():
    records = [record(f"{shots}-{views}", shots=shots, setting=f"{shots}{views}", series=f"{views}" * 16)
               for shots in (1, 4) for views in ("a", "b")]
    assert named(*records) == {"XR-VLM [aaaaaa]": [1, 4], "XR-VLM [bbbbbb]": [1, 4]}
    assert named(records[0], records[3]) == {"XR-VLM [aaaaaa]": [1], "XR-VLM [bbbbbb]": [4]}
    assert named(records[0], records[2]) == {"XR-VLM": [1, 4]}


def test_older_lines_without_that_hash_are_joined_only_where_no_doubt_is():
    records = [record(f"{shots}-{views}", shots=shots, setting=f"{shots}{views}hash")
               for shots in (1, 4) for views in ("a", "b")]
    assert [shots for _, shots in named(*records).items()] == [[1], [1], [4], [4]]
    assert named(*records[1:3]) == {"XR-VLM": [1, 4]}
    assert named(record("old", shots=1), record("new", shots=4, series="f" * 16)) == {"XR-VLM": [1, 4]}
    assert named(record("old", setting="s"), record("new", seed=2, setting="s", series="f" * 16)) == {"XR-VLM": [4]}


def test_a_recipe_named_after_the_method_is_its_own():
    own = display_names(rows_of([record("a", label="Tip-Adapter-F", recipe="tip_adapter_f", method="tip_adapter")]))
    changed = named(record("a", label="Tip-Adapter-F", recipe="tip_adapter_f", method="tip_adapter"),
                    record("b", label="Tip-Adapter-F", recipe="long", method="tip_adapter"))
    assert list(own.values()) == ["Tip-Adapter-F"]
    assert set(changed) == {"Tip-Adapter-F, own", "Tip-Adapter-F, long"}


def test_other_test_images_of_data_of_one_name_are_another_benchmark():
    runs = [record("a", tested="1a2b3c4d"), record("b", tested="1a2b3c4d", seed=2),
            record("c", method="gda", label="GDA", tested="99887766")]
    rows = rows_of(runs)
    assert [(row.benchmark, row.label, row.seeds) for row in rows] == [
        ("cub · ViT-B-16/openai · test set 1a2b3c", "XR-VLM", 2), ("cub · ViT-B-16/openai · test set 998877", "GDA", 1)]
    assert {row.hash_suffix for row in rows} == {""}
    older = rows_of([*runs[:2], record("c", method="gda", label="GDA")])          # of a version that did not record it
    assert {row.benchmark for row in older} == {"cub · ViT-B-16/openai"}
