"""Damaged stores of features: the features that are read are those of an undamaged store, to the bit."""

import os
import shutil
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from random import Random
from typing import Any

import torch

import xrvlm
from fuzz.bench import Bench
from fuzz.oracle import REFUSED, USED, answer, command_line, require, watched
from fuzz.values import broken_bytes
from xrvlm.experiments.run import Run
from xrvlm.features.bank import FeatureBank
from xrvlm.features.cache import banks, of_this_process, prune
from xrvlm.features.source import extract

RESULTS = ("metrics.json", "predictions.csv", "losses.csv", "split.json")


@once
def undamaged(bench: Bench) -> tuple[dict[str, Run], torch.Tensor]:
    """The runs of a whole cache in made/cache, and the features of all images there."""
    place = bench.root / "undamaged"
    runs = {method: bench.adapt(method, place, views=views) for method, views in (("linear_probe", 0), ("xr_vlm", 2))}
    return runs, _values(_bank(bench, place / "cache"))


def cache(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """One damage; then all features are read, and for some inputs a run is made of them."""
    runs, expected = undamaged(bench)
    of_this_process.cache_clear()      # the folder in place of a cache is made anew, in `place`
    shutil.copytree(bench.root / "undamaged" / "cache", place / "cache")
    store = place / "cache" / "features"
    damage = DAMAGES[number % len(DAMAGES)]
    for _ in range(draw.choice((1, 1, 3))):
        damage(draw, store)
    try:
        with watched([place / "cache", place / "runs", bench.scratch]):
            return _checked(bench, draw, place, number, runs, expected)
    finally:
        for path in (place / "cache", *(place / "cache").rglob("*")):
            if not path.is_symlink() and path.is_dir():
                path.chmod(0o700)


def _checked(bench: Bench, draw: Random, place: Path, number: int, runs: dict[str, Run],
             expected: torch.Tensor) -> str:
    if number % 6 == 1:
        answer(lambda: banks(place / "cache"))
        command_line("cache", "list", f"cache={place / 'cache'}")
    if number % 6 == 5:
        answer(lambda: prune(place / "cache", every=draw.random() < 0.5))
    method = draw.choice(sorted(runs))
    if number % 2:
        found, _ = answer(lambda: bench.adapt(method, place, views=0 if method == "linear_probe" else 2))
        if found is not None:
            same_run(found, runs[method])
    bank, _ = answer(lambda: _bank(bench, place / "cache"))
    if bank is None:
        return REFUSED
    require(torch.equal(_values(bank), expected), "other features than those of the whole cache")
    return USED


def same_run(found: Run, expected: Run) -> None:
    """Wrong where a run has other figures, files or weights than another."""
    require(found.record.metrics == expected.record.metrics, f"{found.record.metrics}, not {expected.record.metrics}")
    for name in RESULTS:
        require(_content(found.folder / name) == _content(expected.folder / name), f"{name} differs")
    state, other = (run.classifier.method.state_dict() for run in (found, expected))
    require(state.keys() == other.keys(), f"weights {state.keys()}")
    require(all(torch.equal(value, other[name]) for name, value in state.items()), "weights differ")


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _bank(bench: Bench, folder: Path) -> FeatureBank:
    dataset = xrvlm.image_folder(bench.photos)
    return extract(bench.clip, dataset.source, dataset.split.train, xrvlm.FeatureSettings(views=0, cache=folder))


def _values(bank: FeatureBank) -> torch.Tensor:
    return torch.cat([x.pooled for x, _ in bank.in_order()])


# ---- damages of one thing in the store

def _a_file(draw: Random, store: Path, pattern: str = "shard-*.safetensors") -> Path:
    return draw.choice(sorted(store.rglob(pattern)) or [store])


def _bytes(draw: Random, store: Path) -> None:
    path = _a_file(draw, store)
    if path.is_file():
        path.write_bytes(broken_bytes(path.read_bytes(), draw))


def _one_bit(draw: Random, store: Path) -> None:
    path = _a_file(draw, store)
    if path.is_file() and (data := bytearray(path.read_bytes())):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def _header_bit(draw: Random, store: Path) -> None:
    path = _a_file(draw, store)
    if path.is_file() and (data := bytearray(path.read_bytes())):
        data[draw.randrange(min(len(data), 600))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def _nothing_in_it(draw: Random, store: Path) -> None:
    data = draw.choice((b"", b"\x00" * 8, b"{}", b"\xff" * 4096))
    _replace(_a_file(draw, store), lambda path: path.write_bytes(data))


def _swapped(draw: Random, store: Path) -> None:
    one, two = _a_file(draw, store), _a_file(draw, store)
    if one.is_file() and two.is_file():
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)


def _no_file(draw: Random, store: Path) -> None:
    """A folder, a pipe or a link in the place of a file."""
    makes: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("/dev/zero"),
        lambda path: (path.mkdir(), (path / "x").write_text("x")))
    _replace(_a_file(draw, store), draw.choice(makes))


def _more_files(draw: Random, store: Path) -> None:
    folder = _a_file(draw, store).parent
    name = draw.choice(("shard-x.safetensors", ".shard-1.safetensors.tmp.safetensors", "shard-0.safetensors", "x",
                        "key.json"))
    if not (folder / name).is_dir():
        (folder / name).write_bytes(draw.choice((b"", b"x", b"[]", b"{\"backbone\": 1}", draw.randbytes(100))))


def _key(draw: Random, store: Path) -> None:
    path = _a_file(draw, store, "key.json")
    if path.is_file():
        path.write_bytes(draw.choice((b"", b"[]", b"null", b"{\"backbone\": null, \"precision\": 1}", b"[" * 100_000,
                                      broken_bytes(path.read_bytes(), draw))))
    else:
        _no_file(draw, store)


def _lock(draw: Random, store: Path) -> None:
    locks = sorted(store.rglob(".lock*"))
    if locks:
        _replace(draw.choice(locks), draw.choice((lambda path: path.mkdir(), lambda path: path.symlink_to(path))))
        _nothing_in_it(draw, store)


def _permissions(draw: Random, store: Path) -> None:
    path = _a_file(draw, store)
    draw.choice((path, path.parent, store)).chmod(draw.choice((0, 0o400, 0o500)))


def _store(draw: Random, store: Path) -> None:
    """The folder of a store, or of all, is none."""
    path = draw.choice((store, _a_file(draw, store).parent))
    _replace(path, draw.choice((lambda path: path.write_text("x"), lambda path: path.symlink_to(path), os.mkfifo)))


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
    make(path)


DAMAGES = (_one_bit, _bytes, _no_file, _header_bit, _nothing_in_it, _swapped, _store, _key, _more_files, _lock, _bytes,
           _permissions)
