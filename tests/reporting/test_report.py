import csv
import errno
import json
import logging
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from results import long_tables, record, table_rows

from xrvlm import files
from xrvlm.errors import UserError
from xrvlm.evaluation import metrics
from xrvlm.experiments import record as records
from xrvlm.experiments.record import RunRecord, append_record
from xrvlm.reporting.plots import figures as plots
from xrvlm.reporting.report import report, write_report
from xrvlm.reporting.results import read_records
from xrvlm.reporting.tables import terminal_table

ROOT = Path(__file__).parents[2]


# ---- results.jsonl


def test_records_come_back_as_they_went(tmp_path):
    first, second = record("xr vlm/seed=1", world=3, shots="all"), record("b", label="CoOp é | x", head=None)
    append_record(tmp_path, first)
    append_record(tmp_path, second)
    assert read_records(tmp_path) == read_records(tmp_path / "results.jsonl") == [first, second]


def test_a_line_of_the_same_run_is_replaced(tmp_path):
    for entry in (record("a"), record("b"), record("a", top1=0.75)):
        append_record(tmp_path, entry)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert {entry.run: entry.metrics["top1"] for entry in read_records(tmp_path)} == {"b": 0.5, "a": 0.75}


def test_keys_of_a_newer_version_are_ignored(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({**asdict(record()), "energy_kwh": 3}))
    assert read_records(path) == [record()]


@pytest.mark.parametrize("damage", [
    b'{"method": "xr_v', b"null", b"\0\0\0\0", b"\xff\xfe broken", json.dumps({"run": "z"}).encode(),
    json.dumps({**asdict(record("z")), "metrics": {"top1": 0.5}}).encode(),
    json.dumps({**asdict(record("z")), "seed": "one"}).encode(),
    json.dumps({**asdict(record("z")), "shots": "few"}).encode(),
], ids=repr)
def test_a_damaged_line_stops_the_reader_and_not_the_writer(tmp_path, caplog, damage):
    path = tmp_path / "results.jsonl"
    append_record(tmp_path, record("old"))
    path.write_bytes(path.read_bytes() + damage)
    with caplog.at_level(logging.WARNING, logger="xrvlm.experiments.record"):
        append_record(tmp_path, record("new"))
    assert damage in path.read_bytes().split(b"\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 2 is damaged .*delete that line.*xrvlm adapt"):
        read_records(tmp_path)
    mended = [line for line in path.read_bytes().split(b"\n") if line != damage]
    path.write_bytes(b"\n".join(mended))
    assert read_records(tmp_path) == [record("old"), record("new")]


def test_a_damaged_line_is_told_to_the_writer(tmp_path, caplog):
    (tmp_path / "results.jsonl").write_text('{"method": "xr_v')
    with caplog.at_level(logging.WARNING, logger="xrvlm.experiments.record"):
        append_record(tmp_path, record())
    assert "damaged line" in caplog.text


def test_a_failed_write_leaves_the_old_results_whole(tmp_path, monkeypatch):
    append_record(tmp_path, record("a"))
    before = (tmp_path / "results.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="free some space"):
        append_record(tmp_path, record("b"))
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp*")) + list(tmp_path.glob(".*.tmp*"))


def test_two_processes_append_at_the_same_time(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(asdict(record())))
    program = (
        "import json, sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from xrvlm.experiments.record import RunRecord, append_record\n"
        "assert 'matplotlib' not in sys.modules\n"
        "folder = Path(sys.argv[1])\n"
        "base = RunRecord(**json.loads((folder / 'record.json').read_text()))\n"
        "print('ready', flush=True)\n"
        "for i in range(60): append_record(folder, replace(base, run=f'child{i}'))\n")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"    # or "" if it failed
        for i in range(60):
            append_record(tmp_path, record(f"parent{i}"))
        assert child.wait(timeout=60) == 0
    expected = {f"{who}{i}" for who in ("child", "parent") for i in range(60)}
    assert {entry.run for entry in read_records(tmp_path)} == expected


def test_a_tree_of_results_counts_each_run_once(tmp_path):
    append_record(tmp_path, record("sweep/a"))
    append_record(tmp_path / "sweep", record("a"))
    append_record(tmp_path / "sweep", record("b", seed=2))
    assert sorted(entry.run for entry in read_records(tmp_path)) == ["sweep/a", "sweep/b"]


@pytest.mark.parametrize("name", ["", "results.jsonl", "nowhere/results.jsonl"])
def test_nothing_to_read(tmp_path, name):
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(UserError, match=r"xrvlm adapt|there is no .*nowhere"):
        read_records(tmp_path / name)


def test_a_report_that_cannot_be_written_is_told_with_its_option(tmp_path):
    append_record(tmp_path, record("a"))
    (tmp_path / "report").write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="cannot write to .*report: name another folder with out='DIR'"):
        report(tmp_path)


