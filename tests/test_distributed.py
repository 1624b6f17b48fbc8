"""Processes that do a run together end where one process does; here each is a child of the test, and gloo joins them.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from banks import bank_of
from photos import photo_folder
from safetensors.torch import load_file
from torch import nn
from towers import hf_clip, tiny_vit

from xrvlm.backbone import Features
from xrvlm.cli import main
from xrvlm.distributed import BatchNorm, joined, processes, together
from xrvlm.draws import seeded
from xrvlm.errors import UserError
from xrvlm.features import FeatureSettings
from xrvlm.methods import CoOp, LinearProbe, ResidualProbe, XRVLM
from xrvlm.recipe import Recipe
from xrvlm.text import class_text
from xrvlm.train import fit

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()),
                                reason="this torch has no torch.distributed with gloo")
TESTS = Path(__file__).parent
NAMES = ("Sarkel's finch", "red wren", "jay", "kite", "emu")
SMALL = {"image_parts": 2, "text_parts": 2, "context_length": 3, "hidden": 8}
METHODS = {
    "cross": partial(XRVLM, **SMALL),
    "per_class": partial(XRVLM, **SMALL, head="per_class"),
    "per_class shared": partial(XRVLM, **SMALL, head="per_class", context="shared"),
    "cross text prior": partial(XRVLM, **SMALL, prior_weight=1.0, learn_prior_weight=True),
    "visual": partial(XRVLM, **SMALL, head="visual"),
    "coop": partial(CoOp, context_length=3),
    "coop specific": partial(CoOp, context_length=3, context="specific"),
    "residual_probe": ResidualProbe,
}
# 13 images in batches of 5: shares of 3 and 2, and of 2 and 1 at the end
RECIPE = Recipe("test", epochs=3, batch_size=5, learning_rate=0.02, warmup_epochs=1, label_smoothing=0.1, grad_clip=5.0)


def start(call: str, count: int = 2) -> list[subprocess.Popen]:
    """`count` processes that run `call` after `from test_distributed import *`, with what torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (f"import sys; sys.path.insert(0, {str(TESTS)!r})\nimport torch; torch.set_num_threads(1)\n"
            f"import test_distributed\nfrom test_distributed import *\n{call}")
    environment = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                                "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, "-W", "error", "-c", code], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """The exit code, output and error stream of each."""
    try:
        return [(process.returncode, out, err) for process, (out, err) in
                [(process, process.communicate(timeout=50)) for process in processes]]
    finally:
        for process in processes:
            process.kill()


def run_all(call: str, count: int = 2) -> None:
    ended = finish(start(call, count))
    assert [code for code, _, _ in ended] == [0] * count, "\n".join(err for _, _, err in ended)


def source(count: int = 13):
    """Made-up features of `count` images in five classes."""
    draws = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % len(NAMES)
    x = Features(nn.functional.normalize(torch.randn(count, 16, generator=draws), dim=1),
                 torch.randn(count, 9, 16, generator=draws), torch.randn(count, 9, 32, generator=draws))
    return bank_of(x.map(lambda value: value + 0.1 * labels.view(-1, *[1] * (value.ndim - 1))), labels)


def trained(name: str, *, count: int = 13, recipe: Recipe = RECIPE, **options):
    """The losses, the logits and the state of a method that is fitted to `source(count)`."""
    clip, data = tiny_vit(), source(count)
    clip.model.to(torch.get_default_dtype())
    with seeded("weights"):
        method = METHODS[name](clip, class_text(NAMES))
    method.prepare(clip, data)
    losses = [entry["loss"] for entry in fit(method, clip, data, recipe, seed=1, **options).losses]
    (x, _), = data.in_order()
    with torch.no_grad():
        logits = method.eval().logits(x, method.class_features(clip))
    return {"losses": torch.tensor(losses), "logits": logits} | method.state_dict()


def save_trained(place: str, cases: list[str], count: int = 13) -> None:
    """In double precision throughout, so that nothing but a mistake tells one process from several."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double       # what the tower and the bank give is float32 elsewhere
    with joined() as group:
        for name in cases:
            torch.save(trained(name, count=count), f"{place}/{name}-{group.rank}-of-{group.world}.pt")


def assert_close(one, other, tolerance=1e-10):
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.abs().max().clamp(min=1e-3) if value.is_floating_point() else 0
        assert value.dtype in (torch.float64, torch.int64), name
        assert ((value - other[name]).abs() <= tolerance * scale).all(), name


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What one process and each of two came to."""
    place = tmp_path_factory.mktemp("ends")
    call = f"save_trained({str(place)!r}, {list(METHODS)!r})"
    ended = finish([*start(call), *start(call, 1)])
    assert not any(code for code, _, _ in ended), "\n".join(err for _, _, err in ended)
    return place


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_where_one_does(ends, name):
    alone = torch.load(ends / f"{name}-0-of-1.pt")
    assert alone["losses"][-1] < alone["losses"][0]
    for rank in range(2):
        assert_close(alone, torch.load(ends / f"{name}-{rank}-of-2.pt"))
