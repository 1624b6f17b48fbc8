"""The commands as a user types them, on the embedded tower and small folders of photos."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import FAST, TINY, told
from hydra.core.override_parser.overrides_parser import OverridesParser
from photos import CLASSES, photo_folder, write_photo
from PIL import Image
from safetensors.torch import save_file
from towers import openclip_model

from xrvlm import files
from xrvlm.cli import main as cli
from xrvlm.cli.commands import COMMANDS
from xrvlm.cli.main import main, quote
from xrvlm.features import bank

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "my (first) birds, 100%=café", images=5)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A finished run of the command line."""
    place = tmp_path_factory.mktemp("finished")
    assert main(["adapt", f"data.root={photos}", f"runs={place}", f"features.cache={place / 'cache'}", *FAST]) == 0
    (folder,) = [path.parent for path in place.rglob("record.json")]
    return folder


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "xrvlm adapt DIR" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xrvlm 0.")


def test_a_configuration_that_is_not_there_is_told_with_its_option(capsys):
    assert main(["report", "--config-name", "nope"]) == 2
    assert "config 'nope': --config-name needs --config-dir=DIR" in capsys.readouterr().err


def test_the_configuration_is_shown_and_nothing_is_run(capsys, tmp_path):
    assert main(["adapt", "--cfg", "job", "method=coop", "shots=3"]) == 0
    out = capsys.readouterr().out
    assert "shots: 3" in out
    assert "xrvlm.methods.coop.CoOp" in out
    assert not list(tmp_path.iterdir())