def test_a_record_with_wrong_fields_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match=r"metrics\.ece"):
        record(metrics={"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0, "macro_f1": 1.0})
    with pytest.raises(ValueError, match="seed"):
        record(seed="1")


# ---- tables

SWEEP = [
    *(record(f"x{seed}", seed=seed, top1=top1) for seed, top1 in ((1, 0.50), (2, 0.53), (3, 0.59))),
    record("coop", label="CoOp", method="coop", head=None, recipe="coop", top1=0.45, learned_parameters=8192),
    record("trans", label="Trans|CLIP", method="trans", head=None, recipe="trans", transductive=True, top1=0.6),
    record("zero", label="CLIP", method="zero_shot", head=None, prompts="names", recipe=None, shots=0, label_budget=0,
           learned_parameters=0, train_seconds=0.0, top1=0.8),
]


def test_mean_and_sample_deviation_over_seeds():
    row = next(row for row in table_rows(long_tables(SWEEP)) if row["Method"] == "XR-VLM")
    assert row["Seeds"] == "3"
    assert row["Top-1"] == "54.0 ± 4.6"                                      # the deviation of a population is 3.7
    assert statistics.stdev([50, 53, 59]) == pytest.approx(4.58, abs=0.01)
    assert (row["Top-5"], row["Per class"], row["Macro-F1"], row["ECE"]) == ("90.0", "52.0", "47.0", "3.1")
    assert (row["Labels"], row["Time s"], row["Learned"]) == ("800", "12.5", "123,456")


def test_zero_shot_has_no_deviation_over_seeds_that_agree(tmp_path):
    for seed in (1, 2):
        append_record(tmp_path, record(f"z{seed}", seed=seed, label="CLIP", shots=0, top1=0.4))
        append_record(tmp_path, record(f"v{seed}", seed=seed, label="free", shots=0, top1=0.4 + seed / 10))
        for shots in (1, 4):
            append_record(tmp_path, record(f"c{seed}{shots}", seed=seed, label="CoOp", shots=shots))
    text = write_report(tmp_path).markdown.read_text(encoding="utf-8")
    rows = {row["Method"]: row for row in table_rows(text) if "4" in row}
    assert (rows["CLIP"]["0"], rows["free"]["0"], rows["CoOp"]["4"]) == ("40.0", "55.0 ± 7.1", "50.0 ± 0.0")


def test_rows_by_shots_then_top1_and_one_seed_without_deviation():
    rows = table_rows(long_tables(SWEEP))
    assert [row["Method"] for row in rows] == ["CLIP", "CoOp", "XR-VLM", r"Trans\|CLIP †"]
    assert rows[1]["Top-1"] == "45.0"
    text = long_tables([record("a", shots="all"), record("b", shots=16), record("c", shots=2)])
    assert [row["Shots"] for row in table_rows(text)] == ["2", "16", "all"]


def test_what_all_rows_share_stands_in_the_caption():
    text = long_tables(SWEEP)
    assert list(table_rows(text)[0])[:4] == ["Method", "Head", "Prompts", "Shots"]
    caption = text.split("\n", 1)[0]
    expected = ("cub", "ViT-B-16/openai", "features: cached", "selection: last", "recipe: own", "† transductive")
    assert all(word in caption for word in expected)
    assert "†" not in long_tables(SWEEP[:4])
    rows = table_rows(long_tables([*SWEEP, record("l", recipe="long", top1=1.0)]))
    assert [row["Recipe"] for row in rows] == ["own", "own", "own", "own", "long"]
    assert "; recipe: long; " in long_tables([record("l", recipe="long"), record("m", recipe="long", head=None)])


@pytest.mark.parametrize("change", [
    {"data": "cars"}, {"world": 2}, {"backbone": "RN50"}, {"shots": 8}, {"label": "XR-VLM+"}, {"head": "mlp"},
    {"prompts": "names"}, {"recipe": "long"}, {"features": "online"}, {"selection": "val"}, {"transductive": True},
    {"protocol": "base_to_new", "metrics": record().metrics | {"new_top1": 0.4, "all_top1": 0.3, "harmonic_mean": 0.4}},
])
def test_runs_of_different_settings_are_never_averaged(change):
    text = long_tables([record("a"), record("b", seed=2, **change)])
    assert [row["Seeds"] for row in table_rows(text)] == ["1", "1"]
    assert text.count("| Seeds |") == (2 if change.keys() & {"data", "world", "backbone", "protocol"} else 1)


def on_new_classes(run: str, top1: float, new: float, **changes) -> RunRecord:
    return record(run, top1=top1, protocol="base_to_new", metrics=record().metrics | {
        "top1": top1, "new_top1": new, "all_top1": 0.25, "harmonic_mean": metrics.harmonic_mean(top1, new)}, **changes)


def test_base_to_new_has_a_table_and_columns_of_its_own():
    records = [record("few"), on_new_classes("a", 0.9, 0.2, label="A"), on_new_classes("b", 0.6, 0.5, label="B"),
               on_new_classes("c", 0.6, 0.3, label="B", seed=2)]
    text = long_tables(records)
    few, *rows = table_rows(text)
    assert few["Top-1"] == "50.0"
    assert [row["Method"] for row in rows] == ["A", "B"]                     # by the harmonic mean, not by the base
    assert (rows[1]["Base"], rows[1]["New"], rows[1]["All"]) == ("60.0 ± 0.0", "40.0 ± 14.1", "25.0 ± 0.0")
    assert rows[1]["Harmonic"] == "47.3 ± 10.3"                              # of each run, then the mean
    assert "Top-5" not in rows[0]
    assert "ViT-B-16/openai · base to new;" in text
    assert max(map(len, terminal_table(records).splitlines())) <= 120


def test_a_record_of_base_to_new_has_its_metrics_and_older_lines_have_none(tmp_path):
    with pytest.raises(ValueError, match=r"type: metrics\.new_top1, metrics\.harmonic_mean, metrics\.all_top1"):
        record(protocol="base_to_new")
    old = {key: value for key, value in asdict(record()).items() if key != "protocol"}
    (tmp_path / "results.jsonl").write_text(json.dumps(old))
    assert read_records(tmp_path) == [record()]


def test_a_report_of_base_to_new_says_what_it_shows(tmp_path):
    for shots in (1, 4):
        append_record(tmp_path, on_new_classes(f"r{shots}", 0.6, 0.5, shots=shots))
    text = write_report(tmp_path).markdown.read_text(encoding="utf-8")
    assert "harmonic mean over shots, cub · ViT-B-16/openai · base to new" in text
    assert text.count("Of the base classes; its `predictions_new.csv`") == 1
    again = write_report(tmp_path, all_shots=True).markdown.read_text(encoding="utf-8")
    assert again.count("Of the base classes; its `predictions_new.csv`") == 2


def test_rows_alike_in_every_column_are_with_distinguishing_options():
    records = [record(f"r{i}", seed=1 + i % 2, setting=f"{i // 2}abcdef") for i in range(4)]
    text = long_tables(records)
    assert "[0abcde" in text.replace("\\", "")
    assert "[1abcde" in text.replace("\\", "")
    assert "compare their config.yaml" in text


def test_worlds_in_the_order_of_their_numbers():
    text = long_tables([record("a", world=10), record("b", world=9), record("c")])
    assert re.findall(r"world \d+", text) == ["world 9", "world 10"]


def test_copies_count_once_and_other_runs_of_a_seed_are_told():
    rows = table_rows(long_tables([record("a"), record("copy/a", train_seconds=13.0), record("b", seed=2)]))
    assert rows[0]["Seeds"] == "2"
    text = long_tables([record("a"), record("a-longer", top1=0.6)])
    assert table_rows(text)[0]["Seeds"] == "1 (2 runs)"
    assert "more runs than seeds" in text


def test_terminal_table_says_the_same_within_the_width():
    long = record("long", label="a method whose name is long " * 3, recipe="r" * 30, prompts="part_descriptions")
    sweep = [*SWEEP, long]
    text = terminal_table(sweep, width=120)
    assert max(map(len, text.splitlines())) <= 120
    squeezed = re.sub(r"\s", "", text)
    for row in table_rows(long_tables(SWEEP)):
        for cell in (row["Top-1"], row["Learned"], row["Time s"]):
            assert re.sub(r"\s", "", cell) in squeezed
    lines = text.splitlines()
    rule = next(line for line in lines if line.startswith("---"))
    assert len({len(line) for line in lines[lines.index(rule):] if re.search(r"\d$", line)}) == 1


# ---- the files of a run

CLASSES = ["Baird's Sparrow", "a,b", 'café "noir"', "d"]


def scores(labels: list[int], right: int) -> torch.Tensor:
    """Probabilities (n, 4) with the first `right` images right and the others taken for the next class."""
    winners = [label if i < right else (label + 1) % 4 for i, label in enumerate(labels)]
    return torch.nn.functional.one_hot(torch.tensor(winners), 4) * 0.6 + 0.1


def write_run(folder: Path, right: int) -> dict:
    labels = [0, 0, 1, 1, 2, 2, 2, 2]
    probabilities, truth = scores(labels, right), torch.tensor(labels)
    summary = metrics.summarise(probabilities, truth, CLASSES)
    metrics.write_metrics(folder / metrics.METRICS_FILE, summary, metrics.details(probabilities, truth, CLASSES))
    ids = [f"x ({i}).jpg" for i in range(8)]
    metrics.write_predictions(folder / metrics.PREDICTIONS, ids, truth, probabilities, CLASSES)
    records.write_losses(folder, [{"epoch": epoch, "loss": 2 / epoch, "learning_rate": 0.1, "val_top1": 0.5}
                                  for epoch in (1, 2, 3)])
    return summary


def test_predictions(tmp_path):
    probabilities = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]])
    ids = ["a,1.jpg", "caf\udce9.jpg"]
    metrics.write_predictions(tmp_path / metrics.PREDICTIONS, ids, torch.tensor([2, 0]), probabilities, CLASSES, topk=3)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "label", "prediction", "class_1", "probability_1", "class_2", "probability_2",
                       "class_3", "probability_3"]
    assert rows[1] == ["a,1.jpg", CLASSES[2], "a,b", "a,b", "0.500000", CLASSES[2], "0.200000", "d", "0.200000"]
    assert [rows[2][0], *rows[2][3::2]] == ["caf\\udce9.jpg", *CLASSES[:3]]   # equal: the lowest class first
    metrics.write_predictions(tmp_path / metrics.PREDICTIONS, ["a", "b"], None, probabilities, CLASSES, topk=9)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["", ""]
    assert "class_4" in rows[0]
    assert "class_5" not in rows[0]


