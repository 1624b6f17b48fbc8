"""Trunks of timm that are neither a plain transformer nor EfficientNet's like."""

from typing import Any

import pytest
import torch
from open_clip.model import CustomTextCLIP
from timm.models import register_model
from timm.models.cait import Cait
from timm.models.crossvit import CrossVit
from timm.models.hiera import Hiera
from torch.testing import assert_close
from towers import Tiny, images, openclip

from xrvlm.backbones.openclip import image_encoder
from xrvlm.errors import UserError

NEEDS = ("pooled", "tokens", "mid_tokens")
FIRST_WIDENED = ("mobilenetv3_small_050", "mobilenetv4_conv_small_035", "lcnet_035", "ghostnet_050")


@register_model
def xrvlm_test_cait(**options: Any) -> Any:
    return _trunk(Cait, options, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)


@register_model
def xrvlm_test_hiera(**options: Any) -> Any:
    return _trunk(Hiera, options, img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 2),
                  mask_unit_size=(8, 8), global_pos_size=(4, 4))


@register_model
def xrvlm_test_crossvit(**options: Any) -> Any:
    return _trunk(CrossVit, options, img_size=32, img_scale=(1.0, 1.0), patch_size=(8, 16), embed_dim=(16, 32),
                  depth=((1, 1, 0),), num_heads=(2, 2), mlp_ratio=(2.0, 2.0, 1.0))


def _trunk(build: Any, options: dict[str, Any], **sizes: Any) -> Any:
    trunk = build(**sizes, **{name: options[name] for name in ("num_classes", "global_pool") if name in options})
    trunk.default_cfg = {}
    return trunk


def tower(trunk: str, size: int, **options: Any) -> Tiny:
    vision = {"timm_model_name": trunk, "timm_pool": "avg", "timm_proj": "linear", "image_size": size}
    return openclip(trunk, vision, build=CustomTextCLIP, **options)


@pytest.mark.parametrize("trunk", FIRST_WIDENED)
@pytest.mark.parametrize("loader", [None, {"name": "test", "options": {}}])
def test_a_projection_sized_for_the_last_map_reads_its_mean(trunk, loader):
    """open_clip itself cannot run these: their trunk widens the mean of the map before the projection."""
    tiny = tower(trunk, 64, loader=loader)
    batch = images(3, 64)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), torch.no_grad():
        tiny.model.encode_image(batch)
    features = tiny.clip.encode_image(batch, NEEDS)
    with torch.no_grad():
        last = tiny.model.visual.trunk.forward_features(batch)
        wanted = tiny.model.visual.head(last.mean((2, 3)))
    assert_close(features.pooled, torch.nn.functional.normalize(wanted, dim=-1), atol=1e-5, rtol=1e-5)
    assert features.tokens.shape[1] == features.mid_tokens.shape[1] == 4
    assert_close(tiny.clip.encode_image(batch, ("pooled",)).pooled, features.pooled)


def test_a_trunk_in_training_mode_keeps_its_statistics():
    tiny = tower("lcnet_035", 64)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    tiny.model.train()
    image_encoder(tiny.model)
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())


def test_a_class_token_that_joins_after_the_blocks_shifts_no_position():
    """What enters CaiT's blocks has no class token: cutting one off would drop the first patch."""
    tiny = tower("xrvlm_test_cait", 32)
    features = tiny.clip.encode_image(images(2, 32), NEEDS)
    assert features.mid_tokens.shape[:2] == features.tokens.shape[:2] == (2, 16)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
def test_hieras_positions_are_the_images_rows_and_columns(row, column):
    tiny = tower("xrvlm_test_hiera", 64)
    first = images(1, 64)
    second = first.clone()
    second[..., 32 * row:32 * row + 32, 32 * column:32 * column + 32] += 3 * images(1, 32, seed=1)
    one, other = (tiny.clip.encode_image(batch, NEEDS) for batch in (first, second))
    assert int((one.mid_tokens - other.mid_tokens).norm(dim=2).argmax()) == 2 * row + column


@pytest.mark.parametrize(("trunk", "size"), [("xrvlm_test_crossvit", 32), ("coat_lite_tiny", 224)])
def test_maps_of_several_sizes_are_no_positions(trunk, size):
    clip = tower(trunk, size).clip
    assert clip.encode_image(images(2, size), ("pooled",)).pooled.shape == (2, clip.embed_dim)
    with pytest.raises(UserError, match="has no positions to attend to"):
        clip.encode_image(images(2, size), ("tokens",))
