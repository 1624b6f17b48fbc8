"""Towers made of towers: a second one beside the first, and a second look; against the towers themselves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torch import nn
from towers import IMAGE_KINDS, tiny_vit

from xrvlm.backbones.base import ImageTransform
from xrvlm.backbones.composed.look import LookingTower, LookOptions, second_look
from xrvlm.backbones.composed.on_tower import Shown
from xrvlm.backbones.composed.pair import paired
from xrvlm.backbones.composed.trunk import ImageTower, load_hf_trunk, load_timm_trunk
from xrvlm.backbones.hf import load_hf
from xrvlm.backbones.registry import load_tower
from xrvlm.errors import UserError
from xrvlm.views import evaluation_view


@pytest.fixture(scope="module")
def clip():
    return tiny_vit()


@pytest.fixture(scope="module")
def other():
    return IMAGE_KINDS["timm efficientnet"]().clip


def photo(size=(90, 70), seed=0) -> Image.Image:
    draws = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, 7, 9, generator=draws)
    return TF.to_pil_image(F.interpolate(blocks, size[::-1], mode="bicubic")[0].clamp(0, 1))


def seen(clip, count=4) -> torch.Tensor:
    return torch.stack([evaluation_view(photo(seed=seed), clip.transform) for seed in range(count)])


def trunk(side: int, width: int = 5) -> ImageTower:
    """A second tower of other pixels and another normalisation: the mean of each cell of a grid, mixed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, width))
    return ImageTower(model, name="means", transform=ImageTransform(side, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)),
                      read=lambda network, images: network(images), device="cpu")


def test_a_pair_has_the_features_of_each_tower(clip, other):
    pair, images = paired(clip, other), seen(clip)
    x = pair.encode_image(images, {"pooled", "tokens", "second"})
    own = clip.encode_image(images, {"pooled", "tokens"})
    assert torch.equal(x.pooled, own.pooled) and torch.equal(x.tokens, own.tokens)
    theirs = torch.stack([evaluation_view(photo(seed=seed), replace(clip.transform, mean=other.transform.mean,
                                                                    std=other.transform.std)) for seed in range(4)])
    torch.testing.assert_close(x.second, other.encode_image(theirs, {"unprojected"}).unprojected, atol=1e-4, rtol=1e-3)
    assert x.second.shape == (4, pair.second_width)
    assert pair.encode_image(images).second is None
    assert torch.equal(pair.encode_text(["a bird"]), clip.encode_text(["a bird"]))
    assert pair.fingerprint not in (clip.fingerprint, paired(other, clip).fingerprint)


@pytest.mark.parametrize("side", [16, 80])
def test_the_tower_of_fewer_pixels_sees_the_photo_resized(clip, side):
    """At 16 pixels the first tower sees what it sees alone; at 80 it sees the photo of the second one, made smaller."""
    second = trunk(side)
    pair = paired(clip, second)
    assert pair.transform.image_size == max(32, side)
    x = pair.encode_image(seen(pair), {"pooled", "second"})
    alone = clip.encode_image(seen(clip)).pooled
    assert torch.equal(x.pooled, alone) if side < 32 else ((x.pooled * alone).sum(dim=1) > 0.99).all()
    framed = ImageTransform(side, second.transform.mean, second.transform.std, clip.transform.interpolation)
    theirs = torch.stack([evaluation_view(photo(seed=seed), framed) for seed in range(4)])
    expected = F.normalize(second.model(theirs), dim=1)
    torch.testing.assert_close(x.second, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [20, 64, 150])
def test_a_resize_by_products_is_that_of_pillow(interpolation, size):
    image = photo((100, 100))
    plain = ImageTransform(100, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)
    shown = Shown(100, plain, replace(plain, image_size=size))(TF.to_tensor(image)[None])[0]
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    torch.testing.assert_close(shown, TF.to_tensor(image.resize((size, size), kind)), atol=3 / 255, rtol=0)


