from itertools import islice
from math import exp

import pytest
import torch
from banks import bank_of
from reference import assert_close, load, needs_reference, reference, slow_maps, slow_parts
from towers import tiny_vit

from xrvlm.backbones.base import Features
from xrvlm.methods.xr_vlm.parts import ABSENT, SOFTNESS, FoundParts
from xrvlm.methods.xr_vlm.xr_vlm import PartPooling


@needs_reference
def test_agrees_with_the_reference():
    tensors = reference()
    pooling = PartPooling(24, 4)
    load(pooling, tensors, {name: f"pool.{name}" for name in ("attend_norm", "attend", "map_norm")})
    pooling.eval()
    assert_close(pooling.maps(tensors["in.mid_tokens"]), tensors["out.eval.maps"])
    assert_close(pooling(tensors["in.mid_tokens"], tensors["in.tokens"]), tensors["out.eval.parts"])


def test_agrees_with_the_formulas_in_train_mode():
    torch.manual_seed(0)
    for batch, positions, width, dim, parts in ((3, 7, 5, 6, 2), (2, 50, 12, 8, 1), (4, 4, 6, 4, 7)):
        pooling = PartPooling(width, parts).double()
        mid_tokens = torch.randn(batch, positions, width, dtype=torch.float64)
        tokens = torch.randn(batch, positions, dim, dtype=torch.float64)
        maps = slow_maps(mid_tokens, pooling.attend.weight)
        assert_close(pooling.maps(mid_tokens), maps, 1e-10)
        assert_close(pooling(mid_tokens, tokens), slow_parts(maps, tokens), 1e-10)


def test_the_background_is_dropped_and_one_norm_holds_all_parts():
    pooling = PartPooling(5, 3)
    parts = pooling(torch.randn(4, 9, 5), torch.randn(4, 9, 6))
    assert parts.shape == (4, 3, 6)
    assert (parts.flatten(1).norm(dim=1) < 1).all()      # the background holds the rest of the unit norm


def test_live_maps_are_the_attention_itself():
    torch.manual_seed(0)
    mid_tokens, tokens = torch.randn(3, 9, 5), torch.randn(3, 9, 6)
    pooling = PartPooling(5, 2, live=True).eval()
    attention = pooling.attend(pooling.attend_norm(mid_tokens.flatten(0, 1))).view(3, 9, 3).softmax(dim=1)
    assert torch.allclose(pooling.maps(mid_tokens), attention.transpose(1, 2), atol=1e-6)
    assert torch.allclose(pooling.maps(mid_tokens).sum(dim=2), torch.ones(3, 3))
    assert torch.allclose(pooling(mid_tokens, tokens), slow_parts(attention.transpose(1, 2), tokens), atol=1e-5)
    x = Features(torch.zeros(3, 6), tokens, mid_tokens)
    assert torch.equal(pooling.part_maps(x), pooling.maps(mid_tokens)[:, :-1])
    assert torch.equal(pooling.of(x), pooling(mid_tokens, tokens))
    assert not [name for name in pooling.state_dict() if "map_norm" in name]


def test_a_live_part_learns_where_the_other_kind_is_dead():
    """The same attention; the normalisation behind the paper's is set so that its maps are zero everywhere."""
    torch.manual_seed(0)
    mid_tokens, tokens = torch.randn(4, 9, 5), torch.randn(4, 9, 6)
    slopes = {}
    for live in (False, True):
        pooling = PartPooling(5, 2, live=live)
        with torch.no_grad():
            pooling.attend.weight.copy_(torch.arange(15.0).view(3, 5) / 10)
            if pooling.map_norm is not None:
                pooling.map_norm.bias.fill_(-100.0)
        parts = pooling(mid_tokens, tokens)
        (parts * torch.linspace(-1, 1, parts.numel()).view_as(parts)).sum().backward()
        slope = pooling.attend.weight.grad
        assert slope is not None
        assert slope.isfinite().all()
        assert (pooling.maps(mid_tokens).sum(dim=2) == 0).all() == (not live)
        slopes[live] = slope.abs().max().item()
    assert slopes[False] == 0 < slopes[True]


def found(positions: int, *, parts: int = 3, dim: int = 4, images: int = 6) -> tuple[FoundParts, Features]:
    """Parts with drawn centres, and images with as many positions."""
    torch.manual_seed(0)
    clip = tiny_vit()
    clip.embed_dim, clip.image_width = dim, 5
    x = Features(torch.randn(images, dim), 1 + 2 * torch.randn(images, positions, dim),
                 torch.randn(images, positions, 5))
    pooling = FoundParts(clip, parts, inputs="pooled", scaling="none", pairs=3)
    pooling.mean.copy_(torch.randn(dim))
    pooling.deviation.copy_(torch.rand(dim) + 0.5)
    pooling.centres.copy_(torch.randn(parts, dim))
    pooling.directions.copy_(torch.linalg.qr(torch.randn(5, 3)).Q)
    return pooling, x


