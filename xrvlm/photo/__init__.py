"""The photo tower: EfficientNet-Lite, which has seen ImageNet's photos, with a text side of our own. Works offline."""
