"""Processes that do a run together end where one process does; here each is a child of the test, and gloo joins them.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import pytest
import torch
import torch.distributed as dist
from banks import bank_of
from photos import photo_folder
from slow import SLOW
from torch import nn
from towers import tiny_vit

from xrvlm import methods
from xrvlm.backbones.base import Features
from xrvlm.cli.main import main
from xrvlm.data.folder import image_folder
from xrvlm.distributed import Group, PeerFailedError, active_group, generator, joined, processes, seed_of, seeded
from xrvlm.errors import UserError
from xrvlm.experiments.record import RunOptions
from xrvlm.experiments.run import adapt
from xrvlm.features import bank
from xrvlm.features import source as features
from xrvlm.features.source import FeatureSettings
from xrvlm.files import MARK
from xrvlm.methods import (
    CLAP,
    PLOT,
    XRVLM,
    ClipAdapter,
    CoCoOp,
    CoOp,
    GalLoP,
    LinearProbe,
    ProLIP,
    ResidualProbe,
    TaskRes,
    TipAdapter,
    registry,
)
from xrvlm.methods.base import Recipe
from xrvlm.reporting.results import read_records
from xrvlm.text.class_text import class_text
from xrvlm.training.fit import fit
from xrvlm.training.following import Follower

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()),
                                reason="this torch has no torch.distributed with gloo")
TESTS = Path(__file__).parent
NAMES = ("Sarkel's finch", "red wren", "jay", "kite", "emu")
PARTS = {name: {"wing": f"the wing of a {name}", "beak": f"{name}, its beak"} for name in NAMES}
SMALL = {"image_parts": 2, "text_parts": 2, "context_length": 3, "hidden": 8}
METHODS = {
    "cross": partial(XRVLM, **SMALL),
    "per_class": partial(XRVLM, **SMALL, head="per_class"),
    "per_class shared": partial(XRVLM, **SMALL, head="per_class", context="shared", prior_weight=1.0,
                                learn_prior_weight=True),
    "described": partial(XRVLM, **SMALL, part_prompts="learned_from_descriptions"),
    "visual": partial(XRVLM, **SMALL, head="visual"),
    "coop": partial(CoOp, context_length=3),
    "coop specific": partial(CoOp, context_length=3, context="specific"),
    "plot": partial(PLOT, text_parts=2, context_length=3),
    "residual_probe": ResidualProbe,
    "task_res": TaskRes,
    "clap": CLAP,
    "clip_adapter": ClipAdapter,
    "prolip": ProLIP,
    "tip_adapter_f": partial(TipAdapter, trainable=True),
}
# 13 images in batches of 7 and 6: shares of 4 and 3; five classes: shares of 3 and 2. Smaller batches normalise by so
# few rows that rounding alone grows by six orders of magnitude over the run, in one process as in two
RECIPE = Recipe("test", epochs=3, batch_size=7, learning_rate=0.01, warmup_epochs=1, label_smoothing=0.1, grad_clip=5.0)
MEAN = replace(RECIPE, text_every=2, average_last=2, soup=(0.5, 1.0))
FOR_THREE = ("cross", "per_class", "coop", "clap", "prolip")
AVERAGED = ("cross", "coop")
THREE = Recipe("three", epochs=1, batch_size=6, learning_rate=0.01)      # 8 images: at the end two for three processes


FORKED = """
import os, sys, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_distributed import *
children = []
for rank in range({count}):
    children.append(os.fork())
    if not children[-1]:
        os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank)}}
        {call}
        os._exit(0)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(*codes, file=sys.stderr, end="")
"""


def start(call: str, count: int = 2) -> subprocess.Popen:
    """`count` processes that run `call`, with what torchrun sets. They are one until all is imported."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = FORKED.format(tests=str(TESTS), call=call, count=count)
    environment = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                                "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment, start_new_session=True)


def finish(child: subprocess.Popen) -> tuple[str, str, list[int]]:
    """The output and the error stream of all the processes of `start`, and their exit codes."""
    try:
        out, err = child.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)         # itself, and any that hang
    *lines, codes = err.split("\n")
    return out, "\n".join(lines), [int(code) for code in codes.split()]


def assert_ended(child):
    _, err, codes = finish(child)
    assert set(codes) == {0}, err


def source(count: int = 13):
    """Made-up features of `count` images in five classes."""
    draws = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % len(NAMES)
    x = Features(nn.functional.normalize(torch.randn(count, 16, generator=draws), dim=1),
                 torch.randn(count, 9, 16, generator=draws), torch.randn(count, 9, 32, generator=draws),
                 torch.randn(count, 32, generator=draws))
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
        method = METHODS[name](clip, class_text(NAMES, parts=PARTS))
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
        for name in AVERAGED:
            torch.save(trained(name, recipe=MEAN), place / f"{name}-{group.rank}-mean.pt")
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
        alone |= {f"{name} mean": trained(name, recipe=MEAN) for name in AVERAGED}
        stop_early(place / "stopped.safetensors")
    assert_ended(two)
    three = start(f"as_three(Path({str(place)!r}))", 3)
    with double_precision():
        alone |= {f"{name} of 8": trained(name, count=8, recipe=THREE) for name in FOR_THREE}
        resumed = trained("cross", checkpoint=place / "stopped-by-two.safetensors", identity="a")
    assert_ended(three)
    return place, alone, resumed


