"""A module that a file may name and that nothing may import."""

from fuzz.trap import Mine, spring

spring("imported")
__all__ = ["Mine", "spring"]
