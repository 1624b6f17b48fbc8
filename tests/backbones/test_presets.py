"""The presets of conf/backbone, built without weights: architectures whose positions are read as they should be."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from open_clip import create_model, list_models

from xrvlm.backbones import openclip_load
from xrvlm.backbones.openclip import image_encoder
from xrvlm.backbones.openclip_image import WithoutPositions

FOLDER = Path(__file__).parents[2] / "conf" / "backbone"
PRESETS = {path.stem: OmegaConf.load(path) for path in sorted(FOLDER.glob("*.yaml"))
           if "load_openclip" in path.read_text() and path.stem != "openclip"}
ON_THE_HUB = {"bioclip2"}                # its architecture stands in its repository


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - ON_THE_HUB))
def test_an_architecture_of_open_clip_with_weights_of_that_name(preset):
    config = PRESETS[preset]
    assert config.model in list_models()
    assert config.pretrained in openclip_load.open_clip.list_pretrained_tags_by_model(config.model)


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - ON_THE_HUB))
def test_positions_and_pooled_feature_are_found(preset):
    with torch.device("meta"):
        model = create_model(PRESETS[preset].model, device="meta", load_weights=False, pretrained_hf=False)
        model.requires_grad_(False).eval()
        encoder = image_encoder(model)
        size = model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        reading = encoder.read(torch.empty(2, 3, height, width))
    assert not isinstance(encoder, WithoutPositions)
    (batch, positions, _), features = reading.states.shape, reading.pooled.shape[1]
    assert (batch, reading.pooled.shape[0]) == (2, 2)
    assert positions >= 49
    assert encoder.project(reading.states).shape == (2, positions, features)
    assert reading.mid_tokens.shape == (2, positions, encoder.width)
    linear = encoder.projection()
    assert linear is None or linear[0].shape[1] == features


def test_none_is_left_out():
    assert PRESETS.keys() >= ON_THE_HUB | {"pe_core_b16", "siglip2_b16", "mobileclip2_s0", "rn50_openai"}
    assert all(isinstance(config.model, str) for config in PRESETS.values())
