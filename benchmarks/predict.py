"""Images/s of a classifier's `probabilities` beside the bare tower's `encode_image`, and from JPEG files.

    python benchmarks/predict.py [--device cuda] [--towers vit_b16,rn50] [--precisions fp32,bf16]

In memory the same batch goes through the tower alone and through models of 200 classes: what they add is lost speed.
From files `decoder` opens and transforms the same photos in as many worker processes, with nothing behind it.
"""

import tempfile
from functools import partial
from pathlib import Path

from common import beside_limits, image_options, parse, random_images, speeds, tower, write_photos

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.data.dataset import Item
from xrvlm.experiments.predict import images_of, labelled
from xrvlm.features.source import evaluation_batches
from xrvlm.files import FileSource
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods.xr_vlm.xr_vlm import XRVLM
from xrvlm.methods.xr_vlm.xr_vlm_plus import XRVLMPlus
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.text.class_text import class_text

CLASSES = tuple(f"bird {index}" for index in range(200))
METHODS = {"zero_shot": ZeroShot, "xr_vlm": partial(XRVLM, part_prompts="vectors"), "xr_vlm_plus": XRVLMPlus}


def classifier(clip: FrozenCLIP, name: str) -> Classifier:
    """Weights are not learned: they cost what learned ones cost."""
    classes = class_text(CLASSES)
    method = METHODS[name](clip, classes).to(clip.device)
    return Classifier(clip, method, ModelHeader.of(clip, METHODS[name], classes))


def main() -> None:
    parser = image_options(__doc__, towers="vit_b16,rn50", images=16)
    parser.add_argument("--only", choices=("memory", "files"))
    options = parse(parser, towers="tiny", precisions="fp32", images=2, workers=0, rounds=1)
    for name in options.towers.split(","):
        for precision in options.precisions.split(","):
            clip = tower(name, options.device, precision)
            models = {method: classifier(clip, method) for method in METHODS}
            if options.only != "files":
                in_memory(f"{name} {precision}", clip, models, options)
            if options.only != "memory":
                from_files(f"{name} {precision}", clip, models, options)


def in_memory(title, clip, models, options) -> None:
    batch = random_images(clip, options.images)
    calls = {"tower": lambda: clip.encode_image(batch)}
    calls |= {method: partial(model.probabilities, batch) for method, model in models.items()}
    found = speeds(calls, options.images, rounds=options.rounds, device=options.device)
    for method in models:
        tower, ours = found["tower"], found[method]
        print(f"{title} in memory, batch {options.images}: tower {tower}; {method} {ours}; ratio "
              f"{ours.rate / tower.rate:.3f} ({tower.work / ours.work:.3f} of CPU)", flush=True)


def from_files(title, clip, models, options) -> None:
    count = 4 * options.images
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        write_photos(photos, count)
        items = [Item(path.name, 0) for path in sorted(photos.iterdir())]
        batch = random_images(clip, count)
        calls = {
            "tower": lambda: [clip.encode_image(part) for part in batch.split(64)],
            "decoder": lambda: list(evaluation_batches(clip, FileSource(photos), items, workers=options.workers)),
            "predict": lambda: list(labelled(models["xr_vlm"], images_of(photos), options.workers, 5)),
        }
        found = speeds(calls, count, rounds=min(3, options.rounds), device=options.device)
    print(f"{title} from {count} files, xr_vlm, {options.workers} workers: "
          f"{beside_limits(found, 'predict')}", flush=True)


if __name__ == "__main__":
    main()
