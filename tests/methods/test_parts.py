from math import exp

import pytest
import torch
from reference import assert_close, load, needs_reference, reference, slow_maps, slow_parts

from xrvlm.backbones.base import Features
from xrvlm.methods.xr_vlm.parts import ABSENT, SOFTNESS, WHOLE, FoundParts, patches
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
    x = Features(torch.randn(images, dim), 1 + 2 * torch.randn(images, positions, dim))
    pooling = FoundParts(dim, parts)
    assert x.tokens is not None
    standard = pooling.start(patches(x.tokens).flatten(0, 1))
    assert standard.mean(dim=0).abs().max() < 1e-5
    assert torch.allclose(standard.std(dim=0), torch.ones(dim), atol=1e-4)
    pooling.centres.copy_(torch.randn(parts, dim))
    return pooling, x


@pytest.mark.parametrize("positions", [9, 10], ids=["grid", "class token"])
def test_found_maps_share_out_the_positions(positions):
    pooling, x = found(positions)
    assert x.tokens is not None
    maps, before = pooling.part_maps(x), positions - 9
    assert maps.shape == (6, 4, positions)
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


@pytest.mark.parametrize("positions", [9, 10], ids=["grid", "class token"])
def test_found_parts_are_means_of_positions(positions):
    pooling, x = found(positions)
    assert x.tokens is not None
    standard = (x.tokens - pooling.mean) / pooling.deviation
    features = pooling.of(x) * pooling.part_deviation + pooling.part_mean
    assert torch.allclose(features[:, 0], x.pooled, atol=1e-6)
    assert torch.allclose(features[:, 1:], pooling.part_maps(x)[:, 1:] @ standard, atol=1e-5)
    if positions == 10:
        changed = x.tokens.clone()
        changed[:, 0] = 1000.0
        assert torch.equal(pooling.of(Features(x.pooled, changed)), pooling.of(x)), "a class token has no say"


def test_a_part_that_no_position_is_near_to_is_not_seen():
    pooling, x = found(9)
    pooling.centres[1] = 50.0
    assert pooling.part_maps(x)[:, 2].sum(dim=1).max() < 1e-3
    assert pooling.part_maps(x)[:, 0].sum(dim=1).min() > 0.99
    assert pooling.of(x).isfinite().all()


def test_standardised_parts_have_their_lengths():
    pooling, x = found(10, images=40)
    pooling.standardise(pooling.of(x))
    features = pooling.of(x)                                                               # (n, m + 1, d)
    assert features.mean(dim=0).abs().max() < 1e-5
    squares = features.square().sum(dim=0) / 39                                            # (m + 1, d)
    assert squares[0].sum().item() == pytest.approx(WHOLE ** 2, rel=1e-3)
    assert squares[1:].sum().item() == pytest.approx(1.0, rel=1e-3)
    assert torch.allclose(squares[0], squares[0].mean().expand(4), rtol=1e-3), "each number as long as the others"
    assert torch.allclose(squares[1:], squares[1:].mean().expand(3, 4), rtol=1e-3)
