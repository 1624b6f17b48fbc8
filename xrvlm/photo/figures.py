"""What the photo tower's words are worth on photos: `python -m xrvlm.photo.figures --photos DIR [NAME=DIR ...]`.

DIR holds one photo of each of ImageNet's 1,000 classes, named by its synset (`n01440764.jpg`). The trunk was trained on
ImageNet, so accuracies there tell whether photos and words fit together and are no benchmark.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from xrvlm.backbones.openclip_load import imagenet_classes
from xrvlm.errors import UserError
from xrvlm.evaluation.metrics import expected_calibration_error
from xrvlm.photo import photo_tower
from xrvlm.photo.photo_tower import TrunkName
from xrvlm.views import evaluation_view, read_image

DOGS = (*range(151, 269),)               # of ImageNet's classes
BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))
TEMPLATE = "a photo of a {}."
WIDTHS = (256, 384, 512)                 # of a text tower; the shipped one has 256


def main(arguments: list[str] | None = None) -> None:
    from xrvlm.photo.pretrain import joint_space  # which imports this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--trunk", choices=get_args(TrunkName), default="lite0")
    parser.add_argument("--photos", type=Path, required=True, help="one photo of each class of ImageNet: SYNSET.jpg")
    parser.add_argument("sets", nargs="*", metavar="NAME=DIR", help="folders with a split.csv: zero-shot on their test")
    given = parser.parse_args(arguments)
    model = photo_tower.load(given.trunk)
    photos, names = features(model, given.trunk, given.photos)
    found = on_classes(cosines(photos, names), model.logit_scale.exp().item())
    found["within_reach"] = within_reach(photos, joint_space(given.trunk)[2])
    for item in given.sets:
        name, _, folder = item.partition("=")
        found[name] = zero_shot(given.trunk, Path(folder))
    print(json.dumps(found, indent=1))


def on_classes(cosine: Tensor, logit_scale: float) -> dict[str, Any]:
    """Accuracies in % from names, and the calibration error in % on the half that did not choose the logit scale."""
    logits, labels = logit_scale * cosine, torch.arange(1000)
    best = logits.topk(5, dim=1).indices
    odd = labels[1::2]

    def among(classes: tuple[int, ...]) -> float:
        rows = torch.tensor(classes)
        return _percent(logits[rows][:, rows].argmax(dim=1) == torch.arange(len(rows)))

    return {
        "top1": _percent(best[:, 0] == labels), "top5": _percent((best == labels[:, None]).any(dim=1)),
        "logit_scale": round(logit_scale, 1),
        "calibration_error": round(100 * expected_calibration_error(logits[odd].softmax(dim=1), odd), 1),
        "118_dogs": among(DOGS), "59_birds": among(BIRDS),
    }


def within_reach(photos: Tensor, directions: Tensor) -> dict[int, float]:
    """{width: top-1 in %} if the name of each class stood as near to its direction (c, d) as a text tower of that width
    gets: by its last linear map it reaches as many dimensions as it is wide.
    """
    found, best = {}, torch.linalg.svd(directions, full_matrices=False).Vh                 # (d, d)
    for width in WIDTHS:
        near = directions @ best[:width].T @ best[:width]
        found[width] = _percent(cosines(photos, near).argmax(dim=1) == torch.arange(len(photos)))
    return found


def best_logit_scale(cosine: Tensor) -> Tensor:
    """() of highest likelihood on the photos of even index."""
    even, scales = torch.arange(0, 1000, 2), torch.logspace(0, 2.5, 251)
    losses = torch.stack([F.cross_entropy(scale * cosine[even], even) for scale in scales])
    return scales[losses.argmin()]


def zero_shot(trunk: TrunkName, folder: Path) -> dict[str, float]:
    """Top-1 accuracy and calibration error in % from names on the test photos of `folder`, with its split.csv."""
    import xrvlm

    clip = photo_tower.load_photo(trunk)
    photos = xrvlm.table(folder)
    with TemporaryDirectory() as runs:
        metrics = xrvlm.zero_shot(clip, photos, options=xrvlm.RunOptions(runs=runs)).record.metrics
    return {"top1": round(100 * metrics["top1"], 1), "calibration_error": round(100 * metrics["ece"], 1)}


def cosines(photos: Tensor, words: Tensor) -> Tensor:
    """(1000, 1000) of photo i and the name of class j."""
    return F.normalize(photos, dim=1) @ F.normalize(words, dim=1).T


@torch.no_grad()
def features(model: Any, trunk: TrunkName, photos: Path) -> tuple[Tensor, Tensor]:
    """Two (1000, d), not normalised: of the photos, and of the names of their classes."""
    classes, transform = imagenet_classes(), photo_tower.transform(trunk)
    missing = [synset for synset in classes if not (photos / f"{synset}.jpg").is_file()]
    if missing:
        raise UserError(f"{photos} lacks a photo of {len(missing)} of 1000 classes, such as {missing[0]}.jpg")
    images = (evaluation_view(read_image(photos / f"{synset}.jpg"), transform) for synset in classes)
    rows = [model.encode_image(image[None]) for image in images]
    tokens = SimpleTokenizer()([TEMPLATE.format(name) for name in classes.values()])
    return torch.cat(rows), torch.cat([model.encode_text(some) for some in tokens.split(100)])


def _percent(right: Tensor) -> float:
    return round(100 * right.float().mean().item(), 1)


if __name__ == "__main__":
    main()
