"""Data sets: their loaders, and the split that a run samples from them."""
