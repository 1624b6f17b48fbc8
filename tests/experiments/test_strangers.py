"""A run folder that comes from anyone: what its files say is data, checked before it is used."""

import contextlib
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from threading import Thread

import pytest
import torch
import yaml
from photos import photo_folder
from safetensors import safe_open
from safetensors.torch import save_file

import xrvlm
from xrvlm.cli.main import main
from xrvlm.data.dataset import Split
from xrvlm.errors import UserError
from xrvlm.evaluation.metrics import as_cell, from_cell, write_predictions
from xrvlm.experiments.record import RunOptions, RunRecord, append_record, read_record
from xrvlm.experiments.saved import SavedRun, read_split, recorded_hashes
from xrvlm.files import as_file_name, leads_out, parsed
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.reporting.paired import read_outcomes
from xrvlm.reporting.published import published
from xrvlm.reporting.results import read_records, rows_of
from xrvlm.reporting.tables import tables, terminal_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of the linear probe on the tiny tower."""
    home = tmp_path_factory.mktemp("strangers")
    features = xrvlm.FeatureSettings(views=0, cache=str(home / "cache"))
    photos = xrvlm.image_folder(photo_folder(home / "photos", images=4))
    return xrvlm.adapt(xrvlm.load_tiny_clip(device="cpu"), photos, "linear_probe", shots=2,
                       options=RunOptions(runs=home / "runs", features=features)).folder


@pytest.fixture
def run(made, tmp_path, at_home):
    """A copy of it, to be changed."""
    return shutil.copytree(made, tmp_path / "runs" / made.name)


def rewritten(run, change=lambda header: header, weights=lambda values: values):
    """The model with its header and its tensors changed."""
    with safe_open(run / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["xrvlm"])
        tensors = {name: weights(file.get_tensor(name)) for name in file.keys()}    # noqa: SIM118
    changed = change(header)
    text = changed if isinstance(changed, str) else json.dumps(changed)
    save_file(tensors, run / "model.safetensors", {"xrvlm": text})
    return run


class Trap:
    """A pickle that writes a file when it is read."""

    def __reduce__(self):
        return open, ("CODE_RAN", "w")


@pytest.mark.parametrize("command", ["report", "eval", "explain", "export", "predict"])
def test_no_code_that_a_configuration_names_is_called(run, tmp_path, command, capsys):
    torch.save(Trap(), run / "x.pt")
    trap = {"_target_": "torch.load", "f": str(run / "x.pt"), "weights_only": False}
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("name", "class_names", "root"):
        config["data"][key] = config["data"]["loader"]["options"][key] = trap
    config["method"] = config["text"] = config["features"] = trap
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    photo = tmp_path / "photo.png"
    shutil.copy(next((run.parents[1]).rglob("*.png"), None) or make_photo(tmp_path), photo)
    arguments = {"report": [f"runs={run.parent}"], "predict": [f"run={run}", f"images={photo}"]}
    main([command, *arguments.get(command, [f"run={run}"])])
    assert not list(tmp_path.rglob("CODE_RAN"))
    assert "Traceback" not in capsys.readouterr().err


def make_photo(folder):
    return next(photo_folder(folder / "more", images=1).rglob("*.png"))


def test_a_method_comes_from_where_the_user_says(run, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("open('CODE_RAN', 'w')\nclass Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(run, lambda header: header | {"method": header["method"] | {"name": "trap.Mine"}})
    with pytest.raises(UserError, match=r"the method trap\.Mine, which is not registered, and nothing is imported"):
        Classifier.load(run)
    assert not list(tmp_path.rglob("CODE_RAN"))


@pytest.mark.parametrize("change", [
    lambda header: [], lambda header: 5, lambda header: None, lambda header: "[" * 100_000 + "]" * 100_000,
    lambda header: header | {"classes": header["classes"] | {"names": ["a"] * 4}},
    lambda header: header | {"classes": header["classes"] | {"names": ["a", "b", "c", "\x1b[31md"]}},
    lambda header: header | {"classes": header["classes"] | {"names": ["a", "b", "c", "d\u202ec"]}},
    lambda header: header | {"classes": header["classes"] | {"names": ["a", "b", "c", " "]}},
    lambda header: header | {"classes": header["classes"] | {"names": "abcd"}},
    lambda header: header | {"classes": header["classes"] | {"prompts": [["a"]]}},
    lambda header: header | {"classes": header["classes"] | {"names": [1, 2, 3, 4]}},
    lambda header: header | {"classes": 7}, lambda header: header | {"method": []},
    lambda header: header | {"metrics": "top1"}, lambda header: header | {"split": 3},
    lambda header: header | {"backbone": header["backbone"] | {"fingerprint": 3}},
    lambda header: header | {"backbone": header["backbone"] | {"loader": {"name": "os.system", "options": {}}}},
    lambda header: header | {"backbone": header["backbone"] | {"loader": {"name": "photo", "options": {"no such": 1}}}},
    lambda header: header | {"method": header["method"] | {"options": {"no such": 1}}},
])
def test_a_header_that_is_none_is_told(run, change):
    with pytest.raises(UserError, match=r"model\.safetensors|no loader of xrvlm|the file's options") as raised:
        Classifier.load(rewritten(run, change), device="cpu")
    assert "\x1b" not in str(raised.value)


def test_a_list_of_other_names_for_numbered_classes_is_in_the_order_of_the_numbers(tmp_path, at_home):
    for number in range(1, 12):
        shutil.copytree(photo_folder(tmp_path / "drawn", images=4) / "wren", tmp_path / "photos" / str(number))
    folder = xrvlm.adapt(xrvlm.load_tiny_clip(device="cpu"), xrvlm.image_folder(tmp_path / "photos"), "linear_probe",
                         shots=1, options=RunOptions(features=xrvlm.FeatureSettings(views=0))).folder
    split = SavedRun(folder).dataset([f"bird {number}" for number in range(1, 12)]).split
    assert all(split.classes[item.label] == f"bird {item.id.split('/')[0]}" for item in split.train)


def test_a_model_of_other_classes_than_the_split_is_told(run, capsys):
    rewritten(run, lambda header: header | {"classes": header["classes"] | {"names": header["classes"]["names"][::-1]}})
    assert main(["eval", f"run={run}", "device=cpu"]) == 2
    assert "the model and the split.json in" in capsys.readouterr().err


@pytest.mark.parametrize("value", [1e30, -3e38, float("nan"), float("inf")])
def test_weights_that_give_no_numbers_are_told(run, tmp_path, value):
    rewritten(run, weights=lambda values: torch.full_like(values, value) if values.is_floating_point() else values)
    with pytest.raises(UserError, match="not finite.*adapt again"):
        Classifier.load(run, device="cpu").predict(make_photo(tmp_path))


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/hostname", "a/../../b.png", "..\\b.png", "C:\\b.png",
                                  "a/\x1b[31m.png"])
def test_a_split_cannot_lead_out_of_its_folder(run, path):
    record = json.loads((run / "split.json").read_text())
    record["test"][0]["path"] = path
    split = Split(tuple(record["classes"]), **{
        subset: tuple(xrvlm.Item(entry["path"], record["classes"].index(entry["class"])) for entry in record[subset])
        for subset in ("train", "val", "test")})
    (run / "split.json").write_text(json.dumps(record | {"fingerprint": split.fingerprint}))
    with pytest.raises(UserError, match=r"split\.json is not a split: .*(outside of the folder|control character)"):
        read_split(run / "split.json")


@pytest.mark.parametrize(("change", "wrong"), [
    ({"metrics": {"top1": float("nan")}}, "metrics.top1"), ({"metrics": {"top1": -3}}, "metrics.top1"),
    ({"metrics": {"top1": True}}, "metrics.top1"), ({"metrics": {"top1": 97.0}}, "metrics.top1"),
    ({"shots": -1}, "shots"), ({"shots": True}, "shots"), ({"seed": "1"}, "seed"), ({"run": "../../else"}, "run"),
    ({"run": "/etc"}, "run"), ({"run": "x" * 256}, "run"), ({"run": "x/" * 3000}, "run"), ({"images": -3}, "images"),
    ({"classes": -1}, "classes"), ({"label_budget": -5}, "label_budget"),
    ({"method": "\x1b[2J"}, "control character"), ({"label_budget": None}, "label_budget"),
    ({"train_seconds": -5.0}, "train_seconds"), ({"train_seconds": float("inf")}, "train_seconds")])
def test_a_record_is_checked(run, change, wrong):
    record = asdict(read_record(run / "record.json"))
    changed = record | {key: record[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    (run.parent / "results.jsonl").write_text(json.dumps(changed) + "\n")
    with pytest.raises(UserError, match=rf"results\.jsonl, line 1 is damaged \(.*{wrong}"):
        read_records(run.parent)
    with pytest.raises(ValueError, match=wrong):
        RunRecord(**changed)


@pytest.mark.parametrize("change", [{"text": 5}, {"text": {"templates": ["a"]}}, {"data": []}, {"data": {"loader": {}}},
                                    {"data": {"loader": {"name": [1], "options": {}}}}, 7])
def test_a_configuration_of_other_types_is_told(run, change, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | change if isinstance(change, dict) else change))
    assert main(["eval", f"run={run}", "device=cpu"]) == 2
    assert "config.yaml is damaged; delete it" in capsys.readouterr().err


def test_a_name_stays_in_its_folder(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["name"] = config["data"]["loader"]["options"]["name"] = "../../../escaped"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["eval", f"run={run}", "device=cpu"]) == 0
    assert not [path for path in tmp_path.rglob("escaped*") if run not in path.parents]
    assert [leads_out(path) for path in ("a/b", "../a", "/a", "a/..", "c:/a", "a..b/c")] == [
        False, True, True, True, True, False]
    assert as_file_name("../a b\\c") == "_a_b_c"


def test_a_class_is_no_formula(tmp_path):
    names = ["=cmd|' /C calc'!A0", "@sum", "-1", "plain", "'=1", "''=1", "'plain"]
    write_predictions(tmp_path / "p.csv", ["=1.png"], torch.tensor([0]), torch.eye(7)[:1], names)
    assert "\n'=1.png,'=cmd|' /C calc'!A0,'=cmd|" in (tmp_path / "p.csv").read_text()
    outcomes = read_outcomes(tmp_path / "p.csv")
    assert (outcomes.images, outcomes.labels) == (["=1.png"], names[:1])
    assert [from_cell(as_cell(name)) for name in names] == names


def test_aliases_without_end_are_told(run, capsys):
    text = (run / "config.yaml").read_text()
    for more in ("more: &a [*a]\n", "a0: &a0 [x]\n" + "".join(
            f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12))):
        (run / "config.yaml").write_text(text + more)
        assert main(["eval", f"run={run}", "device=cpu"]) == 2
        assert "config.yaml is damaged; delete it" in capsys.readouterr().err


def test_a_record_nested_without_end_stops_no_other(run):
    results = run.parent / "results.jsonl"
    results.write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 1 is damaged \(it is nested too deep"):
        read_records(run.parent)
    append_record(run.parent, read_record(run / "record.json"))
    assert results.read_text().count("\n") == 2


@pytest.mark.parametrize("changed", ["results.jsonl", "record.json", "predictions.csv"])
def test_a_report_tells_of_files_of_a_run_that_disagree(run, changed, caplog):
    own = read_record(run / "record.json")
    append_record(run.parent, own)
    assert "Caution" not in xrvlm.report(run.parent).markdown.read_text(encoding="utf-8")
    better = asdict(own) | {"metrics": own.metrics | {"top1": 0.75 + own.metrics["top1"] / 5}}
    if changed == "results.jsonl":
        append_record(run.parent, RunRecord(**better))
    elif changed == "record.json":
        (run / changed).write_text(json.dumps(better))
    else:
        lines = (run / changed).read_text().splitlines()
        (run / changed).write_text("\n".join(lines[:-1]))
    report = xrvlm.report(run.parent)
    assert {"results.jsonl": "record.json"}.get(changed, changed) in caplog.text
    for page in (report.markdown, report.html):
        text = page.read_text(encoding="utf-8")
        assert "Caution: files of runs were changed" in text.replace("\\", "")


@pytest.mark.parametrize(("table", "column", "value"), [
    ("per_class", "class", []), ("per_class", "class", 1.5), ("per_class", "accuracy", float("nan")),
    ("per_class", "accuracy", "1"), ("most_confused", "true", {}), ("most_confused", "share", -2.0),
    ("per_class", "class", "\x1b[2J")])
def test_a_report_of_damaged_figures_says_so(run, table, column, value):
    figures = json.loads((run / "metrics.json").read_text())
    rows = {"per_class": figures["per_class"], "most_confused": [{"true": "a", "predicted": "b", "count": 1,
                                                                 "share": 0.5}]}
    rows[table][0][column] = value
    (run / "metrics.json").write_text(json.dumps(figures | rows))
    append_record(run.parent, read_record(run / "record.json"))
    made = xrvlm.report(run.parent)
    text = made.markdown.read_text(encoding="utf-8")
    assert "`metrics.json` of this run cannot be read (ValueError" in text
    assert "| nan |" not in text and "\x1b" not in text


def test_a_root_that_is_no_path_is_not_looked_into(run, tmp_path, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["loader"]["options"]["root"] = {"a": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    photo = next((run.parents[1] / "photos").rglob("*.png"), None) or next(photo_folder(tmp_path / "p").rglob("*.png"))
    assert main(["predict", str(run), str(photo), "classes=[a,b]", "device=cpu"]) == 2
    assert "is bound to the 3 classes" in capsys.readouterr().err


def test_a_finished_run_is_shown_from_a_disk_that_cannot_be_written(run, monkeypatch):
    before = (run.parent / "results.jsonl").exists()
    (run / "last.safetensors").write_bytes(b"of a run that was killed as it ended")
    home = SavedRun(run)
    again = partial(xrvlm.adapt, xrvlm.load_tiny_clip(device="cpu"), home.dataset(), "linear_probe", shots=2,
                    options=RunOptions(runs=run.parent, features=xrvlm.FeatureSettings(views=0)))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert again().folder == run
    assert (run.parent / "results.jsonl").exists() == before and (run / "last.safetensors").exists()
    monkeypatch.undo()
    assert again().folder == run
    assert (run.parent / "results.jsonl").exists() and not (run / "last.safetensors").exists()


STRANGE = ["\ud800", "a\udfffb", 10**399, -(10**30), None, [], {}, True, 0.5, 1e308]


def replaced_everywhere(value, strange):
    """`value` with `strange` in the place of each part of it, one part at a time."""
    yield strange
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in list(inner):
        for changed in replaced_everywhere(part, strange):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = changed
            yield copy


@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: repr(value)[:12])
def test_any_part_of_a_file_may_be_strange(run, tmp_path, strange):
    """Each is read or refused in one line, which a terminal can show."""
    split, record = (json.loads((run / name).read_text()) for name in ("split.json", "record.json"))
    path, table = tmp_path / "any.json", tmp_path / "results.jsonl"
    for whole in replaced_everywhere(split, strange):
        path.write_text(json.dumps(whole))
        for read in (read_split, recorded_hashes):
            with contextlib.suppress(UserError):
                read(path)
    for whole in replaced_everywhere(record, strange):
        table.write_text(json.dumps(whole))
        with contextlib.suppress(UserError):
            rows = rows_of(read_records(table))
            published(rows, tmp_path)
            terminal_table([row.first for row in rows])
            tables([row.first for row in rows])
    with safe_open(run / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["xrvlm"])
    for whole in replaced_everywhere(header, strange):
        with contextlib.suppress(UserError, KeyError, TypeError, AttributeError, ValueError):
            ModelHeader.from_json(json.dumps(whole), path).to_json().encode()


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', b'["\\uDFFF"]', f'[{"9" * 400}]', '{"a": ' * 10**5])
def test_json_that_cannot_be_used_is_no_json(text):
    with pytest.raises(ValueError, match="half a character|400 digits|nested too deep"):
        parsed(text)
    assert parsed('["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]     # a pair, and a backslash


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "split.json", "config.yaml", "losses.csv"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    record = json.loads((run / "record.json").read_text())
    lines = [record, record | {"seed": record["seed"] + 1, "series": "another"}]     # so that config.yaml is read, too
    (run.parent / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    begun = Thread(target=xrvlm.report, args=(run.parent,), daemon=True)
    begun.start()
    begun.join(60)
    waits = begun.is_alive()
    if waits:                            # lets the thread end
        os.close(os.open(run / name, os.O_RDWR | os.O_NONBLOCK))
    assert not waits
    assert (run.parent / "report" / "report.html").exists()
