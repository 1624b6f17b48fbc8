"""Options that no record tells, from config.yaml."""

from pathlib import Path

from results import record

from xrvlm.experiments.record import RunRecord
from xrvlm.reporting.results import display_names, rows_of, with_distinguishing_options


def run(root: Path, name: str, templates: str, *, data: str = "birds", prompts: str = "names",
        descriptions: str = "null", **changes) -> RunRecord:
    (root / name).mkdir()
    lines = ("seed: 1", f"device: {name}", f"data: {{root: /{name}}}", "text:", f"  templates: {templates}",
             f"  descriptions: {descriptions}")
    (root / name / "config.yaml").write_text("\n".join(lines))
    return record(name, series=name, setting=name, data=data, label="CLIP", shots=0, prompts=prompts, **changes)


def test_rows_that_nothing_tells_apart_get_what_their_configurations_differ_in(tmp_path):
    records = [run(tmp_path, "a", "photo"), run(tmp_path, "b", "/my/own.txt"),
               run(tmp_path, "c", "photo", prompts="descriptions", descriptions="x.json"),
               run(tmp_path, "d", "photo", data="cars"), run(tmp_path, "e", "photo", options={"power": 2})]
    found = with_distinguishing_options(records, tmp_path)
    assert [entry.options for entry in found] == [
        {"templates": "photo"}, {"templates": "own.txt"}, {"templates": "photo"}, {"templates": "photo"}, {"power": 2}]
    rows = display_names([
        row for row in rows_of(found) if row.first.data == "birds" and "power" not in row.first.options])
    assert set(rows.values()) == {"CLIP, names (templates=photo)", "CLIP, names (templates=own.txt)",
                                  "CLIP, descriptions (templates=photo)"}


def test_records_stay_where_nothing_is_to_be_told_or_a_file_is_missing(tmp_path):
    clear = [run(tmp_path, "a", "photo"), run(tmp_path, "b", "ensemble", data="cars")]
    assert with_distinguishing_options(clear, tmp_path) == clear
    alike = [*clear, record("gone", series="gone", data="birds", label="CLIP", shots=0, prompts="names")]
    assert with_distinguishing_options(alike, tmp_path) == alike
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "config.yaml").write_text("[}")
    assert with_distinguishing_options(alike, tmp_path) == alike
    older = [clear[0], record("older", series="", data="birds", label="CLIP", shots=0, prompts="names")]
    assert with_distinguishing_options(older, tmp_path) == older


def test_other_images_below_folders_of_one_name_are_told_by_where_they_stand(tmp_path):
    for name, root in (("a", "/corrupt/blur/1"), ("b", "/corrupt/noise/1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"data: {{root: {root}, _target_: x}}")
    records = [record(name, series=name, setting=name, data="1", tested=name) for name in "ab"]
    found = with_distinguishing_options(records, tmp_path)
    assert [entry.options for entry in found] == [{"root": "blur/1"}, {"root": "noise/1"}]
