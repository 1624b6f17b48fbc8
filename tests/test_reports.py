"""Symptoms of public bug reports of other projects (docs/design/reports.md) that no other test keeps."""

import json
import signal
import subprocess
import sys
from io import BytesIO

import open_clip
import pytest
import torch
import yaml
from command_line import TINY
from photos import photo_folder
from PIL import Image
from safetensors.torch import save_file
from towers import (
    EMBED_DIM,
    SMALL_TEXT,
    TEXT,
    VIT,
    hf_clip_model,
    images,
    openclip_model,
    saved_tokenizer,
    tiny_vit,
)

from xrvlm.backbones import load_openclip, wrap_openclip
from xrvlm.cli.main import main
from xrvlm.data.hub import hub_dataset
from xrvlm.errors import UserError

SHORT = (*TINY, "features.views=1", "shots=2", "recipe.epochs=1")


@pytest.fixture
def model(tmp_path):
    """A small model that open_clip knows by name."""
    (tmp_path / "models").mkdir()
    config = {"embed_dim": EMBED_DIM, "vision_cfg": VIT, "text_cfg": TEXT}
    (tmp_path / "models" / "xt-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "models")
    yield "xt-vit"
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "models")
    del open_clip.factory._MODEL_CONFIGS["xt-vit"]


def test_each_split_has_the_order_of_its_own_class_label():
    datasets = pytest.importorskip("datasets")
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")

    def part(names, words):
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}] * len(words),
                                           "label": [names.index(word) for word in words]}, features=kinds)

    train = part(["robin", "jay", "owl"], ["robin", "jay", "owl"])
    for names in (["owl", "jay", "robin"], ["jay", "owl"]):
        split = hub_dataset(datasets.DatasetDict(train=train, test=part(names, names))).split
        assert split.classes == ("robin", "jay", "owl")
        assert [split.classes[item.label] for item in split.test] == names


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "xr_vlm_plus"])
def test_black_photos_give_numbers(at_home, tmp_path, method):
    for path in photo_folder(tmp_path / "black", images=6).rglob("*.png"):
        Image.new("RGB", (40, 40)).save(path)
    assert main(["adapt", "data.root=black", f"method={method}", *SHORT]) == 0
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json"))
    assert record["metrics"]["top1"] == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(tmp_path, model, kind):
    state = {key: value.to(kind) if value.is_floating_point() else value
             for key, value in openclip_model().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    clip = load_openclip(model, str(tmp_path / "half.safetensors"), device="cpu")
    assert (clip.precision, next(clip.parameters()).dtype) == ("fp32", torch.float32)
    assert (clip.encode_image(images(2)).pooled - tiny_vit().encode_image(images(2)).pooled).abs().max() < 0.01


def test_a_file_of_transformers_as_weights_of_open_clip(tmp_path, model):
    hf_clip_model().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"model\.safetensors does not fit xt-vit: .*choose the model"):
        load_openclip(model, str(tmp_path / "hf" / "model.safetensors"), device="cpu")
    with pytest.raises(UserError, match="no weights file at .*hf; check the path"):
        load_openclip(model, str(tmp_path / "hf"), device="cpu")


@pytest.mark.parametrize(("trunk", "pool", "proj", "width", "size"), [
    ("fastvit_mci0", "avg", None, 16, 64), ("vitamin_small_224", "", "linear", 16, 224),
    ("vit_pe_core_tiny_patch16_384", "map", "none", 192, 384)])
def test_trunks_of_published_models(trunk, pool, proj, width, size):
    network = open_clip.model.CustomTextCLIP(width, {
        "timm_model_name": trunk, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": proj,
        "image_size": size}, SMALL_TEXT).eval()
    clip = wrap_openclip(network, saved_tokenizer("<s>"), name=trunk, device="cpu")
    found = clip.encode_image(images(2, size), ("pooled", "tokens", "mid_tokens"))
    with torch.no_grad():
        expected = network.encode_image(images(2, size), normalize=True)
    torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-5)


def test_small_numbers_in_a_sweep_and_verbose(at_home, tmp_path):
    photo_folder(tmp_path / "photos", images=6)
    arguments = ["data.root=photos", "method=residual_probe", *SHORT]
    assert main(["adapt", "-m", *arguments, "recipe.learning_rate=1e-5,1e-3"]) == 0
    saved = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("runs/*/config.yaml")]
    assert {float(config["recipe"]["learning_rate"]) for config in saved} == {1e-5, 1e-3}
    assert main(["adapt", *arguments, "recipe.learning_rate=1e-5", "hydra.verbose=true"]) == 0
    assert len(list(tmp_path.glob("runs/*/config.yaml"))) == 2, "the same run"


@pytest.mark.parametrize(("words", "goes_on"), [(["adapt", "photos"], True), (["export", "runs/a"], False)])
def test_an_interruption_promises_no_more_than_holds(at_home, monkeypatch, capsys, words, goes_on):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("xrvlm.cli.main._run_hydra", interrupted)
    assert main(words) == 130
    assert ("the same command goes on" in capsys.readouterr().err) == goes_on


def test_an_interrupted_sweep_ends_and_goes_on(at_home, tmp_path):
    photo_folder(tmp_path / "photos", images=9)
    words = ["adapt", "-m", "data.root=photos", "method=linear_probe,tip_adapter", "shots=1,2", *TINY]
    # a process that is started in the background ignores Ctrl-C, and so would those that it starts
    sweep = subprocess.Popen([sys.executable, "-u", "-m", "xrvlm", *words], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert sweep.stdout is not None
    next(text for text in sweep.stdout if ": top-1 " in text)
    sweep.send_signal(signal.SIGINT)
    told = sweep.communicate(timeout=120)[1]
    assert sweep.returncode == 130
    assert "interrupted; the same command goes on" in told and "Traceback" not in told
    assert len(list(tmp_path.glob("runs/*/record.json"))) < 4
    assert main(words) == 0
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 4