def test_what_cannot_be_paired_says_what_to_do(clip, other):
    pair = paired(clip, other)
    for first, second in ((pair, other), (other, pair)):
        with pytest.raises(UserError, match="pair towers that have none"):
            paired(first, second)
    with pytest.raises(UserError, match="let its first tower look again"):
        second_look(pair)
    with pytest.raises(UserError, match="shows no positions"):
        second_look(without_positions(clip))


def without_positions(clip):
    clip = paired(clip, trunk(16))
    clip.image_width = 0
    return clip


def test_towers_of_towers_load_by_their_loader(tmp_path):
    """With towers that have loaders of their own; a random one in timm's place of DINOv2."""
    from xrvlm import load_tiny_clip

    dino = load_timm_trunk("vit_tiny_patch16_224", pretrained=False, image_size=32, device="cpu")
    pair = paired(second_look(load_tiny_clip(device="cpu"), 2, where="fixed"), dino)
    again = load_tower(pair.loader, device="cpu", precision="fp32")
    assert again.fingerprint == pair.fingerprint and again.name == pair.name
    assert again.state_hash() == pair.state_hash()
    images = seen(pair, 2)
    for one, two in zip(vars(pair.encode_image(images, {"pooled", "second"})).values(),
                        vars(again.encode_image(images, {"pooled", "second"})).values(), strict=True):
        assert one is two is None or torch.equal(one, two)


