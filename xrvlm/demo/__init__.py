"""The built-in demo: the drawn birds data set and a tiny CLIP pretrained on other drawn birds. Works offline."""
