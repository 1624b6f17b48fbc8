"""Drawn birds: a fine-grained benchmark that code draws from a seed.

Eight worlds of 40 species: ten genera of four siblings. A genus has its own body colour and tail, the same in every
world; siblings share their large colours and differ in at least two of five small parts. Captions for pretraining
come from the same attributes; no species of any world is ever drawn for it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from xrvlm.data.dataset import Dataset
from xrvlm.data.folder import image_folder
from xrvlm.demo.drawing import draw
from xrvlm.errors import UserError
from xrvlm.files import packaged, read_json, user_path, write_json, write_text

VERSION = 1                              # of the benchmark: rises whenever an image or a name changes
WORLDS = 8
SIBLINGS = 4
COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "body": COLOURS, "head": COLOURS, "wing": COLOURS, "wing_pattern": ("plain", "barred", "spotted"),
    "crest": ("no", "short", "tall"), "beak": ("short", "long", "hooked", "flat"),
    "beak_colour": ("yellow", "red", "black", "grey", "orange"), "breast": COLOURS,
    "breast_pattern": ("plain", "striped", "spotted", "banded"), "tail": ("short", "long", "forked", "fan"),
    "legs": ("yellow", "red", "black", "orange"),
}
FINE = ("wing_pattern", "crest", "beak", "beak_colour", "breast_pattern")    # what tells siblings apart
GENERA = ("finch", "heron", "parrot", "owl", "warbler", "tern", "jay", "wren", "kite", "thrush")
SYLLABLES = "ba bri cor dal fen gor hal jor kel lor mar nel or pel quin ros sar tol ul var wes yar zen".split()
# how often a caption for pretraining mentions a part, and the templates it is put into
MENTIONS = {"body": 0.7, "head": 0.55, "wing": 0.6, "crest": 0.5, "beak": 0.55, "breast": 0.55, "tail": 0.5,
            "legs": 0.25}
OPENINGS = ("a photo of a {}", "a picture of a {}", "a {}", "a close-up of a {}")
PARTS = ("head", "beak", "crest", "wing", "breast", "tail")    # one description each


@dataclass(frozen=True)
class Species:
    name: str                            # "Sarkel's finch"
    genus: str
    attributes: Mapping[str, str]


@cache
def genera() -> dict[str, dict[str, str]]:
    """What a genus word means, in every world: {genus: {"body": colour, "tail": shape}}."""
    rng = np.random.default_rng([VERSION, 1])
    kinds = [(body, tail) for body in COLOURS for tail in ATTRIBUTES["tail"]]
    chosen = rng.choice(len(kinds), len(GENERA), replace=False)
    return {genus: dict(zip(("body", "tail"), kinds[index], strict=True))
            for genus, index in zip(GENERA, chosen, strict=True)}


@cache
def species(world: int) -> tuple[Species, ...]:
    """The 40 species of a world, the siblings of a genus together."""
    if world not in range(WORLDS):
        raise UserError(f"there is no world {world} of drawn birds; choose one from 0 to {WORLDS - 1}")
    rng = np.random.default_rng([VERSION, 2, world])
    names = iter(_first_names()[world * len(GENERA) * SIBLINGS:])
    return tuple(Species(f"{next(names)}'s {genus}", genus, attributes)
                 for genus in GENERA for attributes in _siblings(genus, rng))


def description(kind: Species) -> str:
    """All that can be said of a species, in one sentence that names it."""
    return f"a photo of a {kind.name} with {_joined(list(_phrases(kind.attributes).values()))}."


def part_descriptions(kind: Species) -> dict[str, str]:
    """{part: a sentence of that part}, each naming the species."""
    phrases = _phrases(kind.attributes)
    return {part: f"a photo of a {kind.name} with {phrases[part]}." for part in PARTS}


def every_part_description() -> dict[str, dict[str, str]]:
    """{species: {part: sentence}} of all worlds, as shipped: `python -m xrvlm.demo.drawn_birds` writes that file."""
    return {kind.name: part_descriptions(kind) for world in range(WORLDS) for kind in species(world)}


def write(folder: Path, world: int, train_images: int = 32, test_images: int = 38) -> Path:
    """Draw a world as an ordinary image folder, once: a folder that holds it already is returned as it is.

    `folder`/{train,test}/<species>/0000.png, class_names.txt, descriptions.json, parts.json. Every image has a
    generator of its own, so fewer images are the first of more. Written beside `folder`, then moved there whole.
    """
    made_of = {"version": VERSION, "world": world, "train_images": train_images, "test_images": test_images}
    kinds = species(world)
    if folder.exists() and any(folder.iterdir()):
        fix = "remove that folder, or choose another with data.root=DIR"
        found = read_json(folder / "world.json", fix)
        if found != made_of:
            raise UserError(f"{folder} holds {found}, not {made_of}; {fix}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for part, count in (("train", train_images), ("test", test_images)):
            for kind in range(len(kinds)):
                _write_species(temporary, world, part, kind, count)
        write_text(temporary / "class_names.txt", "".join(f"{name}\n" for name in sorted(kind.name for kind in kinds)))
        write_json(temporary / "descriptions.json", {kind.name: [description(kind)] for kind in kinds})
        write_json(temporary / "parts.json", {kind.name: part_descriptions(kind) for kind in kinds})
        write_json(temporary / "world.json", made_of)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        if (folder / "world.json").exists():     # another process was faster
            return folder
        raise UserError(f"cannot write {folder}: {error}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pretraining_item(seed: int, index: int, captions: int = 3) -> tuple[np.ndarray, list[str]]:
    """An image (64, 64, 3) of a bird that belongs to no world, and captions of it.

    Two birds in five are of a genus, and their captions say the genus word instead of "bird". Species names never
    occur.
    """
    rng = np.random.default_rng([VERSION, 4, seed, index])
    while True:
        attributes, noun = _any_bird(rng), "bird"
        if rng.random() < 0.4:
            noun = GENERA[rng.integers(len(GENERA))]
            attributes |= genera()[noun]
        if tuple(attributes.values()) not in _kept_out():
            break
    image = draw(attributes, rng)
    return image, [_caption(attributes, noun, rng) for _ in range(captions)]


def image_of(world: int, part: str, kind: int, index: int) -> np.ndarray:
    """The image `index` (64, 64, 3) of a species in the "train" or "test" part."""
    rng = np.random.default_rng([VERSION, 3, world, ("train", "test").index(part), kind, index])
    return draw(species(world)[kind].attributes, rng)


def _write_species(folder: Path, world: int, part: str, kind: int, count: int) -> None:
    place = folder / part / species(world)[kind].name
    place.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(image_of(world, part, kind, index)).save(place / f"{index:04d}.png")


def _siblings(genus: str, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    base = _any_bird(rng) | genera()[genus]
    found: list[dict[str, str]] = []
    while len(found) < SIBLINGS:
        candidate = dict(base)
        for part in rng.choice(len(FINE), 4, replace=False):
            candidate[FINE[part]] = ATTRIBUTES[FINE[part]][rng.integers(len(ATTRIBUTES[FINE[part]]))]
        if all(sum(candidate[part] != other[part] for part in FINE) >= 2 for other in found):
            found.append(candidate)
            yield candidate


def _any_bird(rng: np.random.Generator) -> dict[str, str]:
    return {part: values[rng.integers(len(values))] for part, values in ATTRIBUTES.items()}


@cache
def _first_names() -> list[str]:
    pairs = [first.capitalize() + second for first in SYLLABLES for second in SYLLABLES]
    return [pairs[index] for index in np.random.default_rng([VERSION, 5]).permutation(len(pairs))]


@cache
def _kept_out() -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(kind.attributes[part] for part in ATTRIBUTES)
                     for world in range(WORLDS) for kind in species(world))


def _phrases(attributes: Mapping[str, str], rng: np.random.Generator | None = None) -> dict[str, str]:
    """What is said of each part; with `rng` in varying words."""
    def either(*ways: str) -> str:
        return ways[0] if rng is None else ways[rng.integers(len(ways))]

    wing = "" if attributes["wing_pattern"] == "plain" else f"{attributes['wing_pattern']} "
    breast = either("", "plain ") if attributes["breast_pattern"] == "plain" else f"{attributes['breast_pattern']} "
    crest = either("no crest", "a smooth crown") if attributes["crest"] == "no" else f"a {attributes['crest']} crest"
    return {
        "body": either(f"a {attributes['body']} body", f"{attributes['body']} plumage"),
        "head": f"a {attributes['head']} head", "wing": f"{wing}{attributes['wing']} wings", "crest": crest,
        "beak": f"a {attributes['beak']} {attributes['beak_colour']} {either('beak', 'bill')}",
        "breast": f"a {breast}{attributes['breast']} breast", "tail": f"a {attributes['tail']} tail",
        "legs": f"{attributes['legs']} legs",
    }


def _caption(attributes: Mapping[str, str], noun: str, rng: np.random.Generator) -> str:
    phrases = _phrases(attributes, rng)
    mentioned = [part for part in phrases if rng.random() < MENTIONS[part]]
    mentioned = [mentioned[index] for index in rng.permutation(len(mentioned))][:6]
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    if "body" in mentioned and rng.random() < 0.4:
        mentioned.remove("body")
        noun = f"{attributes['body']} {noun}"
    said = opening.format(noun)
    if mentioned:
        said += (" with ", " that has ", " showing ")[rng.integers(3)] + _joined([phrases[part] for part in mentioned])
    return f"{said}."


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


if __name__ == "__main__":
    write_json(packaged("prompts") / "parts" / "drawn_birds.json", every_part_description())


def load_world(*, world: int = 0, root: str | None = None) -> Dataset:
    """World 0 to 7 of the drawn birds: 40 species, 32 training and 38 test images each, drawn on first use.

    `descriptions.json` and `parts.json` stand beside the images. `root=None` draws into the cache.
    """
    cache = Path(os.environ.get("XRVLM_CACHE") or "~/.cache/xrvlm") / f"drawn_birds-{VERSION}"
    folder = Path(root) if root is not None else cache / f"world{world}"
    return replace(image_folder(write(user_path(folder), world), name="drawn_birds"), world=world)
