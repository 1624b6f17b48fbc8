"""Images/s of a feature bank from JPEG files, beside the two that it is made of: the tower alone and the decoder alone.

    python benchmarks/extract.py [--device cuda] [--towers vit_b16,rn50,photo,tiny] [--views 0] [--workers 16]

`extract` decodes, transforms, encodes, converts and writes.
"""

import tempfile
from itertools import count
from pathlib import Path

from common import beside_limits, image_options, parse, random_images, speeds, tower, write_photos

from xrvlm.data.dataset import Item
from xrvlm.features.source import EXTRACTION_BATCH, FeatureSettings, evaluation_batches, extract
from xrvlm.files import FileSource

NEEDS = ("pooled", "tokens", "mid_tokens")


def main() -> None:
    options = parse(image_options(__doc__, towers="vit_b16,rn50,tiny", images=128), towers="tiny", precisions="fp32",
                    images=4, workers=0, rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_photos(photos, options.images)
        for name in options.towers.split(","):
            for precision in options.precisions.split(","):
                measure(f"{name} {precision}", tower(name, options.device, precision), photos, options)


def measure(title, clip, photos, options) -> None:
    items = [Item(path.name, 0) for path in sorted(photos.iterdir())]
    source, batch, fresh = FileSource(photos), random_images(clip, EXTRACTION_BATCH), count()
    batches = -(-len(items) // EXTRACTION_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        def bank():
            settings = FeatureSettings(cache=f"{folder}/{next(fresh)}")
            return extract(clip, source, items, settings, needs=NEEDS, workers=options.workers)

        calls = {
            "tower": lambda: [clip.encode_image(batch, NEEDS) for _ in range(batches)],
            "decoder": lambda: list(evaluation_batches(clip, source, items, workers=options.workers)),
            "extract": bank,
        }
        found = speeds(calls, len(items), rounds=min(3, options.rounds), device=options.device)
    print(f"{title}, {len(items)} files, {options.workers} workers: {beside_limits(found, 'extract')}", flush=True)


if __name__ == "__main__":
    main()
