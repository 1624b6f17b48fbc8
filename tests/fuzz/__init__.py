"""Hostile inputs, drawn from a seed, each with an oracle: `python tests/fuzz/fuzz.py`."""