def test_every_method_that_splits_batches_is_tried():
    made = {getattr(make, "func", make) for make in METHODS.values()}
    assert made == {getattr(methods, name) for name in registry.classes() if getattr(methods, name).splits_batches}


@SLOW
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_where_one_does(ends, name):
    folder, alone, _ = ends
    assert alone[name]["losses"][-1] < alone[name]["losses"][0]
    for rank in range(2):
        assert_close(alone[name], torch.load(folder / f"{name}-{rank}.pt"))


@SLOW
@pytest.mark.parametrize("name", AVERAGED)
def test_two_processes_average_and_share_a_text_pass_as_one_does(ends, name):
    place, alone, _ = ends
    assert not torch.allclose(alone[name]["logits"], alone[f"{name} mean"]["logits"], rtol=1e-3)
    for rank in range(2):
        assert_close(alone[f"{name} mean"], torch.load(place / f"{name}-{rank}-mean.pt"))


@SLOW
@pytest.mark.parametrize("name", FOR_THREE)
def test_a_process_without_a_row_takes_part(ends, name):
    place, alone, _ = ends
    for rank in range(3):
        assert_close(alone[f"{name} of 8"], torch.load(place / f"{name}-{rank}-of-three.pt"))


@SLOW
def test_a_stopped_run_is_resumed_by_another_number_of_processes(ends):
    place, alone, resumed = ends
    assert_close(alone["cross"], resumed)
    for rank in range(3):
        assert_close(alone["cross"], torch.load(place / f"resumed-{rank}.pt"))


COMMAND = ["adapt", "backbone=tiny", "shots=3", "workers=0", "features.views=1", "recipe.batch_size=5",
           "recipe.epochs=2", "recipe.learning_rate=0.0002", "method.image_parts=2", "method.text_parts=2",
           "method.context_length=3", "method.hidden=8", "val=true"]


def command_in(place, name):
    return [*COMMAND, f"data.root={place / 'photos'}", f"runs={place / name}", f"features.cache={place / name}"]


