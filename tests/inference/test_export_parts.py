"""The sides of a tower as files say what its own library says, with tokens of that library's own tokenizer."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from command_line import TINY, told
from onnxruntime import InferenceSession
from photos import CLASSES, photo_folder
from slow import SLOW, slow
from torch import Tensor
from towers import IMAGE_KINDS, TEXT_KINDS, images
from zoo import classes, factory

import xrvlm
from xrvlm import Classifier, UserError
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.cli.main import main
from xrvlm.inference import export_parts as module
from xrvlm.inference.classifier import ModelHeader
from xrvlm.inference.export_parts import export_parts

TEXTS = ["a photo of the sparrow.", "two red dogs", "a house", "the bird with a blue wing", "cat"]
KINDS = IMAGE_KINDS | TEXT_KINDS


def classifier(clip: FrozenCLIP) -> Classifier:
    make, text = factory("zero_shot"), classes(("red wing", "dog", "cat"))
    return Classifier(clip, make(clip, text), ModelHeader.of(clip, make, text))


def ask(path: Path, **inputs: Any) -> Tensor:
    (found,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["embedding"], inputs)
    return torch.from_numpy(found)


def stored(path: Path) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("kind", ["vit", *slow(
    "hf clip", "timm efficientnet", "causal, own module", "causal, hf tokenizer", "bidirectional", "hf siglip",
    "roberta")])
def test_both_sides_say_what_their_library_says(tmp_path, kind):
    tiny = KINDS[kind]()
    image, text = export_parts(classifier(tiny.clip), tmp_path / "a.onnx")
    assert [image.name, text.name] == ["a.image.onnx", "a.text.onnx"]
    for count in (1, 5):
        batch, tokens = images(count, tiny.clip.transform.image_size, seed=count), tiny.tokenize(TEXTS[:count])
        for found, expected in ((ask(image, images=batch.numpy()), tiny.image(batch)),
                                (ask(text, tokens=tokens.numpy()), tiny.text(tokens))):
            assert found.shape == (count, tiny.clip.embed_dim)
            torch.testing.assert_close(found, F.normalize(expected.detach(), dim=-1), rtol=0, atol=1e-4)
    about = stored(text)["tokens"]
    assert (about["length"], about["tokenizer"] != "") == (tokens.shape[1], True)
    assert list(about["examples"].values()) == tiny.tokenize(list(about["examples"])).tolist()
    for path in (image, text):
        assert stored(path)["logit_scale"] == pytest.approx(tiny.clip.logit_scale.item())


@SLOW
def test_a_side_holds_its_own_weights_alone(tmp_path):
    clip = IMAGE_KINDS["vit"]().clip
    image, text = export_parts(classifier(clip), tmp_path / "a.onnx")
    shapes = [{tuple(entry.dims) for entry in onnx.load(path).graph.initializer} for path in (image, text)]
    table, patches = (49408, 24), (32, 3, 8, 8)
    assert [table in each for each in shapes] == [False, True]
    assert [patches in each for each in shapes] == [True, False]
    assert (stored(image)["part"], stored(text)["part"]) == ("image", "text")
    assert stored(image)["transform"]["image_size"] == 32 and "transform" not in stored(text)


def test_a_side_that_says_something_else_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    model = classifier(IMAGE_KINDS["vit"]().clip)
    (tmp_path / "a.image.onnx").write_text("before")
    monkeypatch.setattr(module.TextSide, "forward", lambda self, tokens: F.normalize(
        self.clip.text.encode_window(tokens) + 0.01, dim=-1))
    with pytest.raises(UserError, match="differs from torch by .* of the largest number of an embedding"):
        export_parts(model, tmp_path / "a.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.image.onnx", "before")]


@SLOW
def test_typed_or_called_new_classes_need_no_xrvlm(at_home, tmp_path, capsys, monkeypatch):
    photos = photo_folder(tmp_path / "photos", images=4)
    assert main(["adapt", f"data.root={photos}", *TINY, "method=linear_probe", "shots=2"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("record.json"))
    capsys.readouterr()
    assert main(["export", str(folder), "parts=image,text"]) == 0
    image, text = (folder / f"model.{part}.onnx" for part in ("image", "text"))
    assert capsys.readouterr().out.splitlines() == [str(image), str(text)]
    from open_clip.tokenizer import SimpleTokenizer

    prompts = [f"a photo of a {name}." for name in (*CLASSES, "hoopoe")]
    tokens = SimpleTokenizer()(prompts)
    clip = xrvlm.load_tiny_clip(device="cpu")
    batch = images(3, 64)
    logits = stored(image)["logit_scale"] * ask(image, images=batch.numpy()) @ ask(text, tokens=tokens.numpy()).T
    expected = clip.logit_scale * clip.encode_image(batch).pooled @ clip.encode_text(prompts).T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    assert np.ptp(expected.numpy()) > 0.1
    page = Path(__file__).parents[2] / "docs" / "guides" / "export.md"
    (block,) = re.findall(r"```python\n([^`]*model\.text\.onnx.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    told_there: dict[str, Any] = {"images": batch.numpy()}
    exec(block, told_there)
    prompts = ["a photo of a robin.", "a photo of a hoopoe."]
    expected = clip.logit_scale * clip.encode_image(batch).pooled @ clip.encode_text(prompts).T
    torch.testing.assert_close(torch.from_numpy(told_there["logits"]), expected, rtol=0, atol=1e-3)
    assert stored(text)["tokens"]["tokenizer"] == "open_clip SimpleTokenizer"
    assert xrvlm.export(folder, tmp_path / "b.onnx", parts=["text"]) == (tmp_path / "b.text.onnx",)
    assert not (tmp_path / "b.image.onnx").exists()
    for value, message in (("audio", "unknown parts 'audio'"), ("image,image", "once each"), ("[]", "once each")):
        assert message in told(capsys, "export", str(folder), f"parts={value}")
    with pytest.raises(UserError, match="parts must be a list or None, found 'image'"):
        xrvlm.export(folder, parts="image")    # type: ignore[call-overload]
