"""Every kind of image tower says what its own library says, at every position, and no tower ever changes."""

import subprocess
import sys
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from timm.models.efficientnet import EfficientNet
from torch import nn
from towers import IMAGE_KINDS, RESNET, VIT, hf_clip, hf_siglip, images, openclip, tiny_resnet, tiny_vit

from xrvlm.backbones.tower import captured
from xrvlm.errors import UserError

ALL = ("pooled", "tokens", "mid_tokens")
AT_CLASS_TOKEN = ("vit", "vit quickgelu", "timm class token", "timm eva", "hf clip")
TEXTS = ["a photo of the dog.", "Two cats,  and a House", "bird", ""]


@pytest.fixture(params=IMAGE_KINDS)
def kind(request):
    return request.param


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def batch(tiny, number=3):
    return images(number, tiny.clip.transform.image_size)


@torch.no_grad()
def library_feature(tiny):
    return tiny.image(batch(tiny))


# ---- images

def test_pooled_features_are_the_librarys(kind):
    tiny = IMAGE_KINDS[kind]()
    expected = F.normalize(library_feature(tiny), dim=-1)
    assert (expected @ expected.T).min() < 0.999, "the images must look different to the tower"
    for needs in (("pooled",), ALL):
        assert_close(tiny.clip.encode_image(batch(tiny), needs).pooled, expected)


def test_every_kind_of_feature_has_its_shape(kind):
    tiny = IMAGE_KINDS[kind]()
    features = tiny.clip.encode_image(batch(tiny), ALL)
    p = features.tokens.shape[1]
    assert p > 1
    assert features.pooled.shape == (3, tiny.clip.embed_dim)
    assert features.tokens.shape == (3, p, tiny.clip.embed_dim)
    assert features.mid_tokens.shape == (3, p, tiny.clip.image_width)
    assert all(getattr(features, name).dtype == torch.float32 for name in ALL)
    only = tiny.clip.encode_image(batch(tiny), ("mid_tokens",))
    assert only.tokens is None
    assert_close(only.mid_tokens, features.mid_tokens)
    only = tiny.clip.encode_image(batch(tiny))
    assert only.tokens is None
    assert only.mid_tokens is None


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_KINDS if kind != "resnet"])
def test_a_position_is_what_the_tower_returns_where_all_are_as_it(kind):
    tiny = IMAGE_KINDS[kind]()
    hook = last_stage(tiny.model).register_forward_hook(lambda _module, _inputs, output: all_as_the_first(output))
    expected = library_feature(tiny)
    tokens = tiny.clip.encode_image(batch(tiny), ALL).tokens
    hook.remove()
    assert_close(tokens, expected[:, None].expand_as(tokens))


def last_stage(model):
    """The module behind which only norm, pooling and projection stand."""
    if hasattr(model, "vision_model"):
        return model.vision_model.encoder.layers[-1]
    if hasattr(model.visual, "transformer"):
        return model.visual.transformer.resblocks[-1]
    trunk = model.visual.trunk
    if hasattr(trunk, "final_conv"):     # of RegNet and FastViT
        return trunk.final_conv
    stages = [getattr(trunk, name) for name in ("blocks", "stages", "layers") if hasattr(trunk, name)]
    return stages[0][-1]


def all_as_the_first(output):
    if output.ndim == 3:    # (b, n, e)
        return output[:, 1:2].expand_as(output)
    channels_last = output.shape[1] == output.shape[2] != output.shape[3]
    return (output[:, :1, :1] if channels_last else output[..., :1, :1]).expand_as(output)


@pytest.mark.parametrize("kind", AT_CLASS_TOKEN)
def test_the_first_token_is_the_class_token(kind):
    tiny = IMAGE_KINDS[kind]()
    assert_close(tiny.clip.encode_image(batch(tiny), ALL).tokens[:, 0], library_feature(tiny))


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_KINDS if kind not in AT_CLASS_TOKEN])
def test_other_towers_have_no_class_token(kind):
    tiny = IMAGE_KINDS[kind]()
    size, cells = tiny.clip.transform.image_size, tiny.clip.encode_image(batch(tiny), ALL).tokens.shape[1]
    assert cells == (size // (32 if kind in ("resnet", "timm regnet", "timm fastvit") else 8)) ** 2


@pytest.mark.parametrize(("kind", "width", "block"), [
    ("timm efficientnet", 16, lambda trunk: trunk.blocks[2][0]),
    ("timm mobilenet", 16, lambda trunk: trunk.blocks[2][0]),
    ("timm mobilenetv4", 16, lambda trunk: trunk.blocks[3][0]),
    ("timm convnext", 32, lambda trunk: trunk.stages[3].blocks[0]),
    ("timm regnet", 32, lambda trunk: trunk.s4.b2), ("timm fastvit", 32, lambda trunk: trunk.stages[3].blocks[1]),
    ("timm swin", 16, lambda trunk: trunk.layers[1].blocks[0])])
def test_the_earlier_features_of_a_feature_map_enter_its_last_block(kind, width, block):
    tiny = IMAGE_KINDS[kind]()
    seen = []
    block(tiny.model.visual.trunk).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    features = tiny.clip.encode_image(batch(tiny), ALL)
    cells = seen[0].flatten(1, 2) if kind == "timm swin" else seen[0].flatten(2).mT
    assert torch.equal(features.mid_tokens, cells)
    assert features.mid_tokens.shape == (*features.tokens.shape[:2], width)
    assert tiny.clip.image_width == width


def test_a_last_block_with_other_cells_gives_no_earlier_features(monkeypatch):
    """It halves the map here, so what enters it has more positions than the last map."""
    stages = EfficientNet.__init__
    monkeypatch.setattr(EfficientNet, "__init__", lambda self, **options: stages(
        self, **options | {"block_args": options["block_args"][:2]}))
    clip = IMAGE_KINDS["timm efficientnet"]().clip
    features = clip.encode_image(images(2, clip.transform.image_size), ALL)
    assert clip.image_width == 32
    assert features.mid_tokens.shape == (*features.tokens.shape[:2], 32)


@torch.no_grad()
def test_resnet_tokens_are_value_and_output_projection_of_the_last_map():
    tiny = IMAGE_KINDS["resnet"]()
    visual = tiny.model.visual
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(batch(tiny))))))
    x = x.reshape(3, tiny.clip.image_width, 9).permute(0, 2, 1)
    pool = visual.attnpool
    value = (x + pool.positional_embedding[1:]) @ pool.v_proj.weight.T + pool.v_proj.bias
    features = tiny.clip.encode_image(batch(tiny), ALL)
    assert_close(features.mid_tokens, x)
    assert_close(features.tokens, value @ pool.c_proj.weight.T + pool.c_proj.bias)