def files_of(folder):
    """But for the marks of folders: which process makes one is chance."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MARK}


def rows_of(path, columns):
    with path.open(newline="") as file:
        return torch.tensor([[float(row[column]) for column in columns] for row in csv.DictReader(file)])


@SLOW
def test_torchrun_adapts_as_one_process_does(tmp_path, capfd):
    photo_folder(tmp_path / "photos")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "xrvlm"]
    child = subprocess.Popen([*torchrun, *command_in(tmp_path, "two")], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert main(command_in(tmp_path, "one")) == 0
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    told = capfd.readouterr().out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert out.splitlines()[-2:] == told.splitlines()[-2:]        # once, and the same figures in the same folder
    assert out.count("top-1") == told.count("top-1")
    one, two = (next((tmp_path / name).glob("xr_vlm-*")) for name in ("one", "two"))
    assert one.name == two.name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for file, columns in (("losses.csv", ["loss", "val_top1"]), ("predictions.csv", ["probability_1"])):
        torch.testing.assert_close(rows_of(one / file, columns), rows_of(two / file, columns), rtol=1e-5, atol=1e-5)
    assert files_of(tmp_path / "one" / "features") == files_of(tmp_path / "two" / "features")


# one that splits its batches, one without steps, two that the first process trains while the other waits
ADAPTED = {"coop": METHODS["coop"], "linear_probe": LinearProbe, "gallop": GalLoP, "cocoop": CoCoOp}


def adapted(place, method, **options):
    settings = FeatureSettings(cache=str(place / "cache"), views=1)
    with seeded("adapt"):
        return adapt(tiny_vit(), image_folder(place.parent / "photos"), method, shots=3,
                     recipe=Recipe("short", epochs=2, batch_size=5),
                     options=RunOptions(runs=place / "runs", features=settings, **options))


class Steps(Follower):
    """Leaves a file with a letter for each event."""

    def __init__(self, path):
        self.path = path

    def begin(self, folder, options, resumed):
        self.path.write_text("b")

    def epoch(self, entry):
        self.path.write_text(self.path.read_text() + "e")

    def finish(self, metrics):
        self.path.write_text(self.path.read_text() + ("f" if metrics else "?"))


def runs_of_two(place):
    bank.SHARD_BYTES = features.CPU_BATCH = 1    # a shard an image
    written = []
    keep = bank._write
    bank._write = lambda path, *rest: written.append(str(path)) or keep(path, *rest)
    with joined() as group:
        made = {name: adapted(place, method) for name, method in ADAPTED.items()}
        again = adapted(place, METHODS["coop"])
        forced = adapted(place, METHODS["coop"], force=True, follow=Steps(place / f"followed-{group.rank}"))
        assert again.record == made["coop"].record
        assert forced.record.metrics == again.record.metrics
        assert len(written) == len(set(written)) > 5
        Path(place / f"written-{group.rank}").write_text("\n".join(written))
        state = {name: run.classifier.method.state_dict() for name, run in made.items()}
        torch.save(state, place / f"state-{group.rank}.pt")


def test_all_processes_have_the_run_and_write_their_share_of_the_features(tmp_path, monkeypatch):
    photo_folder(tmp_path / "photos")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    children = start(f"runs_of_two(Path({str(tmp_path / 'two')!r}))")
    monkeypatch.setattr(bank, "SHARD_BYTES", 1)
    monkeypatch.setattr(features, "CPU_BATCH", 1)
    made = {name: adapted(tmp_path / "one", method) for name, method in ADAPTED.items()}
    assert_ended(children)
    assert files_of(tmp_path / "one" / "cache") == files_of(tmp_path / "two" / "cache")
    # the first process alone is followed
    assert {path.name: path.read_text() for path in (tmp_path / "two").glob("followed-*")} == {"followed-0": "beef"}
    for rank in range(2):
        states = torch.load(tmp_path / "two" / f"state-{rank}.pt")
        for name, run in made.items():
            torch.testing.assert_close(states[name], dict(run.classifier.method.state_dict()), rtol=1e-4, atol=1e-6)
    assert len(read_records(tmp_path / "two" / "runs")) == len(ADAPTED)
    shares = [(tmp_path / "two" / f"written-{rank}").read_text().split("\n") for rank in range(2)]
    assert not set(shares[0]) & set(shares[1])


def fails_in_the_second(arguments):
    """One process finds a mistake in the second epoch, while the other is on its way to the sum of both."""
    keep = XRVLM.loss

    def loss(self, *given, **options):
        loss.calls += 1
        if os.environ["RANK"] == "1" and loss.calls == 4:
            raise UserError("there is a mistake; mend it")
        return keep(self, *given, **options)

    loss.calls = 0
    XRVLM.loss = loss
    sys.exit(main(arguments))


@SLOW
def test_a_mistake_in_one_process_ends_all_with_one_line(tmp_path):
    photo_folder(tmp_path / "photos")
    _, err, codes = finish(start(f"fails_in_the_second({command_in(tmp_path, 'two')!r})"))
    assert codes == [2, 2], err
    assert [line for line in err.splitlines() if line.startswith("error")] == ["error: there is a mistake; mend it"]
    assert "Traceback" not in err


def test_an_environment_that_is_half_torchruns_is_told(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["report", "runs=x"]) == 2
    told = capsys.readouterr().err
    assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start them with torchrun, or unset WORLD_SIZE" in told


def test_one_process_shares_with_nobody():
    group = processes()
    assert (group.first, group.world, active_group()) == (True, 1, group)
    assert group.from_first(lambda: [1]) == [1]
    assert [Group(rank, 3).share(7) for rank in range(3)] == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert [Group(rank, 3).share(2) for rank in range(3)] == [slice(0, 1), slice(1, 2), slice(2, 2)]


class Store(dict):
    """As much of torch's store as barriers and failures need."""

    lock = Lock()

    def add(self, key, amount):
        with self.lock:
            self[key] = self.get(key, 0) + amount
            return self[key]

    def check(self, keys):
        return all(key in self for key in keys)


def test_the_first_to_fail_tells_and_no_other_waits_for_it():
    store = Store()
    first, second = Group(0, 2, store), Group(1, 2, store)
    assert first.first_to_fail()
    assert not second.first_to_fail()
    for wait in (second.meet, lambda: second.from_first(list)):
        with pytest.raises(PeerFailedError, match="another process of this run has failed"):
            wait()


def test_the_process_that_may_host_the_store_ends_last():
    """It ended once all had come, while a slow one still asked whether all had."""
    store, ended = Store(), []
    ranks = [Group(rank, 3, store) for rank in range(3)]

    class Slow(Store):
        def add(self, key, amount):
            if amount == 0 and key != "parted":
                time.sleep(0.2)          # rank 2 learns late that all have come
            assert 0 not in ended, "the store is gone"
            return store.add(key, amount)

        def check(self, keys):
            return store.check(keys)

    ranks[2].store = Slow()

    def run(group):
        group.part()
        ended.append(group.rank)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(run, ranks))
    assert ended[-1] == 0


def test_draws_depend_on_the_whole_key_alone():
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