def test_losses_and_metrics(tmp_path):
    summary = write_run(tmp_path, right=7)
    stored = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert stored["summary"] == summary
    assert stored["most_confused"] == [{"true": CLASSES[2], "predicted": "d", "count": 1, "share": 0.25}]
    assert (tmp_path / "losses.csv").read_text().startswith("epoch,loss,learning_rate,val_top1\n1,2.0,0.1,0.5\n")
    records.write_losses(tmp_path, [{"epoch": 1, "loss": 2.5, "learning_rate": 0.1}])
    assert (tmp_path / "losses.csv").read_text() == "epoch,loss,learning_rate\n1,2.5,0.1\n"


# ---- the report


def links(page: Path) -> list[Path]:
    found = re.findall(r"(?<!\\)\]\(([^()\s]*)\)", page.read_text(encoding="utf-8"))
    return [page.parent / unquote(link) for link in found]


def test_a_report_of_a_sweep(tmp_path):
    runs = tmp_path / "my runs (1)"
    for shots in (4, 16):
        for seed, right in ((1, 6), (2, 7)):
            run = f"it's [{shots}] é/seed={seed}"
            summary = write_run(runs / run, right)
            append_record(runs, record(run, shots=shots, seed=seed, metrics=summary))
    page = write_report(runs).markdown
    assert page == runs / "report" / "report.md"
    assert len(links(page)) == 5          # shots; and of 16 shots a folder, confusion, reliability and a loss
    assert "1 row with fewer shots left out here: `xrvlm report all_shots=true`" in page.read_text(encoding="utf-8")
    assert write_report(runs, all_shots=True).markdown == page
    text = page.read_text(encoding="utf-8")
    assert "left out" not in text
    assert [row["Top-1"] for row in table_rows(text) if "Top-1" in row] == ["81.2 ± 8.8"] * 2    # of 75.0 and 87.5
    assert len(links(page)) == 9          # shots; and of both settings a folder, confusion, reliability and a loss
    assert all(link.exists() for link in links(page))
    for path in page.parent.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.convert("RGB").getextrema() != ((255, 255),) * 3    # not a white page
    assert r'| café "noir" | d | 2 | 50.0 |' in text
    assert [row["Class"] for row in table_rows(text) if "Class" in row][:3] == ['café "noir"', "Baird's Sparrow", "a,b"]


