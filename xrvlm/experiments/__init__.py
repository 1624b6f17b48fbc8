"""Runs, their records, and comparisons of methods by cross-validation."""
