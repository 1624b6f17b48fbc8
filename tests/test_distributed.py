"""Processes that do a run together end where one process does; here each is a child of the test, and gloo joins them.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
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
# 13 images in batches of 7 and 6: shares of 4 and 3; five classes: shares of 3 and 2. Smaller batches normalise by so few
# rows that rounding alone grows by six orders of magnitude over the run, in one process as in two
RECIPE = Recipe("test", epochs=3, batch_size=7, learning_rate=0.01, warmup_epochs=1, label_smoothing=0.1, grad_clip=5.0)
FOR_THREE = ("cross", "per_class", "coop")
THREE = Recipe("three", epochs=1, batch_size=6, learning_rate=0.01)      # 8 images: at the end two for three processes


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


def source(count: int = 13):
    """Made-up features of `count` images in five classes."""
    draws = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % len(NAMES)
    x = Features(nn.functional.normalize(torch.randn(count, 16, generator=draws), dim=1),
                 torch.randn(count, 9, 16, generator=draws), torch.randn(count, 9, 32, generator=draws))
    return bank_of(x.map(lambda value: value + 0.1 * labels.view(-1, *[1] * (value.ndim - 1))), labels)


@contextmanager
def double_precision():
    """Throughout, so that nothing but a mistake tells one process from several."""
    before = torch.Tensor.float, torch.get_default_dtype()
    torch.Tensor.float = torch.Tensor.double         # what the tower and the bank give is float32 elsewhere
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = before[0]
        torch.set_default_dtype(before[1])


class Stopped:
    """A source that is interrupted in epoch 2."""

    def __init__(self, whole):
        self.whole, self.ids, self.labels, self.in_order = whole, whole.ids, whole.labels, whole.in_order

    def batches(self, order, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return self.whole.batches(order, epoch)


def trained(name, *, count=13, recipe=RECIPE, stop=False, **options):
    """The losses, the logits and the state of a method that is fitted to `source(count)`."""
    clip, data = tiny_vit(), source(count)
    clip.model.to(torch.get_default_dtype())
    with seeded("weights"):
        method = METHODS[name](clip, class_text(NAMES))
    method.prepare(clip, data)
    losses = fit(method, clip, Stopped(data) if stop else data, recipe, seed=1, **options).losses
    (x, _), = data.in_order()
    with torch.no_grad():
        logits = method.eval().logits(x, method.class_features(clip))
    state = {key: value.clone() for key, value in method.state_dict().items()}
    return {"losses": torch.tensor([entry["loss"] for entry in losses]), "logits": logits} | state


def stop_early(checkpoint):
    with pytest.raises(KeyboardInterrupt):
        trained("cross", stop=True, checkpoint=checkpoint, identity="a")


def as_two(place):
    with double_precision(), joined() as group:
        for name in METHODS:
            torch.save(trained(name), place / f"{name}-{group.rank}.pt")
        stop_early(place / "stopped-by-two.safetensors")


def as_three(place):
    with double_precision(), joined() as group:
        for name in FOR_THREE:
            torch.save(trained(name, count=8, recipe=THREE), place / f"{name}-{group.rank}-of-three.pt")
        again = trained("cross", checkpoint=place / "stopped.safetensors", identity="a")
        torch.save(again, place / f"resumed-{group.rank}.pt")


def assert_close(one, other, tolerance=1e-10):
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.abs().max().clamp(min=1e-3) if value.is_floating_point() else 0
        assert value.dtype in (torch.float64, torch.int64), name
        assert ((value - other[name]).abs() <= tolerance * scale).all(), name


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of two and three processes came to, and one beside them."""
    place = tmp_path_factory.mktemp("ends")
    two = start(f"as_two(Path({str(place)!r}))")
    with double_precision():
        alone = {name: trained(name) for name in METHODS}
        stop_early(place / "stopped.safetensors")
    assert_ended(two)
    three = start(f"as_three(Path({str(place)!r}))", 3)
    with double_precision():
        alone |= {f"{name} of 8": trained(name, count=8, recipe=THREE) for name in FOR_THREE}
        resumed = trained("cross", checkpoint=place / "stopped-by-two.safetensors", identity="a")
    assert_ended(three)
    return place, alone, resumed


def assert_ended(children):
    ended = finish(children)
    assert not any(code for code, _, _ in ended), "\n".join(err for _, _, err in ended)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_where_one_does(ends, name):
    place, alone, _ = ends
    assert alone[name]["losses"][-1] < alone[name]["losses"][0]
    for rank in range(2):
        assert_close(alone[name], torch.load(place / f"{name}-{rank}.pt"))


@pytest.mark.parametrize("name", FOR_THREE)
def test_a_process_without_a_row_takes_part(ends, name):
    place, alone, _ = ends
    for rank in range(3):
        assert_close(alone[f"{name} of 8"], torch.load(place / f"{name}-{rank}-of-three.pt"))


def test_a_stopped_run_is_resumed_by_another_number_of_processes(ends):
    place, alone, resumed = ends
    assert_close(alone["cross"], resumed)
    for rank in range(3):
        assert_close(alone["cross"], torch.load(place / f"resumed-{rank}.pt"))
