"""What stands in front of an image tower's last linear map, and that map: together they are the pooled feature."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from towers import EMBED_DIM, IMAGE_KINDS, images, openclip, tiny_vit

from xrvlm.errors import UserError
from xrvlm.features.bank import Store, encoded, open_bank
from xrvlm.features.source import FeatureSettings, bank_bytes

WIDTHS = {"vit": 32, "vit quickgelu": 32, "vit mean": 32, "resnet": 256, "coca": 16, "timm class token": 32,
          "timm mean": 32, "timm eva": 32, "timm swin": 16, "timm efficientnet": 32, "timm mobilenet": 24,
          "timm mobilenetv4": 40, "timm regnet": 32, "timm fastvit": 64, "hf clip": 32}
BIASED = ("resnet", "timm class token", "timm eva", "timm mobilenet", "timm mobilenetv4")
WITHOUT = sorted(IMAGE_KINDS.keys() - WIDTHS.keys())


@pytest.mark.parametrize("needs", [("unprojected",), ("pooled", "unprojected", "tokens", "mid_tokens")], ids=len)
@pytest.mark.parametrize("kind", sorted(WIDTHS))
def test_projected_it_is_the_pooled_feature(kind, needs):
    clip, passes = IMAGE_KINDS[kind]().clip, []
    first = next(module for module in clip.model.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: passes.append(1))
    features = clip.encode_image(images(3, clip.transform.image_size), needs)
    hook.remove()
    assert len(passes) == 1, "the tower runs once, whatever is needed of it"
    weight, bias = clip.image_projection()
    assert weight.shape == (WIDTHS[kind], EMBED_DIM)
    assert bias.shape == (EMBED_DIM,)
    assert (bias.abs().max() > 0) == (kind in BIASED)
    assert features.unprojected.shape == (3, WIDTHS[kind])
    assert features.unprojected.dtype == weight.dtype == torch.float32
    assert features.unprojected.std(dim=0).max() > 1e-3, "the images must look different to the tower"
    projected = F.normalize(features.unprojected @ weight + bias, dim=-1)
    assert (projected - features.pooled).abs().max() < 1e-5
    expected = clip.encode_image(images(3, clip.transform.image_size))
    assert expected.unprojected is None
    assert (features.pooled - expected.pooled).abs().max() < 1e-5


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_tower_that_ends_in_no_linear_map_says_so(kind):
    assert set(WITHOUT) == {"timm map", "timm convnext", "hf siglip"}
    clip = IMAGE_KINDS[kind]().clip
    for ask in (clip.image_projection, lambda: clip.encode_image(images(1), ("unprojected",))):
        with pytest.raises(UserError, match="ends in no linear projection .* choose a CLIP tower, or another method"):
            ask()


def test_a_tower_without_positions_has_none_that_is_known():
    with pytest.raises(UserError, match="ends in no linear projection"):
        openclip("flat", {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
                 ).clip.image_projection()


def test_the_projection_is_a_copy():
    clip = tiny_vit()
    before = clip.state_hash()
    weight, _ = clip.image_projection()
    weight.zero_()
    assert clip.state_hash() == before


def test_half_precision_looks_the_same_from_outside():
    clip, whole = tiny_vit(precision="bf16"), tiny_vit()
    features = clip.encode_image(images(2), ("unprojected",))
    assert features.unprojected.dtype == clip.image_projection()[0].dtype == torch.float32
    expected = whole.encode_image(images(2), ("unprojected",)).unprojected
    assert (features.unprojected - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_bank_keeps_it_in_full(tmp_path):
    clip = tiny_vit()
    features = clip.encode_image(images(2), ("pooled", "unprojected", "tokens"))
    shapes = {name: torch.Size((1, *value.shape[1:])) for name, value in vars(features).items() if value is not None}
    store = Store(tmp_path, {"of": "a test"}, shapes, torch.float16, batch=2)
    needs, rows = ("pooled", "unprojected", "tokens"), torch.tensor([0, 1])
    bank = open_bank(store, ("a", "b"), lambda shards: encoded(clip, needs, store, [(rows, images(2)[:, None])]),
                     ids=("a", "b"), labels=rows, seed=1, lock=".lock", progress=lambda count: None)
    read = bank.select(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert torch.equal(read.unprojected, features.unprojected)
    assert not torch.equal(read.tokens, features.tokens), "in half precision"
    size = bank_bytes(clip, 2, FeatureSettings(dtype="float16"), ("pooled", "unprojected"), views=0)
    assert size == 2 * 4 * (EMBED_DIM + 32)
