import torch
from reference import assert_close, load, needs_reference, reference, slow_maps, slow_parts

from xrvlm.parts import PartPooling


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