def test_report_is_one_call(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "runs" / "a", right=6)
    append_record(tmp_path / "runs", record("a"))
    made = report("~/runs", photos=False)
    assert made.markdown == tmp_path / "runs" / "report" / "report.md"
    assert all(path.is_file() for path in (made.markdown, made.html, made.latex))
    assert made.table == terminal_table([record("a")])
    assert "made with photos=False" in made.html.read_text(encoding="utf-8")
    assert report(str(tmp_path / "runs"), "~/there", photos=True).html == tmp_path / "there" / "report.html"
    assert "does not say where its images were" in (tmp_path / "there" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="unknown baseline 'nothing'"):
        report(tmp_path / "runs", baseline="nothing")
    with pytest.raises(UserError, match="xrvlm adapt"):
        report(tmp_path / "runs" / "a")


def test_a_report_names_what_a_run_lacks(tmp_path):
    append_record(tmp_path, record("gone"))
    append_record(tmp_path, record("torn", shots=16))
    append_record(tmp_path, record("free", label="CLIP", shots=0, learned_parameters=0))
    write_run(tmp_path / "torn", 7)
    (tmp_path / "torn" / "predictions.csv").write_text("image,label\n1,2\n")
    (tmp_path / "torn" / "losses.csv").write_bytes(b"epoch,loss\n1,\xff\n")
    (tmp_path / "torn" / "metrics.json").write_text('{"summary": {}}')
    out = tmp_path / "elsewhere"
    text = write_report(tmp_path / "results.jsonl", out, all_shots=True).markdown.read_text(encoding="utf-8")
    sections = dict(zip(["start", "table", "free", "gone", "torn"], text.split("\n### "), strict=True))
    for file in ("predictions.csv", "losses.csv", "metrics.json"):
        assert f"folder holds no `{file}`" in sections["gone"]
        assert f"`{file}` of this run cannot be read (" in sections["torn"]
    assert "losses.csv" not in sections["free"]                              # nothing was trained, nothing is missing