@torch.no_grad()
def test_mid_tokens_are_what_enters_the_second_last_block():
    tiny = IMAGE_KINDS["vit"]()
    visual = tiny.model.visual
    entered = visual.transformer.resblocks[0](visual._embeds(batch(tiny)))    # of three blocks
    assert_close(tiny.clip.encode_image(batch(tiny), ALL).mid_tokens, entered)

    tiny = IMAGE_KINDS["timm mean"]()
    entered, = tiny.model.visual.trunk.forward_intermediates(batch(tiny), indices=[0], output_fmt="NLC",
                                                             intermediates_only=True)
    assert_close(tiny.clip.encode_image(batch(tiny), ALL).mid_tokens, entered)

    for make in (hf_clip, hf_siglip):
        tiny = make()
        states = tiny.model.vision_model(batch(tiny), output_hidden_states=True).hidden_states
        assert_close(tiny.clip.encode_image(batch(tiny), ALL).mid_tokens, states[1])


def test_a_tower_without_positions_says_what_works():
    clip = openclip("flat", VIT | {"layers": 1}).clip
    assert clip.image_width == 0
    assert clip.encode_image(images(2)).pooled.shape == (2, clip.embed_dim)
    with pytest.raises(UserError, match=r"no positions.*zero_shot.*another backbone"):
        clip.encode_image(images(2), ("pooled", "tokens"))


def test_features_may_enter_a_graph():
    weight = torch.ones(16, requires_grad=True)
    (tiny_vit().encode_image(images(2), ALL).tokens * weight).sum().backward()
    assert weight.grad is not None


def test_another_thread_is_not_read_along():
    layer = nn.Linear(2, 2)
    with captured(layer, "output") as seen:
        thread = Thread(target=layer, args=(torch.ones(1, 2),))
        thread.start()
        thread.join()
        assert seen == []
        layer(torch.ones(1, 2))
        assert len(seen) == 1


# ---- frozen

def test_nothing_ever_changes(kind):
    tiny = IMAGE_KINDS[kind]()
    clip, before = tiny.clip, tiny.clip.state_hash()
    clip.train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    clip.encode_image(batch(tiny), ALL)
    clip.encode_text(["bird"])
    assert clip.state_hash() == before
    with torch.no_grad():
        next(clip.parameters()).add_(1)
    assert clip.state_hash() != before, "the hash must see a change"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_looks_the_same_from_outside(kind, precision):
    tiny, half = IMAGE_KINDS[kind](), IMAGE_KINDS[kind](precision=precision).clip
    assert half.precision == precision
    assert half.fingerprint == tiny.clip.fingerprint
    features, whole = half.encode_image(batch(tiny), ALL), tiny.clip.encode_image(batch(tiny), ALL)
    for name in ALL:
        value, exact = getattr(features, name), getattr(whole, name)
        assert value.dtype == torch.float32
        assert F.cosine_similarity(value.flatten(1), exact.flatten(1)).min() > 0.998
    assert F.cosine_similarity(half.encode_text(TEXTS), tiny.clip.encode_text(TEXTS)).min() > 0.999
    assert half.logit_scale == tiny.clip.logit_scale
    assert half.logit_scale.dtype == torch.float32


def test_scale_and_bias_are_ready_to_use():
    tiny = hf_siglip()
    assert tiny.clip.logit_scale == tiny.model.logit_scale.exp()
    assert tiny.clip.logit_bias == tiny.model.logit_bias
    clip = tiny_vit()
    assert clip.logit_scale.item() == pytest.approx(1 / 0.07)
    assert clip.logit_bias == 0


def test_the_fingerprint_is_of_weights_function_and_image_size():
    prints = [make().fingerprint for make in (
        tiny_vit, tiny_resnet, lambda: openclip("vit", quick_gelu=True).clip,
        lambda: openclip("vit", VIT | {"layers": 2}).clip, lambda: hf_clip().clip,
        lambda: hf_clip(image_size=48).clip, lambda: openclip("resnet", RESNET | {"image_size": 64}).clip)]
    assert len(set(prints)) == len(prints)
    assert tiny_vit().fingerprint == prints[0]


def test_importing_the_package_imports_no_library_of_models():
    code = ("import sys, xrvlm, xrvlm.text.class_text\n"
            "libraries = {'open_clip', 'timm', 'transformers'}\n"
            "assert not (libraries | {'torch', 'torchvision'}) & set(sys.modules)\n"
            "import xrvlm.backbones\n"
            "assert not libraries & set(sys.modules)\n"
            "try: xrvlm.backbones.load_nothing\n"
            "except AttributeError as error: assert 'load_nothing' in str(error)\n")
    subprocess.run([sys.executable, "-c", code], check=True)
