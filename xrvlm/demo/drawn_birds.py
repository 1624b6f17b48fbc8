"""Drawn birds: a fine-grained benchmark that is drawn by code from a seed.

There are eight worlds of 40 species: ten genera of four siblings. A genus has a body colour and a tail shape, the same
in every world. Siblings share the colours of large parts and differ in at least two of five small parts. Captions for
pretraining use the same attributes; pretraining images show no species of any world.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.folder import image_folder
from xrvlm.demo.drawing import draw
from xrvlm.errors import UserError, option
from xrvlm.files import cache_folder, packaged, read_json, user_path, write_json, write_text

VERSION = 1                              # of the benchmark: increased if an image or a name changes
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
FINE = ("wing_pattern", "crest", "beak", "beak_colour", "breast_pattern")    # siblings differ in these
GENERA = ("finch", "heron", "parrot", "owl", "warbler", "tern", "jay", "wren", "kite", "thrush")
SYLLABLES = "ba bri cor dal fen gor hal jor kel lor mar nel or pel quin ros sar tol ul var wes yar zen".split()
# probability that a pretraining caption mentions a part, and the templates of captions
MENTIONS = {"body": 0.7, "head": 0.55, "wing": 0.6, "crest": 0.5, "beak": 0.55, "breast": 0.55, "tail": 0.5,
            "legs": 0.25}
OPENINGS = ("a photo of a {}", "a picture of a {}", "a {}", "a close-up of a {}")
PARTS = ("head", "beak", "crest", "wing", "breast", "tail")    # of `part_descriptions`


@dataclass(frozen=True)
class Species:
    name: str                            # "Sarkel's finch"
    genus: str
    attributes: Mapping[str, str]


@cache
def genera() -> dict[str, dict[str, str]]:
    """{genus: {"body": colour, "tail": shape}}, the same in every world."""
    rng = np.random.default_rng([VERSION, 1])
    kinds = [(body, tail) for body in COLOURS for tail in ATTRIBUTES["tail"]]
    chosen = rng.choice(len(kinds), len(GENERA), replace=False)
    return {genus: dict(zip(("body", "tail"), kinds[index], strict=True))
            for genus, index in zip(GENERA, chosen, strict=True)}


@cache
def species(world: int) -> tuple[Species, ...]:
    """The 40 species of a world, siblings next to each other."""
    if world not in range(WORLDS):
        raise UserError(f"there is no world {world} of drawn birds; choose one from 0 to {WORLDS - 1}")
    rng = np.random.default_rng([VERSION, 2, world])
    names = iter(_first_names()[world * len(GENERA) * SIBLINGS:])
    return tuple(Species(f"{next(names)}'s {genus}", genus, attributes)
                 for genus in GENERA for attributes in _siblings(genus, rng))


def description(kind: Species) -> str:
    """One sentence with the name and all attributes of a species."""
    return f"a photo of a {kind.name} with {_joined(list(_phrases(kind.attributes).values()))}."


def part_descriptions(kind: Species) -> dict[str, str]:
    """{part: sentence about it}, each with the name of the species."""
    phrases = _phrases(kind.attributes)
    return {part: f"a photo of a {kind.name} with {phrases[part]}." for part in PARTS}


def every_part_description() -> dict[str, dict[str, str]]:
    """{species: {part: sentence}} of all worlds; `python -m xrvlm.demo.drawn_birds` writes them to the shipped file."""
    return {kind.name: part_descriptions(kind) for world in range(WORLDS) for kind in species(world)}


def write(folder: Path, world: int, train_images: int = 32, test_images: int = 38) -> Path:
    """Draw a world into an image folder, unless `folder` already holds it.

    Writes `folder`/{train,test}/<species>/0000.png, class_names.txt, descriptions.json and parts.json. Each image has
    its own random generator, so it does not depend on the number of images. Drawn into a temporary folder that is
    then renamed.
    """
    made_of = {"version": VERSION, "world": world, "train_images": train_images, "test_images": test_images}
    kinds = species(world)
    if folder.exists() and any(folder.iterdir()):
        fix = f"choose another folder with {option('data.root', 'DIR')}"
        found = read_json(folder / "world.json", fix)
        if found != made_of:
            raise UserError(f"{folder} holds {found}, not {made_of}; {fix}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for subset, count in (("train", train_images), ("test", test_images)):
            for kind in range(len(kinds)):
                _write_species(temporary, world, subset, kind, count)
        write_text(temporary / "class_names.txt", "".join(f"{name}\n" for name in sorted(kind.name for kind in kinds)))
        write_json(temporary / "descriptions.json", {kind.name: [description(kind)] for kind in kinds})
        write_json(temporary / "parts.json", {kind.name: part_descriptions(kind) for kind in kinds})
        write_json(temporary / "world.json", made_of)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        if (folder / "world.json").exists():     # another process has drawn it
            return folder
        raise UserError(f"cannot write {folder}: {error}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pretraining_item(seed: int, index: int, captions: int = 3) -> tuple[np.ndarray, list[str]]:
    """An image (64, 64, 3) of a bird that is no species of any world, and captions of it.

    Two birds in five belong to a genus, and their captions have its name instead of "bird". Species names do not
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


def image_of(world: int, subset: str, kind: int, index: int) -> np.ndarray:
    """The image `index` (64, 64, 3) of a species in the "train" or "test" subset."""
    rng = np.random.default_rng([VERSION, 3, world, ("train", "test").index(subset), kind, index])
    return draw(species(world)[kind].attributes, rng)


def _write_species(folder: Path, world: int, subset: str, kind: int, count: int) -> None:
    images = folder / subset / species(world)[kind].name
    images.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(image_of(world, subset, kind, index)).save(images / f"{index:04d}.png")


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
    """A phrase about each part; `rng` varies the words."""
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
    caption = opening.format(noun)
    if mentioned:
        joint = (" with ", " that has ", " showing ")[rng.integers(3)]
        caption += joint + _joined([phrases[part] for part in mentioned])
    return f"{caption}."


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


@registered("drawn_birds")
def load_world(*, world: int = 0, root: str | Path | None = None, train_images: int = 32,
               test_images: int = 38) -> Dataset:
    """World 0 to 7 of the drawn birds: 40 species with so many training and test images each, drawn on first use.

    The folder also has `descriptions.json` and `parts.json`. `root=None`: a folder in the cache.
    """
    name = f"world{world}" if (train_images, test_images) == (32, 38) else f"world{world}-{train_images}-{test_images}"
    folder = user_path(root) if root is not None else cache_folder() / f"drawn_birds-{VERSION}" / name
    return replace(image_folder(write(folder, world, train_images, test_images), name="drawn_birds"), world=world)


if __name__ == "__main__":
    write_json(packaged("prompts") / "parts" / "drawn_birds.json", every_part_description())