def test_a_full_disk_stops_the_report(tmp_path, monkeypatch):
    append_record(tmp_path, record("a"))
    write_run(tmp_path / "a", 7)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="free some space"):
        write_report(tmp_path)


# ---- pictures


def test_classes_are_named_up_to_forty(tmp_path):
    names = [f"${{}}^{i} é " + "long " * 20 for i in range(41)]
    few, many = (plots.confusion(torch.eye(c, dtype=torch.long), names[:c]) for c in (40, 41))
    named = [text.get_text() for text in few.axes[0].texts]
    assert len(named) == 80
    assert named[6] == named[7]
    assert named[6].startswith(r"\${}^3 é long")
    assert all(len(name) <= 33 for name in named)
    many.draw_without_rendering()
    assert "0" in (shown := {label.get_text() for label in many.axes[0].get_yticklabels()})
    assert not any("long" in label for label in shown)
    plots.save(few, tmp_path / "few.png")
    empty = torch.zeros(1000, 1000, dtype=torch.long)
    plots.save(plots.confusion(empty, ["x"] * 1000, title="鳥 $"), tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as picture:
        assert min(picture.size) > 1000


def test_the_report_compares_four_settings_of_one_shot_count(tmp_path):
    for i in range(3):
        append_record(tmp_path, record(f"r{i}", shots=16, setting=f"s{i}", options={"image_parts": i}))
    write_report(tmp_path)
    assert not list(tmp_path.glob("report/*bars.png"))
    append_record(tmp_path, record("head", shots=16, setting="s9", head="mlp", options={"head": "mlp"}))
    append_record(tmp_path, record("zero", shots=0, label="CLIP"))
    text = write_report(tmp_path).markdown.read_text(encoding="utf-8")
    picture, = tmp_path.glob("report/*-16shots-bars.png")
    assert text.index(picture.name) < text.index("| Method |")
    assert "### All metrics" not in text


def test_a_report_over_shots_begins_with_shots_as_columns(tmp_path):
    for shots in (1, 4, "all"):
        append_record(tmp_path, record(f"r{shots}", shots=shots, setting=f"s{shots}"))
    text = write_report(tmp_path).markdown.read_text(encoding="utf-8")
    first, heading, second = (text.index(words) for words in ("| 1 | 4 | all |", "### All metrics", "| Shots |"))
    assert first < text.index("-shots.png") < heading < second
    assert re.findall(r"^### .*XR-VLM, (.*)$", text, re.MULTILINE) == ["all shots"]
    assert "2 rows with fewer shots left out here" in text


def test_a_part_map_lies_where_the_part_is():
    maps = torch.zeros(3, 7, 7, dtype=torch.bfloat16, requires_grad=True).clone()
    maps[0, 1, 5] = -3
    maps[1, 6, 0] = 1e4
    figure = plots.part_maps(Image.new("L", (1400, 700), 128), maps, titles=["head", "tail", "flat"], columns=3)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["photo", "head", "tail", "flat"]
    low, high, flat = (np.asarray(axes.images[1].get_array()) for axes in figure.axes[1:4])
    assert low.shape == axes_size(figure.axes[0]) == (240, 480)
    assert np.unravel_index(low.argmin(), low.shape) == pytest.approx((1.5 / 7 * 240, 5.5 / 7 * 480), abs=2)
    row, column = np.unravel_index(high.argmax(), high.shape)
    assert row > 6 / 7 * 240
    assert column < 1 / 7 * 480
    assert (high.max(), flat.max()) == (1, 0)


def axes_size(axes) -> tuple[int, int]:
    return axes.images[0].get_size()


def test_a_grid_has_a_row_an_image(tmp_path):
    images = [Image.new("RGB", (60, 40), "red"), Image.new("RGB", (30, 90), "blue")]
    maps = [np.random.default_rng(0).random((2, 3, 4))] * 2
    figure = plots.grid(images, maps, names=["a $", "b"], titles=["head", "tail"])
    assert [axes.get_title() for axes in figure.axes] == ["photo", "head", "tail", "", "", ""]
    assert figure.axes[3].get_ylabel() == "b"
    plots.save(figure, tmp_path / "grid.png")


def test_part_maps_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        plots.part_maps(Image.new("RGB", (8, 8)), np.full((1, 2, 2), np.nan))


def test_the_first_line_is_a_sentence_for_a_reader_of_no_metric(tmp_path):
    best = {"label": "XR-VLM+", "shots": 16, "images": 1520, "classes": 40}
    for each in (record("a", top1=0.2, images=1520, classes=40, shots=0, label="CLIP zero-shot"),
                 record("b", top1=0.687, **best), record("c", top1=0.9, **best | {"label": "T"}, transductive=True)):
        append_record(tmp_path, each)
    lines = write_report(tmp_path).markdown.read_text(encoding="utf-8").splitlines()
    assert lines[2] == ("On cub, XR-VLM+ with 16 labelled images a class is right for 69 of 100 test photos "
                        "(1,520 photos, 40 classes); a guess would be right for 2.5.")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert f'<p class="lead">{lines[2]}</p>' in page
