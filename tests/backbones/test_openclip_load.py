"""open_clip's towers from names and files: the right weights with the right function, or an error with the fix."""

import json
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from xrvlm.backbones import load_openclip, openclip_load, wrap_openclip
from xrvlm.errors import UserError

# isort: split
# after xrvlm, which mends torchvision where its wheel does not fit torch
import open_clip
from open_clip import pretrained as published
from towers import EMBED_DIM, RESNET, SMALL_TEXT, TEXT, VIT, images, openclip_model, saved_tokenizer

ALL = ("pooled", "tokens", "mid_tokens")
CONFIGS = {
    "xrvlm-test-vit": {"vision_cfg": VIT, "text_cfg": TEXT},
    "xrvlm-test-vit-quickgelu": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "xrvlm-test-resnet": {"vision_cfg": RESNET, "text_cfg": TEXT},
    "xrvlm-test-timm": {"vision_cfg": {"timm_model_name": "xrvlm_test_vit", "timm_pool": "avg", "timm_proj": "linear",
                                       "image_size": 32}, "text_cfg": TEXT},
}
SIGLIP_LIKE = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    """Tiny architectures that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": EMBED_DIM} | config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in CONFIGS:
        del open_clip.factory._MODEL_CONFIGS[name]


@pytest.fixture
def weights(tmp_path):
    """The weights of `xrvlm-test-vit` in a file."""
    path = tmp_path / "tiny.safetensors"
    save_file(openclip_model().state_dict(), path)
    return path


@pytest.fixture
def publish(monkeypatch, weights):
    """Offer the file as a download under the tag "web"."""
    def offer(model, **config):
        entry = {"url": "", "hf_hub": "nobody/nothing/", "mean": None, "std": None, **config}
        monkeypatch.setitem(published._PRETRAINED, model, {"web": entry})
        for module in (open_clip, open_clip.factory):
            monkeypatch.setattr(module, "download_pretrained", lambda *_args, **_options: str(weights))
    return offer


def openclip(model, pretrained=None, **options):
    return load_openclip(model, pretrained, device="cpu", **options)


def in_memory(model=None, **options):
    return wrap_openclip(model or openclip_model(), open_clip.SimpleTokenizer(), name="x", device="cpu", **options)


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_a_local_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("HOME", str(tmp_path))
    state = openclip_model().state_dict()
    if suffix == "safetensors":
        save_file(state, tmp_path / "my.safetensors")
    else:    # as training code saves it
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
                   tmp_path / f"my.{suffix}")
    clip = openclip("xrvlm-test-vit", f"~/my.{suffix}")
    assert clip.name == "xrvlm-test-vit/my"
    assert clip.fingerprint == in_memory().fingerprint
    assert_close(clip.encode_text(["a bird"]), in_memory().encode_text(["a bird"]))
    assert clip.loader["options"]["pretrained"] == f"~/my.{suffix}"
    again = load_openclip(**json.loads(json.dumps(clip.loader["options"])), device="cpu", precision="fp32")
    assert again.fingerprint == clip.fingerprint
    assert clip.loader["name"] == "openclip"


class Holder(torch.nn.Module):
    """The tensors of a module by name, without what it computes: scripting a whole CLIP takes long."""

    def __init__(self, module):
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, Holder(child))
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")    # to make one; reading one is quiet by itself
def test_openai_archives_are_read_with_quickgelu(tmp_path):
    holder = Holder(openclip_model())
    holder.register_buffer("input_resolution", torch.tensor(32))
    torch.jit.script(holder).save(str(tmp_path / "ViT.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = openclip("xrvlm-test-vit", str(tmp_path / "ViT.pt"))
    assert clip.fingerprint == in_memory(openclip_model(quick_gelu=True)).fingerprint
    assert clip.name == "xrvlm-test-vit-quickgelu/ViT"


def test_published_weights_bring_activation_and_transform(publish, caplog):
    caplog.set_level(logging.INFO)
    publish("xrvlm-test-vit", quick_gelu=True, **SIGLIP_LIKE)
    clip = openclip("xrvlm-test-vit", "web")
    assert clip.name == "xrvlm-test-vit-quickgelu/web"
    assert clip.fingerprint == in_memory(openclip_model(quick_gelu=True)).fingerprint
    assert "trained with QuickGELU" in caplog.text
    assert "Parsing model identifier" not in caplog.text, "the library's chatter"
    assert clip.transform.mean == (0.5, 0.5, 0.5)
    assert clip.transform.std == (0.25, 0.25, 0.25)
    assert (clip.transform.resize, clip.transform.interpolation) == ("squash", "bilinear")
    assert clip.transform.image_size == 32


def test_the_activation_can_be_forced(publish, weights):
    publish("xrvlm-test-vit", quick_gelu=True)
    plain, quick = in_memory().fingerprint, in_memory(openclip_model(quick_gelu=True)).fingerprint
    assert openclip("xrvlm-test-vit", "web", quick_gelu=False).fingerprint == plain
    assert openclip("xrvlm-test-vit", str(weights)).fingerprint == plain
    assert openclip("xrvlm-test-vit", str(weights), quick_gelu=True).fingerprint == quick
    assert openclip("xrvlm-test-vit-quickgelu", str(weights)).fingerprint == quick
    assert openclip("xrvlm-test-vit-quickgelu", str(weights), quick_gelu=False).fingerprint == plain


def test_a_local_file_is_prepared_as_the_models_published_weights_are(publish, weights, caplog):
    publish("xrvlm-test-vit", **SIGLIP_LIKE)
    assert openclip("xrvlm-test-vit", str(weights)).transform.resize == "squash"
    assert "need model='xrvlm-test-vit-quickgelu'" in caplog.text
    caplog.clear()
    assert openclip("xrvlm-test-vit-quickgelu", str(weights)).transform.resize == "shortest"
    openclip("xrvlm-test-vit", str(weights), quick_gelu=True)
    assert "QuickGELU" not in caplog.text


def test_a_local_folder(tmp_path, weights):
    config = {"model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": VIT,
                            "text_cfg": SMALL_TEXT | {"hf_tokenizer_name": "x"}}, "preprocess_cfg": SIGLIP_LIKE}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = openclip_model(text=SMALL_TEXT)
    save_file(model.state_dict(), weights)
    saved_tokenizer("<s>").save_pretrained(tmp_path)
    clip = openclip(f"local-dir:{tmp_path}")
    assert clip.context_length == SMALL_TEXT["context_length"]
    assert clip.transform.mean == (0.5, 0.5, 0.5)
    expected = model.encode_text(saved_tokenizer("<s>")(["a bird"]), normalize=True)
    assert_close(clip.encode_text(["a bird"]), expected)
    with pytest.raises(UserError, match="brings its own weights; leave out pretrained='openai'"):
        openclip(f"local-dir:{tmp_path}", "openai")
    weights.unlink()
    with pytest.raises(UserError, match="cannot load local-dir:.* with its own weights"):
        openclip(f"local-dir:{tmp_path}")


def test_random_weights_only_where_they_are_asked_for():
    clip = openclip("xrvlm-test-vit", allow_random=True)
    assert clip.name == "xrvlm-test-vit/random"
    with pytest.raises(UserError, match="no weights for ViT-B-16-SigLIP: set pretrained to one of webli, or to a weig"):
        openclip("ViT-B-16-SigLIP")


# ---- image size

@pytest.mark.parametrize(("model", "vision", "cells"), [
    ("xrvlm-test-vit", VIT, 1 + 8 * 8), ("xrvlm-test-resnet", RESNET, 2 * 2),
    ("xrvlm-test-timm", CONFIGS["xrvlm-test-timm"]["vision_cfg"], 8 * 8)])
def test_another_image_size(tmp_path, model, vision, cells):
    save_file(openclip_model(vision).state_dict(), tmp_path / "w.safetensors")
    small, large = (openclip(model, str(tmp_path / "w.safetensors"), image_size=size) for size in (None, 64))
    assert small.transform.image_size == 32
    assert large.transform.image_size == 64
    assert small.fingerprint != large.fingerprint
    features = large.encode_image(images(2, 64), ALL)
    assert features.tokens.shape[1] == features.mid_tokens.shape[1] == cells
    assert openclip(model, allow_random=True, image_size=64).encode_image(images(2, 64)).pooled.shape == (2, EMBED_DIM)


def test_the_attention_pool_keeps_its_positions_where_the_size_stays(tmp_path):
    model = openclip_model(RESNET | {"image_size": 96})
    before = model.visual.attnpool.positional_embedding.detach().clone()
    model.visual.preprocess_cfg = {}
    openclip_load._resize_attention_pool(model.visual, 96)
    assert_close(model.visual.attnpool.positional_embedding, before)
    openclip_load._resize_attention_pool(model.visual, 192)
    after = model.visual.attnpool.positional_embedding
    assert after.shape == (1 + 36, before.shape[1])
    assert torch.equal(after[0], before[0])
    grid = before[1:].T.unflatten(1, (3, 3))[None]
    assert_close(after[1:], F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True)[0].flatten(1).T)


@pytest.mark.parametrize(("model", "size", "step"), [("xrvlm-test-vit", 36, 8), ("xrvlm-test-resnet", 40, 32),
                                                      ("xrvlm-test-vit", 0, 8)])
def test_an_image_size_that_does_not_fit(model, size, step):
    with pytest.raises(UserError, match=f"image_size={size} does not fit {model}: use a multiple of {step}"):
        openclip(model, allow_random=True, image_size=size)


# ---- errors

def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown model of open_clip 'ViT-B-17'; did you mean 'ViT-B-1"):
        openclip("ViT-B-17", "openai")
    with pytest.raises(UserError, match=r"unknown weights of ViT-B-16 'laion2b_s34b'; did you mean "
                                        r"'laion2b_s34b_b88k'\?; .*or pass the path of a weights file"):
        openclip("ViT-B-16", "laion2b_s34b")
    with pytest.raises(UserError, match=r"no weights file at .*nothing\.pt; check the path, .*openai"):
        openclip("ViT-B-16", "~/nothing.pt")
    with pytest.raises(UserError, match=r"no open_clip_config\.json in"):
        openclip("local-dir:/nowhere")


def test_a_slash_in_a_name_is_read_as_people_write_it():
    with pytest.raises(UserError, match="no weights for ViT-B-16:"):
        openclip("ViT-B/16")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x05."], ids=["empty", "text", "pickle"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_damaged_file(tmp_path, content, suffix):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot load xrvlm-test-vit with .*bad.{suffix}: .*; the file may be"):
        openclip("xrvlm-test-vit", str(path))


def test_a_file_that_holds_no_weights(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"cannot load .*list\.pt"):
        openclip("xrvlm-test-vit", str(tmp_path / "list.pt"))


def test_weights_of_another_model(tmp_path):
    save_file(openclip_model(VIT | {"width": 16, "layers": 2}).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        openclip("xrvlm-test-vit", str(tmp_path / "other.safetensors"))
    message = str(error.value)
    assert "other.safetensors does not fit xrvlm-test-vit: Missing key(s)" in message
    assert "more differences; choose the model that the weights were trained as" in message
    assert "\n" not in message
    assert len(message) < 800


def test_a_failed_download(publish, monkeypatch):
    publish("xrvlm-test-vit")

    def fails(*_args, **_options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(open_clip, "download_pretrained", fails)
    with pytest.raises(UserError, match=r"cannot fetch the weights web of xrvlm-test-vit: no route to host; check the "
                                        r"network, .*pretrained='/path/to/weights'"):
        openclip("xrvlm-test-vit", "web")


def test_devices_and_precisions(monkeypatch):
    with pytest.raises(UserError, match="unknown device 'gpu'; did you mean 'cpu'.* available: auto, cpu, cuda, mps"):
        in_memory_with(device="gpu")
    with pytest.raises(UserError, match="unknown precision 'half'; available: auto, bf16, fp16, fp32"):
        in_memory_with(precision="half")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device='cuda' is not available on this machine; use device='auto'"):
        in_memory_with(device="cuda")
    clip = in_memory_with(device="auto")
    assert (clip.device.type, clip.precision) == ("cpu", "fp32")


def in_memory_with(**options):
    return wrap_openclip(openclip_model(), open_clip.SimpleTokenizer(), name="x", **{"device": "cpu"} | options)


def test_tokenizers_and_transforms_that_cannot_be_used():
    with pytest.raises(UserError, match="tokenizers of type function"):
        wrap_openclip(openclip_model(), lambda text: text, name="x")
    model = openclip_model()
    model.visual.preprocess_cfg = {"size": 32, "resize_mode": "longest"}
    with pytest.raises(UserError, match="resize_mode=longest.*pass a `transform`"):
        in_memory(model)
    model.visual.preprocess_cfg = {"size": (32, 64)}
    with pytest.raises(UserError, match="32 x 64 pixels; only square"):
        in_memory(model)
