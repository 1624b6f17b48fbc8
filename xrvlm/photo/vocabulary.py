"""What the text side of the photo tower learns from: names and definitions of the nouns of WordNet that timm lists.

timm brings the names (lemmas) and definitions of 21,844 synsets, open_clip better names of ImageNet's 1,000 classes.
WordNet's tree says which of these classes a synset outside ImageNet stands nearest to. The tree is read at build time
alone, from the files of Debian's package wordnet-base.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

from xrvlm.backbones.openclip_load import imagenet_classes
from xrvlm.errors import UserError

WORDNET = Path("/usr/share/wordnet")     # where Debian's wordnet-base puts its files
IS_A = ("@", "@i")                       # WordNet's pointers to what a noun is a kind of, or an instance of


@dataclass(frozen=True)
class Entry:
    """One synset.

    Args:
        names: its names, ImageNet's curated one first.
        definition: WordNet's, of one sentence.
        classes: indices of ImageNet's classes that it stands for: its own one; or else all below its nearest
            ancestor, itself included, that has some below it.
    """

    synset: str
    names: tuple[str, ...]
    definition: str
    classes: tuple[int, ...]


def entries(wordnet: Path = WORDNET) -> list[Entry]:
    """ImageNet's 1,000 classes in their order, then all other synsets of timm's list that hang in the tree.

    Raises:
        UserError: WordNet's file of nouns is not in the folder `wordnet`.
    """
    curated, above = imagenet_classes(), _tree(wordnet / "data.noun")
    index = {synset: number for number, synset in enumerate(curated)}
    below = _classes_below(index, above)
    info, found = ImageNetInfo("imagenet-22k"), []
    for synset in (*curated, *sorted(set(info.label_names()) - curated.keys())):
        names = info.label_name_to_description(synset)                                     # "dog, domestic dog"
        definition = info.label_name_to_description(synset, detailed=True).removeprefix(f"{names}: ")
        classes = (index[synset],) if synset in index else _nearest(synset, above, below)
        if classes:
            first = (curated[synset],) if synset in curated else ()
            found.append(Entry(synset, (*first, *names.split(", ")), definition, classes))
    return found


def _tree(path: Path) -> dict[str, list[str]]:
    """{synset: the synsets directly above it} of all nouns."""
    if not path.is_file():
        raise UserError(f"there is no {path}; install Debian's wordnet-base, or pass the folder of WordNet 3.0's files")
    above = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):        # the licence, at the head of the file
            fields = line.partition(" | ")[0].split()
            pointers = fields[4 + 2 * int(fields[3], 16) + 1:]                             # of four fields each
            above[f"n{fields[0]}"] = [f"n{offset}" for kind, offset in zip(pointers[::4], pointers[1::4], strict=True)
                                      if kind in IS_A]
    return above


def _classes_below(index: dict[str, int], above: dict[str, list[str]]) -> dict[str, set[int]]:
    """{synset: the classes of ImageNet at or below it}"""
    below: dict[str, set[int]] = defaultdict(set)
    for synset, number in index.items():
        waiting = [synset]
        while waiting:
            current = waiting.pop()
            if number not in below[current]:
                below[current].add(number)
                waiting += above[current]
    return below


def _nearest(synset: str, above: dict[str, list[str]], below: dict[str, set[int]]) -> tuple[int, ...]:
    """The classes below the nearest of the synset and its ancestors that has some; of equally near ones, of all."""
    level = [synset] if synset in above else []
    while level:
        found = set().union(*(below.get(node, set()) for node in level))
        if found:
            return tuple(sorted(found))
        level = [parent for node in level for parent in above[node]]
    return ()

