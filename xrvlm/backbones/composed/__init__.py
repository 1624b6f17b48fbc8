"""Towers that are made of another one: with the features of a second tower, or with a second, closer look."""
