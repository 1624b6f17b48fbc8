"""The built-in demo: the drawn birds data set and a tiny CLIP pretrained on other drawn birds. Works offline."""

import xrvlm.backbones  # noqa: F401  before open_clip: it mends torchvision where its wheel does not fit torch
