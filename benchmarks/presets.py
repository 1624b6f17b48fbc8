"""Images/s of the image tower of each preset, `backbone=NAME`, with random weights of its architecture.

    python benchmarks/presets.py [--presets photo,vit_b16_openai ...] [--images 32] [--rounds 3] [--device cuda]

The ratio is to `vit_b16_openai`, where that is measured. An architecture that stands in a repository of the hub
(`bioclip2`, a ViT-L/14) cannot be built from open_clip alone and is left out.
"""

from pathlib import Path

import torch
from common import Speed, options, parse, random_images, take_turns, tower
from omegaconf import DictConfig, OmegaConf
from open_clip import create_model, list_models
from open_clip.tokenizer import SimpleTokenizer

from xrvlm.backbones.base import FrozenCLIP
from xrvlm.backbones.openclip import wrap_openclip

CONF = Path(__file__).parents[1] / "conf" / "backbone"
BASELINE = "vit_b16_openai"


def presets() -> list[str]:
    """Those whose architecture open_clip knows, and the two that xrvlm brings."""
    return ["tiny", "photo", *(path.stem for path in sorted(CONF.glob("*.yaml")) if _model(path.stem))]


def _model(preset: str) -> str:
    """open_clip's name of the architecture; empty where the preset names none."""
    config = OmegaConf.load(CONF / f"{preset}.yaml")
    assert isinstance(config, DictConfig)
    model = "" if OmegaConf.is_missing(config, "model") else config.get("model", "")
    return model if model in list_models() else ""


def build(preset: str, device: str) -> FrozenCLIP:
    """The preset's tower. Its tokenizer, which may stand in the hub, is not needed for images."""
    if preset in ("tiny", "photo"):
        return tower(preset, device, "auto")
    torch.manual_seed(0)
    return wrap_openclip(create_model(_model(preset), pretrained_hf=False), SimpleTokenizer(), name=preset,
                         device=device, loader={"name": "benchmark", "options": {}})


def measure(preset: str, arguments) -> Speed:
    clip = build(preset, arguments.device)
    batches = random_images(clip, arguments.images).split(32)
    calls = {preset: lambda: [clip.encode_image(batch) for batch in batches]}
    turn = take_turns(calls, arguments.rounds, clip.device, warm_up=not arguments.tiny)[preset]
    pixels, width = clip.transform.image_size, clip.embed_dim
    found = Speed.of(turn, arguments.images)
    print(f"{preset}: {pixels} pixels, feature of {width}, {found}", flush=True)
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--presets", default=",".join(presets()))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parse(parser, presets="tiny,mobileclip2_s0", images=2, rounds=1)
    found = {preset: measure(preset, arguments) for preset in arguments.presets.split(",")}
    for preset, speed in found.items():
        if BASELINE in found:
            print(f"{preset}: {speed.rate / found[BASELINE].rate:.2f} times {BASELINE}")


if __name__ == "__main__":
    main()
