"""Data sets: their readers, the split that a run draws from them."""