@pytest.mark.parametrize("positions", [9, 10], ids=["grid", "class token"])
def test_found_maps_share_out_the_positions(positions):
    pooling, x = found(positions)
    assert x.tokens is not None and x.mid_tokens is not None
    maps, before = pooling.part_maps(x), positions - 9
    assert maps.shape == (6, 5, positions)
    assert list(islice(pooling.names(), 5)) == ["whole image", "part 1", "part 2", "part 3", "pairs of channels"]
    assert (maps >= 0).all()
    assert (maps[:, :, :before] == 0).all()
    assert (maps[:, :, before:] > 0).all()
    assert torch.allclose(maps[:, 0, before:], torch.full((6, 9), 1 / 9))
    for image, tokens in enumerate(x.tokens):
        shares = []                                          # of each position, for each part
        for token in tokens[before:]:
            z = [float((token[k] - pooling.mean[k]) / pooling.deviation[k]) for k in range(4)]
            far = [sum((z[k] - float(centre[k])) ** 2 for k in range(4)) for centre in pooling.centres]
            weights = [exp(-distance / 4 / SOFTNESS) for distance in far]
            shares.append([weight / sum(weights) for weight in weights])
        for part in range(3):
            column = [share[part] for share in shares]
            expected = torch.tensor([share / (sum(column) + ABSENT) for share in column])
            assert torch.allclose(maps[image, part + 1, before:], expected, atol=1e-5)
        lengths = (x.mid_tokens[image, before:] @ pooling.directions).square().sum(dim=1)
        assert torch.allclose(maps[image, 4, before:], lengths / lengths.sum(), atol=1e-5)


@pytest.mark.parametrize("positions", [9, 10], ids=["grid", "class token"])
def test_found_parts_are_means_of_positions_and_of_their_pairs(positions):
    pooling, x = found(positions)
    assert x.tokens is not None and x.mid_tokens is not None
    standard = (x.tokens - pooling.mean) / pooling.deviation
    whole, clusters, pairs = pooling.blocks()
    features = pooling.of(x)
    assert features.shape == (6, 4 + 3 * 4 + 2 * 9) == (6, sum(pooling.widths))
    assert torch.equal(features[:, whole], x.pooled)
    assert torch.allclose(features[:, clusters], (pooling.part_maps(x)[:, 1:4] @ standard).flatten(1), atol=1e-5)
    for image, row in enumerate(features[:, pairs]):
        z = x.mid_tokens[image, positions - 9:] @ pooling.directions                       # (9, 3)
        for start, at in ((0, z), (9, z - z.mean(dim=0))):
            mean = sum(torch.outer(each, each) for each in at) / 9
            assert torch.allclose(row[start:start + 9], (mean / mean.norm() / 2 ** 0.5).flatten(), atol=1e-5)
    if positions == 10:
        changed, earlier = x.tokens.clone(), x.mid_tokens.clone()
        changed[:, 0] = earlier[:, 0] = 1000.0
        again = pooling.of(Features(x.pooled, changed, earlier))
        assert torch.equal(again, features), "a class token has no say"


def test_a_part_that_no_position_is_near_to_is_not_seen():
    pooling, x = found(9)
    pooling.centres[1] = 50.0
    assert pooling.part_maps(x)[:, 2].sum(dim=1).max() < 1e-3
    assert pooling.part_maps(x)[:, 0].sum(dim=1).min() > 0.99
    assert pooling.of(x).isfinite().all()


def test_fitted_parts_have_mean_0_and_length_1():
    pooling, x = found(10, images=40)
    bank = bank_of(x, torch.arange(2).repeat(20))
    rows = pooling.fit(bank, torch.device("cpu"))
    features = pooling.of(x)
    assert torch.allclose(rows, features, atol=1e-4)
    assert features.mean(dim=0).abs().max() < 1e-4
    for some in pooling.blocks():
        assert features[:, some].square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=1e-3)
    clusters = features[:, pooling.blocks()[1]].square().mean(dim=0)
    assert torch.allclose(clusters, clusters.mean().expand(12), rtol=1e-3), "each number as long as the others"
    weighed = pooling.weigh((1.0, 0.25, 0.0))
    assert torch.allclose(pooling.of(x), features * weighed, atol=1e-5)
    assert weighed.unique().tolist() == [0.0, 0.5, 1.0]


def test_the_directions_are_those_of_the_longest_positions():
    pooling, x = found(9, images=30)
    assert x.mid_tokens is not None
    x.mid_tokens[:, :, 1:4] *= 10
    pooling.fit(bank_of(x, torch.zeros(30, dtype=torch.long)), torch.device("cpu"))
    assert torch.allclose(pooling.directions.T @ pooling.directions, torch.eye(3), atol=1e-4)
    assert pooling.directions[[0, 4]].abs().max() < 0.1


def test_parts_without_clusters_and_pairs_are_the_whole_image():
    _, x = found(9)
    clip = tiny_vit()
    clip.embed_dim, clip.image_width = 4, 5
    pooling = FoundParts(clip, 0, inputs="pooled", scaling="none")
    assert pooling.needs == {"pooled", "tokens"}
    assert torch.equal(pooling.of(x), x.pooled)
    assert pooling.part_maps(x).shape == (6, 1, 9)
    rows = pooling.fit(bank_of(x, torch.zeros(6, dtype=torch.long)), torch.device("cpu"))
    assert rows.square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=1e-3)
