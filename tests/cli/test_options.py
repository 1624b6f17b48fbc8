from typing import Literal

import pytest

from xrvlm.cli.commands import check_options
from xrvlm.errors import UserError, unknown
from xrvlm.randomness import generator, seed_of, seeded


def takes(*, parts: int = 4, rate: float = 1.0, words: str | None = None, kind: Literal["a", "b"] = "a",
          flag: bool = False, scale: tuple[float, float] = (0.5, 1.0)): ...


@pytest.mark.parametrize("given", [
    {}, {"parts": 2}, {"rate": 1}, {"words": None}, {"words": "x"}, {"kind": "b"}, {"flag": True}, {"scale": [0, 1]}])
def test_good_options_pass(given):
    check_options(takes, given, "method")


@pytest.mark.parametrize(("given", "message"), [
    ({"part": 2}, "unknown option 'method.part'; available: .*; did you mean 'method.parts'"),
    ({"parts": "x"}, "method.parts must be a whole number, found 'x'"),
    ({"parts": True}, "method.parts must be a whole number, found True"),
    ({"parts": 1.5}, "method.parts must be a whole number"),
    ({"rate": "fast"}, "method.rate must be a number"),
    ({"words": 3}, "method.words must be a text or null"),
    ({"kind": "c"}, "method.kind must be a or b, found 'c'"),
    ({"flag": 1}, "method.flag must be true or false"),
    ({"scale": 0.5}, "method.scale must be"),
])
def test_bad_options_are_told(given, message):
    with pytest.raises(UserError, match=message):
        check_options(takes, given, "method")


def test_unknown_names_what_is_there_and_what_is_close():
    text = str(unknown("class-name list", "cubs", ["cub", "cars"], "or pass a path"))
    assert text == "unknown class-name list 'cubs'; available: cars, cub; did you mean 'cub'?; or pass a path"


def test_draws_depend_on_the_whole_key_alone():
    import torch

    assert seed_of(1, "order", 2) == seed_of(1, "order", 2)
    assert len({seed_of(1, "order", 2), seed_of(1, "order", 3), seed_of(2, "order", 2), seed_of(1, "view", 2)}) == 4
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with seeded(1, "a"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(1, "a"):
        assert torch.equal(torch.rand(3), first)
