"""Towers of transformers from folders: what a checkpoint says of itself is followed, what it lacks is not made up."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from towers import WORDS, hf_clip_model, hf_siglip_model, images, words_tokenizer
from transformers import (
    AutoImageProcessor,
    BertConfig,
    CLIPImageProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from xrvlm.backbones import hf, load_hf, wrap_hf
from xrvlm.errors import UserError
from xrvlm.views import evaluation_view

ALL = ("pooled", "tokens", "mid_tokens")


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(params=["clip", "siglip"])
def folder(request, tmp_path):
    """A checkpoint as `save_pretrained` leaves it."""
    siglip = request.param == "siglip"
    (hf_siglip_model() if siglip else hf_clip_model()).save_pretrained(tmp_path)
    words_tokenizer("" if siglip else "<s>").save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    processor = SiglipImageProcessor(size=size) if siglip else CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size=size, resample=2, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    return SimpleNamespace(path=tmp_path, siglip=siglip)


def test_a_folder_of_transformers(folder):
    clip = load_hf(str(folder.path), device="cpu")
    expected = wrap_hf(hf_siglip_model() if folder.siglip else hf_clip_model(),
                       words_tokenizer("" if folder.siglip else "<s>"), name="x", device="cpu")
    assert clip.fingerprint == expected.fingerprint
    assert_close(clip.encode_text(["a bird", "dog"]), expected.encode_text(["a bird", "dog"]))
    assert_close(clip.encode_image(images(2), ALL).tokens, expected.encode_image(images(2), ALL).tokens)
    transform = clip.transform
    if folder.siglip:
        assert (transform.resize, transform.resize_to, transform.interpolation) == ("squash", None, "bicubic")
        assert transform.mean == (0.5, 0.5, 0.5)
    else:
        assert (transform.resize, transform.resize_to, transform.interpolation) == ("shortest", 40, "bilinear")
        assert transform.mean == (0.4, 0.5, 0.6)
    assert clip.loader == {"name": "hf",
                           "options": {"model": str(folder.path), "image_size": None, "resize_to": None,
                                         "interpolation": None}}


def test_a_folder_of_transformers_at_another_size(folder):
    small, large = (load_hf(str(folder.path), image_size=size, device="cpu") for size in (None, 64))
    assert small.fingerprint != large.fingerprint
    assert large.transform.image_size == 64
    assert large.transform.resize_to == (None if folder.siglip else 80)
    features = large.encode_image(images(2, 64), ALL)
    assert features.tokens.shape[1] == features.mid_tokens.shape[1] == 64 + (not folder.siglip)
    with pytest.raises(UserError, match="image_size=60 does not fit .*multiple of 8"):
        load_hf(str(folder.path), image_size=60, device="cpu")


def test_weights_that_are_missing_are_not_made_up(folder):
    path = folder.path / "model.safetensors"
    state = load_file(path)
    del state["text_model.final_layer_norm.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights \(text_model\.final_layer_norm\.weight"):
        load_hf(str(folder.path), device="cpu")


def test_damaged_files_of_transformers(folder):
    (folder.path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load .* with transformers: .*; check the name and the network"):
        load_hf(str(folder.path), device="cpu")


def test_other_kinds_of_models(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a model of type 'bert'; supported of transformers: clip, siglip"):
        load_hf(str(tmp_path), device="cpu")


def test_a_model_that_cannot_be_fetched(monkeypatch):
    def fails(name):
        raise OSError(f"{name} is not a local folder\nand is not a valid model identifier")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", fails)
    with pytest.raises(UserError, match="cannot load nobody/nothing .*local folder and is not a valid"):
        load_hf("nobody/nothing", device="cpu")


def test_a_tokenizer_that_belongs_to_another_checkpoint():
    model = hf_clip_model()
    model.text_model.eos_token_id = 5
    with pytest.raises(UserError, match="reads texts at token 5, its tokenizer ends them with 25"):
        wrap_hf(model, words_tokenizer("<s>"), name="x", device="cpu")


def test_an_image_processor_that_cannot_be_followed(folder):
    (folder.path / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False}))
    with pytest.raises(UserError, match=r"prepares images with size=.*pass a `transform` to xrvlm\.backbones\.wrap_hf"):
        load_hf(str(folder.path), device="cpu")


@pytest.mark.parametrize("flags", [{}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False},
                                   {"do_rescale": False, "do_normalize": False}], ids=str)
def test_the_flags_of_an_image_processor_are_followed(folder, flags):
    config = json.loads((folder.path / "preprocessor_config.json").read_text())
    (folder.path / "preprocessor_config.json").write_text(json.dumps(config | flags))
    photo = Image.effect_noise((60, 44), 80).convert("RGB").resize((48, 40))
    view = evaluation_view(photo, load_hf(str(folder.path), device="cpu").transform)
    pixels = AutoImageProcessor.from_pretrained(str(folder.path))(photo, return_tensors="pt").pixel_values[0].float()
    # the library's processor resizes tensors, ours Pillow's images: they differ by one level of 255 here and there
    assert (view - pixels).abs().max() < 0.012 * pixels.abs().max()


@pytest.mark.parametrize("flags", [{"do_resize": False}, {"do_pad": True}, {"crop_pct": 0.9}, {"rescale_offset": True}],
                         ids=str)
def test_flags_that_cannot_be_followed_are_named(folder, flags):
    config = json.loads((folder.path / "preprocessor_config.json").read_text())
    (folder.path / "preprocessor_config.json").write_text(json.dumps(config | flags))
    (flag, value), = flags.items()
    with pytest.raises(UserError, match=rf", {flag}={value}, which is not supported; load it yourself"):
        load_hf(str(folder.path), device="cpu")


@pytest.mark.parametrize("flags", [
    {"image_mean": [0.5, 0.5]}, {"image_std": 0.5}, {"image_mean": ["a"] * 3}, {"rescale_factor": 0},
    {"size": {"shortest_edge": 32, "longest_edge": 64}}, {"image_std": [0.0] * 3}], ids=str)
def test_numbers_that_cannot_be_followed_are_named(folder, flags):
    config = json.loads((folder.path / "preprocessor_config.json").read_text())
    (folder.path / "preprocessor_config.json").write_text(json.dumps(config | flags))
    with pytest.raises(UserError, match=r"prepares images with .*pass a `transform`|a std above 0"):
        load_hf(str(folder.path), device="cpu")


def test_text_is_lower_cased_as_the_tokenizer_is_configured(folder):
    texts = [f"{word} of The {word}" for word in ("Photo", "Bird")]
    before = load_hf(str(folder.path), device="cpu")
    config = json.loads((folder.path / "tokenizer_config.json").read_text())
    (folder.path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": True}))
    clip = load_hf(str(folder.path), device="cpu")
    assert_close(clip.encode_text(texts), before.encode_text([text.lower() for text in texts]), 0)
    assert (clip.encode_text(texts) - before.encode_text(texts)).abs().max() > 1e-3
    assert clip.fingerprint != before.fingerprint                # the same weights read a text otherwise


def test_a_text_is_read_at_its_end_or_refused():
    ids = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    model = hf_clip_model()
    model.text_model.eos_token_id = 2
    with pytest.raises(UserError, match="eos_token_id=2, .* ends a text with 2 and has ids up to 25; load"):
        wrap_hf(model, tokenizer, name="x", device="cpu")
    words = words_tokenizer("<s>")                               # of which the end is the largest: an old checkpoint
    found = wrap_hf(model, words, name="x", device="cpu").encode_text(["a photo of the bird"])
    expected = model.get_text_features(words(["a photo of the bird"], return_tensors="pt").input_ids).pooler_output
    assert_close(found, F.normalize(expected, dim=-1))


def test_weights_that_are_no_numbers_are_told(tmp_path):
    model = hf_clip_model()
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the weights vision_model.*fc1\.weight of the tower hold NaN: .*damaged"):
        wrap_hf(model, words_tokenizer("<s>"), name="broken", device="cpu")
