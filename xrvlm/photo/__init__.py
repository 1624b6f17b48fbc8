"""The photo tower: EfficientNet-Lite, which has seen ImageNet's photos, with a text side of our own. Works offline."""

import xrvlm.backbones  # noqa: F401  before open_clip: it mends torchvision where its wheel does not fit torch
