"""From a cold start to the accuracy on a folder of photos, beside the plain way, in one run of the benchmark.

    python benchmarks/cold_start.py --photos DIR [--split split.csv] [--shots 16] [--turns 3] [--threads 2]

`xrvlm adapt` with `backbone=photo`: start, imports, encoding, training, accuracy, report of the run. The plain way is
what one would write by hand with the same tower and the same images: a loop over the photos in batches of 32, and
scikit-learn's logistic regression on unit-length features, C = 1. Both are commands of their own with an empty cache,
and take turns; figures are medians. DIR: a class a folder, `--split` a table in it with the columns path, class, split.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import class_folder, options, parse

PLAIN = """
import json, sys
import xrvlm.backbones                  # mends a torchvision that does not fit torch
import timm, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from xrvlm.demo.tiny_clip import load_tiny_clip
from xrvlm.photo import photo_tower
rows, tower = json.load(open(sys.argv[1])), sys.argv[2]
if tower == "photo":
    state = photo_tower.trunk_state("lite0")
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0, pretrained=state is None)
    if state is not None:
        model.load_state_dict(state)
    view = timm.data.create_transform(224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop_pct=0.875,
                                      interpolation="bicubic")
    model.eval()
else:
    model, view = load_tiny_clip(device="cpu"), timm.data.create_transform(64)
features = []
with torch.no_grad():
    for start in range(0, len(rows), 32):
        images = [view(Image.open(path).convert("RGB")) for path, _, _ in rows[start:start + 32]]
        encoded = model(torch.stack(images)) if tower == "photo" else model.encode_image(torch.stack(images)).pooled
        features.append(torch.nn.functional.normalize(encoded, dim=1))
x = torch.cat(features).numpy()
train = [index for index, row in enumerate(rows) if row[2] == "train"]
test = [index for index, row in enumerate(rows) if row[2] == "test"]
y = [row[1] for row in rows]
probe = LogisticRegression(max_iter=1000).fit(x[train], [y[index] for index in train])
print(probe.score(x[test], [y[index] for index in test]))
"""


def rows_of(photos: Path, split: str | None) -> list[tuple[str, str, str]]:
    """(path, class, split) of all photos; without a table every other one of a class is for training."""
    if split:
        with (photos / split).open(encoding="utf-8", newline="") as file:
            return [(str(photos / row["path"]), row["class"], row["split"]) for row in csv.DictReader(file)]
    return [(str(path), folder.name, ("train", "test")[index % 2]) for folder in sorted(photos.iterdir())
            if folder.is_dir() for index, path in enumerate(sorted(folder.iterdir()))]


def drawn(rows: list[tuple[str, str, str]], shots: int) -> list[tuple[str, str, str]]:
    """The first `shots` training images of each class, and all test images."""
    kept, seen = [], {}
    for row in rows:
        seen[row[1:]] = seen.get(row[1:], 0) + 1
        if row[2] == "test" or (row[2] == "train" and seen[row[1:]] <= shots):
            kept.append(row)
    return kept


def command(way: str, rows: list[tuple[str, str, str]], folder: Path, arguments) -> list[str]:
    tower = "tiny" if arguments.tiny else "photo"
    if way == "the plain way":
        listing = folder / "rows.json"
        listing.write_text(json.dumps(rows), encoding="utf-8")
        return [sys.executable, "-c", PLAIN, str(listing), tower]
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "class", "split"), *rows])
    root = os.path.commonpath([path for path, _, _ in rows])
    return [sys.executable, "-m", "xrvlm", "adapt", "data=table", f"data.root={root}", f"data.file={file.name}",
            f"backbone={tower}", f"method={way}", "shots=all", "device=cpu", "features.views=0",
            f"features.cache={folder / 'cache'}", f"runs={folder / 'runs'}"]


def timed(way: str, rows: list[tuple[str, str, str]], arguments) -> tuple[float, float]:
    """Seconds and accuracy of one command, with an empty cache."""
    with tempfile.TemporaryDirectory() as name:
        line, start = command(way, rows, Path(name), arguments), time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)})
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        if way == "the plain way":
            return seconds, float(done.stdout)
        (record,) = Path(name).glob("runs/*/record.json")
        return seconds, json.loads(record.read_text(encoding="utf-8"))["metrics"]["top1"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="left out: drawn photos, whose accuracy says nothing")
    parser.add_argument("--split", help="a table in DIR")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parse(parser, turns=1, shots=2)
    with tempfile.TemporaryDirectory() as folder:
        photos = arguments.photos or class_folder(Path(folder), *((3, 4) if arguments.tiny else (17, 32)))
        rows = drawn(rows_of(photos.resolve(), arguments.split), arguments.shots)
        ways = ("the plain way", "linear_probe", "xr_vlm_plus")[:2 if arguments.tiny else 3]
        turns = [{way: timed(way, rows, arguments) for way in ways} for _ in range(arguments.turns)]
    plain = median(turn["the plain way"][0] for turn in turns)
    print(f"{len(rows)} photos, {len({label for _, label, _ in rows})} classes, {arguments.threads} threads")
    for way in ways:
        seconds = median(turn[way][0] for turn in turns)
        print(f"{way}: {seconds:.1f} s, {seconds / plain:.2f} times the plain way; top-1 "
              f"{100 * turns[0][way][1]:.1f} %")


if __name__ == "__main__":
    main()