def test_the_whole_line(photos, finished, tmp_path, capsys):
    model = f"run={finished}"
    assert json.loads((finished / "record.json").read_text())["shots"] == 2
    capsys.readouterr()
    assert main(["eval", model, "device=cpu", "workers=0"]) == 0
    again = capsys.readouterr().out
    (metrics,) = (finished / "eval").rglob("metrics.json")
    first = json.loads((finished / "metrics.json").read_text())["summary"]
    assert json.loads(metrics.read_text())["summary"] == first
    assert f"top-1 {first['top1']:.1%}" in again
    other = photo_folder(tmp_path / "other", images=2)
    assert main(["eval", model, f"data.root={other}", "device=cpu", "workers=0"]) == 0
    assert len(list((finished / "eval").rglob("metrics.json"))) == 2
    photo = photos / CLASSES[0] / "1.png"
    assert main(["predict", model, f"images={photo}", "topk=2", f"out={tmp_path / 'p,1.csv'}", "device=cpu"]) == 0
    with (tmp_path / "p,1.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["image"] == "1.png"
    assert main(["report", f"runs={finished.parent}"]) == 0
    assert "XR-VLM" in capsys.readouterr().out
    assert (finished.parent / "report" / "report.md").exists()


def test_a_run_is_scored_again_in_its_own_precision(photos, tmp_path):
    assert main(["adapt", f"data.root={photos}", "method=linear_probe", "shots=1", "precision=bf16", *TINY]) == 0
    (run,) = (tmp_path / "runs").glob("linear_probe-*")
    for precision, same in (("auto", True), ("fp32", False)):
        assert main(["eval", f"run={run}", "device=cpu", "workers=0", f"precision={precision}"]) == 0
        (again,) = (run / "eval").rglob("predictions.csv")
        assert (again.read_text() == (run / "predictions.csv").read_text()) == same


def test_a_finished_run_is_not_repeated(photos, finished, capsys):
    stamp = (finished / "model.safetensors").stat().st_mtime_ns
    place = finished.parent
    assert main(["adapt", f"data.root={photos}", f"runs={place}", f"features.cache={place / 'cache'}", *FAST]) == 0
    assert (finished / "model.safetensors").stat().st_mtime_ns == stamp


def test_zero_shot_and_predict_without_a_run(photos, tmp_path, capsys):
    assert main(["zeroshot", f"data.root={photos}", *TINY]) == 0
    assert "CLIP zero-shot" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("blue tit\nwren\n")
    assert main(["predict", "classes=names.txt", f"images={photos}", *TINY]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 15


def test_sentences_are_found_beside_the_images(photos, tmp_path, capsys):
    (photos / "words.json").write_text(json.dumps({name: [f"a {name}."] for name in CLASSES}))
    try:
        assert main(["zeroshot", f"data.root={photos}", "text.descriptions=words.json", *TINY]) == 0
    finally:
        (photos / "words.json").unlink()
    (line,) = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["prompts"] == "descriptions"


def test_a_table_of_images(photos, tmp_path):
    rows = [f'"{name}/{i}.png","{name}",{"test" if i == 4 else "train"}' for name in CLASSES for i in range(5)]
    (photos / "split.csv").write_text("\n".join(["path,class,split", *rows]))
    try:
        assert main(["adapt", "data=table", f"data.root={photos}", "method=linear_probe", "shots=all", *TINY]) == 0
    finally:
        (photos / "split.csv").unlink()
    record = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    assert (record["shots"], record["label_budget"], record["method"]) == ("all", 12, "linear_probe")


@pytest.mark.parametrize("method", ["xr_vlm", "coop", "tip_adapter_f", "residual_probe"])
def test_the_fast_recipe_and_a_soup_go_with_every_trained_method(photos, tmp_path, method):
    small = FAST[5:] if method == "xr_vlm" else ["features.views=1"]
    assert main(["adapt", f"data.root={photos}", f"method={method}", "recipe=fast", "recipe.epochs=2", "shots=2",
                 "recipe.batch_size=2", "recipe.soup=[0.5,1]", "recipe.average_last=1", *TINY, *small]) == 0
    record = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    assert (record["method"].startswith(method[:4]), record["recipe"]) == (True, "fast (changed)")
    with next((tmp_path / "runs").glob("*/losses.csv")).open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_a_sweep_goes_on_past_a_mistake(photos, tmp_path, capsys):
    code = main(["adapt", "-m", f"data.root={photos}", "method=zero_shot,linear_probe", "shots=0,2", "runs=~/my runs",
                 *TINY])
    assert code == 2
    assert not (tmp_path / "~").exists()         # HOME is this folder
    records = [json.loads(line) for line in (tmp_path / "my runs" / "results.jsonl").read_text().splitlines()]
    assert {record["method"] for record in records} == {"zero_shot", "linear_probe"}
    error = capsys.readouterr().err
    assert "shots=0" in error
    assert "Traceback" not in error


def test_a_method_of_ones_own(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from xrvlm import Method, Recipe\n"
        "from xrvlm.methods.zero_shot import ensemble\n"
        "class Mine(Method):\n"
        "    label, prompts = 'mine', 'names'\n"
        "    recipe = Recipe('mine', epochs=0)\n"
        "    def __init__(self, clip, classes, *, power: float = 2.0):\n"
        "        super().__init__(clip, classes)\n"
        "        self.classes, self.power = classes, power\n"
        "    def class_features(self, clip):\n"
        "        return ensemble(clip, self.classes)\n"
        "    def logits(self, x, class_features):\n"
        "        return self.power * x.pooled @ class_features.T\n")
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "mine.yaml").write_text("_target_: mine.Mine\n_partial_: true\npower: 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["adapt", "--config-dir", str(tmp_path / "my_conf"), "method=mine", "method.power=3.0",
               f"data.root={photos}", "shots=1", *TINY]
    assert main(command) == 0
    record = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    assert (record["method"], record["label"], record["recipe"]) == ("mine.Mine", "mine", "mine")
    assert main(["predict", f"run=runs/{record['run']}", f"images={photos}", "device=cpu", "workers=0"]) == 0
    assert main(command) == 0
    assert len(list((tmp_path / "runs").glob("mine.Mine-*"))) == 1
    monkeypatch.setattr(sys.modules["mine"].Mine, "revision", 2)         # it computes another thing now
    assert main(command) == 0
    assert len(list((tmp_path / "runs").glob("mine.Mine-*"))) == 2


@pytest.mark.parametrize("value", [
    "~/birds", "/a b/c", "photo (1).jpg", "a,b.jpg", "a=b.jpg", "café.jpg", "Baird's Sparrow", 'say "hi"', "100%",
    "C:\\birds\\", "${HOME}", "[1]", "{a: b}", "a:b", "#1", "@home", "it\\'s", "x y  z", "null?", "1e3", "true"])
def test_paths_and_names_reach_the_program_as_typed(value):
    keys = ("data.root", "+run", "out", *([] if value == "[1]" else ["images"]))     # images may also be a list
    for key in keys:
        override = OverridesParser.create().parse_override(quote(f"{key}={value}"))
        from omegaconf import OmegaConf

        assert OmegaConf.create({"value": override.value()}).value == value
        assert isinstance(override.value(), str)


def test_other_values_keep_hydras_grammar():
    assert quote("shots=1,2,4") == "shots=1,2,4"
    assert quote("data.root='~/a,b'") == "data.root='~/a,b'"
    assert quote("run=null") == "run=null"
    assert quote("-m") == "-m"


# --- bad input: each a line that names the fix, exit code 2, what stood before intact

def adapt_arguments(photos, *more):
    return ["adapt", f"data.root={photos}", *TINY, *more]


@pytest.mark.parametrize("mistake", ["shots=0", "shots=four", "recipe.epochs=ten", "features.views=x",
                                     "method.image_parts=many", "seed=x", "data.root=nowhere"])
def test_mistakes_are_told_before_a_tower_is_fetched(photos, capsys, monkeypatch, mistake):
    monkeypatch.setattr("xrvlm.demo.tiny_clip.load_tiny_clip", lambda **_: pytest.fail("the tower was loaded"))
    monkeypatch.setattr("xrvlm.cli.runs.tower_of", lambda _: pytest.fail("the tower was loaded"))
    told(capsys, *adapt_arguments(photos, mistake))


def test_what_is_missing_is_named_with_the_short_form(capsys, at_home):
    assert told(capsys, "adapt", *TINY) == "error: data.root is not given; add data.root=VALUE, as in `xrvlm adapt DIR`"
    error = told(capsys, "predict", "a.png")
    Path("photos").mkdir()
    assert told(capsys, "adapt", "data=photos", *TINY).endswith("for the folder write data.root=photos")
    assert error.endswith("takes RUN PHOTO_OR_DIR ...: a run (its folder, or latest) before the photos; there is a.png "
                          "alone. Without a run: classes=names.txt images=PHOTO_OR_DIR")


@pytest.mark.parametrize(("name", "classes", "part_prompts", "expected"), [
    ("flowers17", ("daisy", "lily_of_the_valley", "tulip"), "descriptions", "part_descriptions"),
    ("drawn_birds", ("Kelbri's finch", "Maryar's finch"), "learned_from_descriptions", "learned_from_descriptions"),
])
def test_shipped_part_descriptions_by_name(tmp_path, name, classes, part_prompts, expected):
    photo_folder(tmp_path / "photos", images=3, classes=classes)
    assert main(["adapt", "data.root=photos", f"text.parts={name}", f"method.part_prompts={part_prompts}", *FAST]) == 0
    record, = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json"))
    assert record["prompts"] == expected


@pytest.mark.parametrize(("arguments", "message"), [
    (("method=xr_vlmm",), "unknown method 'xr_vlmm'; did you mean 'xr_vlm'.*available: "),
    (("backbone=vit_b99",), "unknown backbone 'vit_b99'; available: .*vit_b16_openai"),
    (("shotss=3",), "unknown option 'shotss'; did you mean 'shots'"),
    (("method.imagee_parts=3",), "unknown option 'method.imagee_parts'; did you mean 'method.image_parts'"),
    (("method.image_parts=many",), "method.image_parts must be a whole number, found 'many'"),
    (("method.image_parts=0",), "method.image_parts must be from 1 to 16"),
    (("method.head=crosss",), "unknown method.head 'crosss'; did you mean 'cross'.*available: alignment, cross, .*"),
    (("method.head=diagonal", "method.text_parts=3"), "as many of one as of the other, found method.image_parts=4 "),
    (("recipe.optimizer=lion",), "unknown recipe.optimizer 'lion'; available: adamw, sgd"),
    (("recipe.epochs=-3",), "epochs"),
    (("seed=abc",), "seed must be a whole number, found 'abc'"),
    (("seed=1.5",), "seed must be a whole number, found 1.5"),
    (("workers=-1",), "workers must be at least 0, found -1"),
    (("force=3",), "force must be true or false, found 3"),
    (("runs=null",), "runs must be a text, found null"),
    (("recipe.weight_decay=-1",), "weight_decay must be at least 0"),
    (("recipe.grad_clip=0",), "grad_clip must be above 0 or null"),
    (("recipe.learning_rate=nan",), "learning_rate must be above 0"),
    (("recipe.soup=2",), "recipe.soup must be a list of multiples .*, found 2"),
    (("recipe.average_last=1", "selection=val", "shots=1"), "selection=val keeps one epoch and .*average_last=1"),
    (("features.crop_scale=[0.5]",), "features.crop_scale must be a list of 2: a number, a number, found"),
    (("method.hidden=0",), "method.hidden must be at least 1"),
    (("method.context_words=''",), "holds no word"),
    (("shots=few",), "shots must be a whole number of images a class, at least 1, or all; found 'few'"),
    (("shots=0",), "shots must be a whole number .*; found 0"),
    (("recipe.lr=1",), "unknown option 'recipe.lr'; .*available: recipe.average_last, .*recipe.learning_rate"),
    (("recipe.lr=1",), "unknown option 'recipe.lr'; available"),          # not: did you mean recipe.eps
    (("method=",), "unknown method ''; available: .*xr_vlm"),
    (("shots=4,8",), "shots=4,8 holds several values: add -m for a run with each of them"),
    (("method=zero_shot,coop",), "method=zero_shot,coop holds several values: add -m"),
    (("-m", "seed=1,"), "cannot read seed=1,: a value with signs"),
    (("shots =4",), "cannot read 'shots =4': an option is KEY=VALUE, without a space before the = sign"),
    (("=4",), "cannot read '=4': an option is KEY=VALUE"),
    (("epochs=3",), "unknown option 'epochs'; did you mean 'recipe.epochs'"),
    (("data.rot=x",), "unknown option 'data.rot'; did you mean 'data.root'"),
    (("--shots", "4"), "an option has no dashes here: instead of --shots write shots=4"),
    (("--shotz", "4"), "unknown option '--shotz'; did you mean 'shots'"),
    (("data.sep=,",), "unknown option 'data.sep'"),
    (("seed=,",), "cannot read seed=,: a value with signs"),
    (("-shots=4",), "an option has no dashes here: instead of -shots=4 write shots=4"),
    (("--force", "birds"), "instead of --force write force=true"),
    (("selection=best",), "unknown selection 'best'; available: last, val"),
    (("device=tpu",), "unknown device 'tpu'"),
    (("precision=int4",), "unknown precision 'int4'"),
    (("text.templates=photoo",), "unknown template list 'photoo'.*did you mean 'photo'.*pass a path"),
    (("text.templates=no place",), "unknown template list 'no place'"),
    (("data.class_names=flowers18",), "unknown class-name list 'flowers18'.*did you mean 'flowers17'"),
    (("data.class_names=flowers17",), "holds 17 names for 3 classes"),
    (("text.descriptions=nowhere.json",), "nowhere.json"),
    (("method.part_prompts=descriptions",), "needs a sentence for each part of each class: .*text.parts=FILE.json"),
    (("text.parts=flowers17", "method.part_prompts=descriptions"),
     "no parts for 3 of 3 classes in flowers17: .*; add them, or set data.class_names to its names"),
    (("text.parts=flowers",), "unknown parts file 'flowers'; did you mean .*available: drawn_birds, flowers17"),
    (("method.part_prompts=none",), "unknown method.part_prompts 'none'; available: descriptions, learned, "),
    (("method.context=both",), "unknown method.context 'both'; available: shared, shared_then_specific, specific"),
    (("method.shared_length=1",), "shared_length=1 needs method.context=shared_then_specific"),
    (("recipe=null",), "recipe=null names no configuration: leave recipe= out"),
    (("method=1",), "method=1 names no configuration: leave method= out"),
    (("backbone=0.5",), "backbone=0.5 names no configuration"),
    (("shots=\x1b[31m",), r"^error: [ -~]*$"),
    (("recipe=adamww",), "unknown recipe 'adamww'; did you mean 'adamw'"),
    (("+shot=4",), "nothing reads shot: leave it out; `xrvlm adapt --cfg job` shows what there is"),
    (("+text.template=birds",), "nothing reads text.template: leave it out"),
    (("+method.clip=x",), "unknown option 'method.clip'; .*available: method.context, method.context_length"),
    (("method.context_length=90",), "the prompt of class .* shorten the name or the context by"),
    (("backbone=openclip", "backbone.model=ViT-Z", "backbone.pretrained=openai"), "unknown model of open_clip 'ViT-Z'"),
    (("backbone=openclip", "backbone.model=RN50", "backbone.pretrained=nobody"), "unknown weights of RN50 'nobody'"),
    (("backbone=openclip", "backbone.model=RN50", "backbone.pretrained=/no/where.pt"), "no weights file at /no"),
    (("backbone=openclip", "backbone.model=RN50"), "no weights for RN50: set backbone.pretrained to one of openai"),
    (("backbone=openclip",), "backbone.model is not given; add backbone.model=VALUE"),
    (("features.crop_scale=[0.9,0.1]",), "features.crop_scale"),
    (("runs=/proc/nowhere",), "cannot write /proc/nowhere.*choose another folder"),
])
def test_bad_arguments_are_told_in_one_line(photos, capsys, arguments, message):
    error = told(capsys, *adapt_arguments(photos, *arguments))
    assert re.search(message, error), error


def test_a_folder_that_is_named_twice_is_told(photos, capsys):
    assert "`xrvlm adapt` takes DIR and key=value" in told(capsys, "adapt", str(photos), "data.root=elsewhere")


def test_an_unknown_command_is_told(capsys):
    assert "unknown command 'train'; available: adapt" in told(capsys, "train")


def test_a_missing_value_is_told(photos, capsys):
    assert "data.root is not given; add data.root=VALUE" in told(capsys, "adapt", *TINY)
    assert "images is not given" in told(capsys, "predict", "run=x")
    assert "run is not given" in told(capsys, "eval")
    error = told(capsys, "predict", f"images={photos}", *TINY)
    assert "predict needs run (the folder of a finished run), or classes" in error


def test_names_for_an_evaluation_may_be_a_list(finished, capsys):
    error = told(capsys, "eval", str(finished), "data.class_names=[a]")
    assert "data.class_names is a list, and the order of the classes is not plain" in error


def test_bad_folders_are_told(tmp_path, capsys):
    assert "there is no folder" in told(capsys, *adapt_arguments("nowhere"))
    (tmp_path / "empty").mkdir()
    assert "found no class folders" in told(capsys, *adapt_arguments("empty"))
    photo_folder(tmp_path / "one", classes=("wren",))
    assert "found only one class" in told(capsys, *adapt_arguments("one"))
    photo_folder(tmp_path / "hollow")
    (tmp_path / "hollow" / "kite").mkdir()
    assert "kite" in told(capsys, *adapt_arguments("hollow"))
    write_photo(tmp_path / "loose" / "a.png", 0, 0)
    assert "put each class into its own folder" in told(capsys, *adapt_arguments("loose"))


def test_too_few_images_are_said_and_used(tmp_path, capsys, caplog):
    photo_folder(tmp_path / "few", images=3)
    assert main(adapt_arguments("few", "method=linear_probe", "shots=16")) == 0
    assert "fewer than 16 training images" in capsys.readouterr().err + caplog.text
    assert json.loads((tmp_path / "runs" / "results.jsonl").read_text())["label_budget"] == 6


def test_one_image_a_class_leaves_none_to_test_on(tmp_path, capsys):
    photo_folder(tmp_path / "single", images=1)
    assert "no image left to test on" in told(capsys, *adapt_arguments("single", "method=linear_probe"))
    photo_folder(tmp_path / "two", images=2)
    assert "selection=val needs validation images" in told(capsys, *adapt_arguments("two", "selection=val"))


def test_a_damaged_image_is_told_in_one_line_by_worker_processes_too(tmp_path, capsys):
    photo_folder(tmp_path / "birds")
    (tmp_path / "birds" / "wren" / "3.png").write_bytes(b"")
    error = told(capsys, *adapt_arguments("birds", "method=linear_probe", "shots=all", "workers=2"))
    assert error.startswith("error: ")
    assert "wren/3.png" in error
    assert "DataLoader" not in error


def test_predict_leaves_out_what_it_cannot_read(tmp_path, capsys, caplog):
    photo_folder(tmp_path / "birds")
    (tmp_path / "birds" / "wren" / "3.png").write_bytes(b"")
    (tmp_path / "names.txt").write_text("blue tit\nwren\n")
    arguments = ["predict", "classes=names.txt", *TINY]
    assert main([*arguments, f"images={tmp_path / 'birds'}", f"out={tmp_path / 'labels.csv'}"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if ".png: " in line and "left out" not in line]
    assert len(lines) == 23
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    (broken,) = (row for row in rows if "the file is empty" in row)
    assert broken.startswith("wren/3.png,,,")
    assert len(rows) == 24
    assert re.search("left out 1 of 24 files, the first because: cannot read the image .*wren/3.png", err + caplog.text)
    empty = tmp_path / "birds" / "wren" / "3.png"
    assert "wren/3.png: the file is empty" in told(capsys, *arguments, f"images={empty}")


def test_eval_keeps_the_classes_of_the_run_and_leaves_out_what_it_learned_from(photos, tmp_path, capsys, caplog):
    names = {"Sarkel's finch": "finch", "blue tit": "tit", "wren": "wren"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    arguments = ["data.class_names=names.json", "method=linear_probe", "shots=2"]
    assert main(adapt_arguments(photos, *arguments)) == 0
    record = json.loads((tmp_path / "runs" / "results.jsonl").read_text())
    (tmp_path / "names.json").write_text(json.dumps(names | {"wren": "finch", "Sarkel's finch": "wren"}))
    run = f"run=runs/{record['run']}"
    assert main(["eval", run, "device=cpu", "workers=0"]) == 0
    (metrics,) = (tmp_path / "runs").rglob("eval/*/metrics.json")
    assert json.loads(metrics.read_text())["summary"]["top1"] == record["metrics"]["top1"]
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert main(["eval", run, f"data.root={photos}", "data.class_names=names.json", "device=cpu", "workers=0"]) == 0
    assert "left out 6 of 15 images" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "not an image"])
def test_a_damaged_image_is_named_and_skipped_only_when_asked(tmp_path, capsys, caplog, damage):
    photo_folder(tmp_path / "birds")
    bad = tmp_path / "birds" / "wren" / "3.png"
    bad.write_bytes({"truncated": bad.read_bytes()[:-300], "empty": b"", "not an image": b"hello" * 99}[damage])
    arguments = adapt_arguments("birds", "method=linear_probe", "shots=all")
    error = told(capsys, *arguments)
    assert "wren/3.png" in error
    assert "data.skip_damaged=true" in error
    assert main([*arguments, "data.skip_damaged=true"]) == 0
    assert "skipped 1 of 24 images" in capsys.readouterr().err + caplog.text


def test_a_run_folder_that_does_not_fit_is_told(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    data = (finished / "model.safetensors").read_bytes()
    renamed = data.replace(b"xr_vlm", b"xr_vlq")
    for content, message in ((data[:-9], "is damaged or not a model of xrvlm"), (renamed, "unknown method")):
        (copy / "model.safetensors").write_bytes(content)
        assert message in told(capsys, "eval", f"run={copy}", "device=cpu")
    assert "no model at" in told(capsys, "eval", "run=nowhere", "device=cpu")
    other = photo_folder(tmp_path / "other", classes=("wren", "emu"))
    assert "'emu'" in told(capsys, "eval", f"run={finished}", f"data.root={other}", "device=cpu", "workers=0")
    fingerprint = json.loads((finished / "split.json").read_text())
    assert fingerprint["classes"] == sorted(CLASSES)


def test_a_run_of_other_weights_is_refused(finished, tmp_path, capsys, photos):
    weights = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, weights)
    error = told(capsys, *adapt_arguments(photos, "backbone=openclip", "backbone.model=ViT-B-32",
                                          f"backbone.pretrained={weights}"))
    assert "does not fit ViT-B-32" in error
    assert openclip_model() is not None


def test_a_damaged_cache_is_healed(photos, tmp_path, capsys, caplog):
    arguments = adapt_arguments(photos, "method=linear_probe", "shots=2")
    assert main(arguments) == 0
    before = json.loads((tmp_path / "runs" / "results.jsonl").read_text())["metrics"]
    for shard in (tmp_path / "cache").rglob("shard-*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    assert main([*arguments, "force=true"]) == 0
    assert "damaged feature shard" in capsys.readouterr().err + caplog.text
    assert json.loads((tmp_path / "runs" / "results.jsonl").read_text())["metrics"] == before


def test_a_damaged_checkpoint_is_told_and_force_starts_again(photos, tmp_path, capsys, monkeypatch):
    arguments = ["adapt", f"data.root={photos}", *FAST]
    monkeypatch.setattr("xrvlm.experiments.run.probabilities", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path / "cache"))
    (checkpoint,) = (tmp_path / "runs").rglob("last.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    error = told(capsys, *arguments)
    assert "cannot resume from" in error
    assert "force=true" in error
    assert main([*arguments, "force=true"]) == 0


def test_an_option_that_is_given_twice_is_told(photos, tmp_path, capsys):
    given = ["adapt", f"data.root={photos}", *FAST, f"runs={tmp_path}", f"features.cache={tmp_path / 'cache'}"]
    assert main([*given, "seed=3", "seed=3", "shots=1", "shots=2"]) == 0
    assert capsys.readouterr().err.count("warning: shots is given as 1 and as 2: 2 counts") == 1
    assert json.loads((tmp_path / "results.jsonl").read_text())["shots"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_an_output_without_space_is_told(finished):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-m", "xrvlm", "report", f"runs={finished.parent}"], stdout=full,
                               stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert "error: cannot write the output: No space left on device; send it where there is space" in ended.stderr


def test_a_full_disk_is_told_and_the_same_command_goes_on(photos, tmp_path, capsys, monkeypatch):
    arguments = ["adapt", f"data.root={photos}", *FAST]

    original = os.replace

    def full(source, target):
        if Path(target).name == "model.safetensors":
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    assert "No space left on device; free some space" in told(capsys, *arguments)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bank, "_write", lambda *_: pytest.fail("the tower ran again"))
    monkeypatch.setattr("xrvlm.training.fit._train_epoch", lambda *_: pytest.fail("it was trained again"))
    assert main(arguments) == 0


def test_the_module_runs_as_a_program(tmp_path):
    program = "import sys; from xrvlm.cli.main import main; sys.exit(main(['nothing']))"
    done = subprocess.run([sys.executable, "-c", program],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'nothing'")


def test_every_command_is_in_the_help():
    assert all(f"xrvlm {command}" in cli.HELP for command in COMMANDS)


def test_photos_of_any_size_are_labelled(finished, tmp_path, capsys):
    Image.new("LA", (300, 20), (9, 100)).save(tmp_path / "wide.png")
    assert main(["predict", f"run={finished}", "images=wide.png", "device=cpu", "workers=0"]) == 0
    assert capsys.readouterr().out.startswith("wide.png: ")


def test_a_sweep_parts_paths_and_names_at_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quote("data.root=in/a,in/b", sweep=True) == "data.root='in/a','in/b'"
    assert quote("text.templates=photo,birds", sweep=True) == "text.templates='photo','birds'"
    assert quote("text.templates=a photo of a {}, a bird.", sweep=True) == "text.templates='a photo of a {}, a bird.'"
    assert quote("data.root=it's a,b (2)", sweep=True) == "data.root='it\\'s a','b (2)'"
    assert quote("data.root='in/a','in/b'", sweep=True) == "data.root='in/a','in/b'"
    (tmp_path / "one, two").mkdir()
    assert quote("data.root=one, two", sweep=True) == "data.root='one, two'"
    assert quote("data.root=in/a,in/b") == "data.root='in/a,in/b'"
    assert quote("shots=1,2", sweep=True) == "shots=1,2"