def test_dinov2_loads_from_a_folder_of_transformers(tmp_path):
    """Random weights of DINOv2's architecture: its feature is the class token after the last norm."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    tower = load_hf_trunk(tmp_path, device="cpu")
    assert (tower.embed_dim, tower.transform.image_size) == (24, 28)
    images = torch.randn(2, 3, 28, 28)
    expected = F.normalize(model(images).last_hidden_state[:, 0], dim=1)
    torch.testing.assert_close(tower.encode_image(images).pooled, expected)
    assert load_tower(tower.loader, device="cpu").fingerprint == tower.fingerprint
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_normalize=False,
                         ).save_pretrained(tmp_path)
    assert load_hf_trunk(tmp_path, device="cpu").transform == ImageTransform(28, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="as a second tower"):
        load_hf_trunk(tmp_path / "empty")


def test_dinov2_of_timm_loads_at_its_size():
    tower = load_timm_trunk("vit_small_patch14_dinov2", pretrained=False, image_size=28, device="cpu")
    assert (tower.embed_dim, tower.transform.image_size, tower.transform.mean) == (384, 28, (0.485, 0.456, 0.406))
    again = load_tower(tower.loader, device="cpu")
    assert again.fingerprint == tower.fingerprint
    with pytest.raises(UserError, match="cannot load no_such_trunk with timm"):
        load_timm_trunk("no_such_trunk")


def test_looks_are_where_the_positions_agree(clip):
    """By hand: of all windows of 2 x 2 cells the best, then the best of those that overlap it little."""
    tower = LookingTower(clip, LookOptions(looks=3, overlap=0.2))
    assert (tower.cells, tower.covered, tower.transform.image_size) == (4, 2, 64)
    images = seen(tower)
    first = clip.encode_image(tower.shown(images), {"tokens"})
    grid = first.tokens[:, -16:].unflatten(1, (4, 4))
    agreement = F.cosine_similarity(grid, first.pooled[:, None, None], dim=-1)             # (b, 4, 4)
    for found, values in zip(tower.windows(images), agreement, strict=True):
        scores = {(top, left): values[top:top + 2, left:left + 2].mean().item()
                  for top in range(3) for left in range(3)}
        expected = []
        while len(expected) < 3:
            top, left = max(scores, key=lambda at: scores[at])
            expected.append([left / 4, top / 4, left / 4 + 0.5, top / 4 + 0.5])
            # windows of 4 cells: 2 in common are a third of the union, 1 a seventh
            scores = {(y, x): score for (y, x), score in scores.items()
                      if max(0, 2 - abs(y - top)) * max(0, 2 - abs(x - left)) < 2}
        assert found.tolist() == expected


def test_a_look_encodes_the_window_of_the_photo(clip):
    images = seen(tower := LookingTower(clip, LookOptions(looks=2)))
    x = tower.encode_image(images, {"pooled", "unprojected", "mid_tokens"})
    whole = clip.encode_image(tower.shown(images), {"pooled", "unprojected", "mid_tokens"})
    assert x.tokens is None and torch.equal(x.mid_tokens, whole.mid_tokens)
    parts = LookingTower(clip, LookOptions(looks=2, use="parts")).encode_image(images, {"pooled", "second"})
    assert torch.equal(parts.pooled, whole.pooled)
    for i, windows in enumerate((64 * tower.windows(images)).round().int().tolist()):
        cut = torch.stack([images[i, :, top:bottom, left:right] for left, top, right, bottom in windows])
        looked = clip.encode_image(cut, {"unprojected"})         # of 32 pixels, so as it is
        mean = (whole.unprojected[i] + looked.unprojected.sum(dim=0)) / 3
        torch.testing.assert_close(x.unprojected[i], mean, atol=1e-4, rtol=1e-4)
        pooled = F.normalize((whole.pooled[i] + looked.pooled.sum(dim=0)) / 3, dim=0)
        torch.testing.assert_close(x.pooled[i], pooled, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(parts.second[i], looked.unprojected.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_the_controls_of_a_look(clip):
    images = seen(drawn := LookingTower(clip, LookOptions(where="random")))
    windows = drawn.windows(images)
    assert torch.equal(windows, torch.cat([drawn.windows(image[None]) for image in images]))       # of each photo
    assert len({tuple(each.flatten().tolist()) for each in windows}) > 1
    fixed = LookingTower(clip, LookOptions(looks=5, where="fixed")).windows(images)
    assert fixed[0].tolist() == fixed[3].tolist() == [[0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1],
                                                      [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]
    names = {LookingTower(clip, LookOptions(**options)).fingerprint
             for options in ({}, {"where": "random"}, {"use": "parts"}, {"looks": 2}, {"zoom": 1.5}, {"overlap": 0.1})}
    assert len(names) == 6


@pytest.mark.parametrize(("options", "message"), [
    ({"looks": 0}, "must be from 1 to 16"), ({"share": 1.0}, "share=1.0 must be between 0 and 1"),
    ({"where": "center"}, "available: agreement, fixed, random"), ({"zoom": 0.5}, "zoom=0.5 must be from 1 to 4"),
    ({"looks": 6, "where": "fixed"}, "second_look=5 or fewer")])
def test_bad_options_of_a_look_name_the_fix(options, message):
    with pytest.raises(UserError, match=message):
        LookOptions(**options)


def test_a_look_is_not_looked_at_again_and_has_no_other_options(clip):
    with pytest.raises(UserError, match="looks again already: ask it for more looks"):
        second_look(second_look(clip, 2), 2)
    with pytest.raises(UserError, match="unknown option.*shaare.*did you mean '.*share'"):
        second_look(clip, 2, shaare=0.5)


def test_a_trunk_of_convolutions_takes_any_size():
    tower = load_timm_trunk("resnet10t", pretrained=False, image_size=64, device="cpu")
    assert (tower.embed_dim, tower.transform.image_size) == (512, 64)
    for load in (load_timm_trunk, load_hf_trunk):
        with pytest.raises(UserError, match="image_size must be at least 1 pixel, found -3"):
            load("resnet10t", image_size=-3)
    for nowhere in ("/no/such/folder", "", "./nowhere"):
        for load in (load_hf_trunk, load_hf):
            with pytest.raises(UserError, match=f"there is no folder '{nowhere}'; model is a folder of a model or its"):
                load(nowhere)


def test_the_loaders_of_the_towers_inside_are_known():
    from xrvlm.backbones.registry import with_inner

    photo, folder = {"name": "photo", "options": {"trunk": "lite0"}}, {"name": "hf", "options": {"model": "/a/b"}}
    pair = {"name": "pair", "options": {"first": {"name": "look", "options": {"tower": photo, "look": {"where": "x"}}},
                                        "second": folder}}
    assert [each["name"] for each in with_inner(pair)] == ["pair", "look", "photo", "hf"]
    assert list(with_inner(None)) == []
