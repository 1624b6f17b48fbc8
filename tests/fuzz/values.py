"""Hostile values, and changes of bytes, texts and trees that are drawn from a generator."""

import copy
import json
from random import Random
from typing import Any

NASTY_TEXTS = (
    "", " ", "\x00", "\x1b[31mred\x1b[0m", "a\rb", "line\nbreak", "\u202egnp.x", "\ud800", "NaN", "null", "a" * 300,
    "../../escaped", "../../../../escaped", "/etc/hostname", "..\\..\\escaped", "C:\\escaped", "~/escaped", "{", "{}",
    "${oc.env:HOME}", "${seed}", "=cmd|' /C calc'!A0", "os.system", "fuzz.bait.Mine", "fuzz.bait.spring",
    "xrvlm.methods.base.Method", "__import__('os').system('true')", "caf\u00e9", "cafe\u0301", "\u2028", "%s%n", "'",
    '"', "<script>", "a/../b", ".", "..")
NASTY_NUMBERS = (0, -1, 1, 3, 2**31, 2**63, -2**63, 10**30, 0.5, -0.0, 1e308, -1e308, 1e-308, float("nan"),
                 float("inf"), float("-inf"))
TARGETS = (
    {"_target_": "os.system", "command": "touch escaped"}, {"_target_": "fuzz.bait.spring", "a": 1},
    {"_target_": "fuzz.trap.spring"}, {"_target_": "builtins.open", "file": "escaped", "mode": "w"},
    {"_target_": "pathlib.Path.touch", "self": "escaped"}, {"_target_": "torch.load", "f": "x.pt"},
    {"name": "os.system", "options": {"command": "touch escaped"}},
    {"target": "fuzz.bait.Mine", "arguments": {}}, {"name": "fuzz.bait.Mine", "options": {}},
    {"_target_": "fuzz.trap.spring", "_partial_": True}, {"_target_": "fuzz.bait.Mine", "_args_": [1]})


def hostile(draw: Random) -> Any:
    """Any JSON value that a file may hold in place of another."""
    kind = draw.randrange(7)
    if kind == 0:
        return draw.choice(NASTY_TEXTS)
    if kind == 1:
        return draw.choice(NASTY_NUMBERS)
    if kind == 2:
        return copy.deepcopy(draw.choice(TARGETS))
    if kind == 3:
        return draw.choice((None, True, False, [], {}, [None], [[]], {"": ""}))
    if kind == 4:
        return [hostile(draw) for _ in range(draw.randrange(4))]
    if kind == 5:
        return {str(draw.choice(NASTY_TEXTS)): hostile(draw) for _ in range(draw.randrange(3))}
    return nested(draw.choice((3, 60)))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a tree, that of the tree itself too."""
    if isinstance(tree, dict | list):
        keys = tree if isinstance(tree, dict) else range(len(tree))
        return [path, *(found for key in keys for found in places(tree[key], (*path, key)))]
    return [path]


def broken_tree(tree: Any, draw: Random, times: int = 1) -> Any:
    """A copy with values that are replaced, gone, doubled, of other names or of other types."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        path = draw.choice(places(tree)[1:] or places(tree))
        if not path or draw.random() < 0.02:
            return hostile(draw)
        above = tree
        for key in path[:-1]:
            above = above[key]
        _change(above, path[-1], draw)
    return tree


def _change(above: Any, key: Any, draw: Random) -> None:
    how, value = draw.randrange(8), above[key]
    if how == 0:
        del above[key]
    elif how == 1 and isinstance(above, dict):
        above[draw.choice(("more", "_target_", "name", *NASTY_TEXTS))] = hostile(draw)
    elif how == 1:
        above.insert(key, copy.deepcopy(value))
    elif how == 2:
        others = [above[other] for other in (above if isinstance(above, dict) else range(len(above)))]
        above[key] = copy.deepcopy(draw.choice(others))
    elif how == 3:
        above[key] = str(value) if not isinstance(value, str) else [value]
    elif how == 4 and isinstance(value, int | float):
        above[key] = draw.choice(NASTY_NUMBERS)
    elif how == 4 and isinstance(value, str):
        above[key] = value + draw.choice(NASTY_TEXTS)
    else:
        above[key] = hostile(draw)


def broken_json(tree: Any, draw: Random) -> str:
    """JSON, or nearly, of the tree with some values changed."""
    if draw.random() < 0.8:
        return json.dumps(broken_tree(tree, draw, draw.choice((1, 1, 2, 5))), ensure_ascii=draw.random() < 0.5)
    text = json.dumps(tree)
    return broken_text(text, draw)


def broken_text(text: str, draw: Random) -> str:
    at, how = draw.randrange(len(text) + 1), draw.randrange(7)
    if how == 0:
        return text[:at]
    if how == 1:
        return "[" * 50_000 + text
    if how == 2:
        return "\ufeff" + text
    if how == 3:
        return text[:at] + draw.choice(NASTY_TEXTS) + text[at:]
    if how == 4:
        return text[:at] + chr(draw.randrange(1, 0x2100)) + text[at + 1:]
    if how == 5:
        return text + text
    return text.replace(draw.choice(text.split(" ")), draw.choice(NASTY_TEXTS))


def broken_bytes(data: bytes, draw: Random) -> bytes:
    """Flipped, cut, moved, filled or foreign bytes."""
    at = draw.randrange(len(data)) if data else 0
    more = min(len(data), at + draw.choice((1, 4, 16, 256)))
    how = draw.randrange(8)
    if how <= 1:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 30))):
            if changed:
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if how == 2:
        return data[:at]
    if how == 3:
        return data[:at] + draw.randbytes(more - at) + data[more:]
    if how == 4:
        return data[:at] + data[more:]
    if how == 5:
        return data[:at] + bytes(more - at) + data[more:]
    if how == 6:
        return data[:at] + data[at:more] * 2 + data[more:]
    return data + draw.randbytes(draw.choice((1, 100)))


def as_file_text(text: str) -> bytes:
    """UTF-8, in which a lone surrogate is its own three bytes, which are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")
