"""Hostile folders of photos: odd trees, links and names."""

import os
from pathlib import Path
from random import Random
from shutil import copy

import xrvlm
from fuzz.bench import Bench
from fuzz.oracle import REFUSED, USED, answer, plain, require, watched
from xrvlm.data.dataset import SUBSETS
from xrvlm.files import leads_out

ODD_NAMES = ("caf\u00e9", "cafe\u0301", "a b", "a,b", "it's", "100%", "=x", "-x", "@x", "\x1b[31mred", "a\nb",
             "\u202ex", "train", "test", "val", "Training images", "fold 1", ".hidden", "__MACOSX", "x" * 200, "~",
             "$HOME", "a\\b", b"\xff\xfe".decode("utf-8", "surrogateescape"), "{}", "${x}", "con", "jay.png")


def folder(bench: Bench, draw: Random, place: Path, number: int) -> str:
    """A tree of folders: each image is found once with its class, or the tree is refused."""
    root = place / "photos"
    odd = draw.random() < 0.8
    names = ["jay", "robin", *(draw.sample(ODD_NAMES, draw.choice((0, 1, 2))) if odd else [])]
    subsets = draw.choice(([""], [""], ["train"], ["train", "test"], ["Train_set", "val", "holdout"])) if odd else [""]
    expected = set()
    for subset in subsets:
        for index, name in enumerate(names):
            for image in range(2):
                path = root / subset / name / f"{index}{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                copy(bench.photos / "wren" / f"{image}.png", path)
                expected.add((path.relative_to(root).as_posix(), name))
    if odd:
        for change in draw.sample(TREES, draw.choice((0, 1, 2))):
            change(draw.choice(sorted(path for path in root.rglob("*") if path.is_dir())), draw)
    with watched([place / "runs", place / "cache", bench.scratch]):
        found, problem = answer(lambda: xrvlm.image_folder(root))
        if not odd:
            got = found and {(item.id, found.split.classes[item.label]) for item in found.split.train}
            require(got == expected, f"a plain folder gave {got}, {problem}")
        return judged(bench, found, root, place, number)


def _loop(folder: Path, draw: Random) -> None:
    (folder / "loop").symlink_to(draw.choice((folder, folder.parent, Path("/dev"), Path("loop"))))


def _deep(folder: Path, draw: Random) -> None:
    for _ in range(draw.choice((3, 60))):
        folder = folder / "deep"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"x")


def _strange_file(folder: Path, draw: Random) -> None:
    name = draw.choice((".DS_Store", "Thumbs.db", "notes.txt", "x.JPEG", "x.heic", "x.svg", "x", "x.png.png",
                        "\x07.png"))
    (folder / name).write_bytes(b"x")


def _empty_folder(folder: Path, draw: Random) -> None:
    (folder / draw.choice(("empty", "train", *ODD_NAMES[:8]))).mkdir(exist_ok=True)


def _pipe(folder: Path, draw: Random) -> None:
    os.mkfifo(folder / "pipe.png")


def _same_again(folder: Path, draw: Random) -> None:
    (folder.parent / f"{folder.name} ").symlink_to(folder)


def _unreadable(folder: Path, draw: Random) -> None:
    folder.chmod(0o500)


TREES = (_loop, _deep, _strange_file, _empty_folder, _pipe, _same_again, _unreadable)


def judged(bench: Bench, found: xrvlm.Dataset | None, root: Path, place: Path, number: int) -> str:
    """What was found is whole: images that are there, in the folder, each once, of classes that can be shown."""
    if found is None:
        return REFUSED
    ids = [item.id for subset in SUBSETS for item in getattr(found.split, subset)]
    require(len(set(ids)) == len(ids), f"an image twice: {ids}")
    require(all(os.path.lexists(root / each) and not leads_out(each) for each in ids), f"no files there: {ids}")
    require(len(set(found.split.classes)) == len(found.split.classes) >= 2, f"classes {found.split.classes}")
    for name in (*found.split.classes, *ids):
        plain(name, "a name")
        require(name.strip(), f"an empty name in {found.split.classes}, {ids}")
        name.encode()
    plain(found.split.summary, "the summary")
    if number % 5 == 0 or number % 6 == 5:
        options = xrvlm.RunOptions(runs=place / "runs", features=xrvlm.FeatureSettings(views=0, cache=place / "cache"))
        run, _ = answer(lambda: xrvlm.adapt(bench.clip, found, "linear_probe", shots=1, options=options))
        if run is not None:
            require(all(0 <= value <= 1 for value in run.record.metrics.values()), f"metrics {run.record.metrics}")
            require(run.folder.parent == place / "runs", f"the run is in {run.folder}")
    return USED
