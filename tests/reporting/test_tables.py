import subprocess
import sys

from results import long_tables, record, table_rows

from xrvlm.evaluation.text_tables import Table, markdown_table
from xrvlm.experiments.record import RunRecord
from xrvlm.reporting.tables import table_over_shots, tables, terminal_table


def over_shots(records: list[RunRecord]) -> Table:
    table, = tables(records)
    short = table_over_shots(table)
    assert short is not None
    return short


def runs(label: str, scores: dict, **changes) -> list[RunRecord]:
    """A run for each score, by shots; its place in the list is its seed."""
    return [record(f"{label}-{changes}-{shots}-{seed}", label=label, shots=shots, seed=seed, top1=top1, **changes)
            for shots, values in scores.items() for seed, top1 in enumerate(values, start=1)]


SWEEP = [
    *runs("XR-VLM", {1: [0.2, 0.3], 4: [0.5, 0.6, 0.64], "all": [0.9, 0.9, 0.93]}, options={}),
    *runs("XR-VLM", {1: [0.1, 0.2, 0.3], "all": [0.95, 0.95, 0.95]}, options={"image_parts": 1}),
    *runs("CoOp", {1: [0.4, 0.4, 0.4], 4: [0.8, 0.8, 0.8]}, head=None, method="coop", recipe="coop"),
    *runs("CLIP", {0: [0.35]}, head=None, method="zero_shot", recipe=None, prompts="names"),
]


def test_a_column_a_shot_count_and_a_row_a_method():
    table = over_shots(SWEEP)
    assert table.header == ["Method", "Prompts", "0", "1", "4", "all"]
    assert table.numbers == 4
    assert table.cells == [
        ["CLIP", "names", "35.0", "-", "-", "-"],
        ["CoOp", "learned", "-", "40.0 ± 0.0", "80.0 ± 0.0", "-"],      # ends before the others, so stands there
        ["XR-VLM", "learned", "-", "25.0 ± 7.1 (2)", "58.0 ± 7.2", "91.0 ± 1.7"],
        ["XR-VLM (image_parts=1)", "learned", "-", "20.0 ± 10.0", "-", "95.0 ± 0.0"],
    ]
    assert [row.first.shots for row in table.rows] == [0, 4, "all", "all"]
    expected = ("head: product", "recipe: own", "top-1 in % by the shots", "deviation over 3 seeds", "(n): of n seeds")
    assert all(words in table.caption for words in expected)


def test_one_seed_everywhere_needs_no_word_on_deviations():
    table = over_shots(runs("A", {1: [0.2], 2: [0.3]}))
    assert table.cells == [["A", "20.0", "30.0"]]
    assert "1 seed, rows" in table.caption
    assert "±" not in table.caption
    assert "(n)" not in table.caption


def test_one_shot_count_and_zero_shot_make_no_such_table():
    few, = tables([*runs("A", {4: [0.5]}), *runs("CLIP", {0: [0.2]})])
    assert table_over_shots(few) is None
    assert "ECE" in terminal_table([*runs("A", {4: [0.5]})])


def test_base_to_new_shows_the_harmonic_mean():
    scores = record().metrics | {"new_top1": 0.4, "all_top1": 0.3, "harmonic_mean": 0.45}
    table = over_shots([record(str(shots), shots=shots, protocol="base_to_new", metrics=scores) for shots in (1, 4)])
    assert table.cells == [["XR-VLM", "45.0", "45.0"]]
    assert "harmonic mean in % by the shots" in table.caption


def test_heads_are_a_column_where_methods_with_one_differ():
    table = over_shots([*runs("A", {1: [0.2], 2: [0.3]}, head="x"), *runs("A", {1: [0.1], 2: [0.2]}, head="y")])
    assert table.header[:2] == ["Method", "Head"]


def test_prompts_are_different_rows():
    table = over_shots([*runs("A", {1: [0.2], 2: [0.3]}, prompts="names"), *runs("A", {1: [0.1], 2: [0.2]})])
    assert [cells[:2] for cells in table.cells] == [["A", "learned"], ["A", "names"]]


def test_the_terminal_shows_shots_as_columns_and_names_the_rest():
    text = terminal_table(SWEEP)
    assert "ECE" not in text
    assert "25.0 ± 7.1 (2)" in text
    assert text.rstrip().endswith("are in report.md.")
    assert max(map(len, text.splitlines())) <= 120
    assert "report.md" not in terminal_table(runs("A", {4: [0.5]}))


def test_words_wrap_behind_their_marks():
    narrow = [line.split("  ")[0] for line in terminal_table(SWEEP, width=72).splitlines()]
    start = narrow.index("XR-VLM (image_")
    assert narrow[start:start + 2] == ["XR-VLM (image_", "parts=1)"]


def test_markdown_holds_the_same():
    rows = table_rows(markdown_table(over_shots(SWEEP)))
    assert [(row["Method"], row["1"], row["all"]) for row in rows][2] == ("XR-VLM", "25.0 ± 7.1 (2)", "91.0 ± 1.7")
    assert len(table_rows(long_tables(SWEEP))) == 8


def test_tables_load_no_library_of_pictures_and_pages():
    program = "import sys, xrvlm.reporting.tables; print(*{'torch', 'matplotlib', 'jinja2'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_caption_says_how_many_images_and_classes_and_what_chance_is():
    one = [record("a", images=1520, classes=40), record("b", label="CoOp", method="coop", images=1520, classes=40)]
    assert "1,520 test images in 40 classes; chance 2.5; " in tables(one)[0].caption
    mixed = [*one, record("c", label="PLOT", method="plot", images=44, classes=4)]
    assert "44-1,520 test images in 4-40 classes; chance 2.5 to 25.0; " in tables(mixed)[0].caption
    assert "test images in" not in tables([record("a")])[0].caption, "older records do not say"
