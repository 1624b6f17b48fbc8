"""What the text side of the photo tower learns from: names and definitions of WordNet's nouns and adjectives.

timm brings the names (lemmas) and definitions of 21,844 nouns, open_clip better names of ImageNet's 1,000 classes.
WordNet brings the adjectives, and the tree that says which classes a noun outside ImageNet stands nearest to. Its files
are those of Debian's package wordnet-base; they are read at build time alone.

A tree says little of what a thing looks like: all flowers but two hang at one place. So a definition is also compared
with those of the classes ("bubbly: filled with bubbles"): the cosine of their TF-IDF vectors, of character n-grams.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from timm.data.imagenet_info import ImageNetInfo

from xrvlm.backbones.openclip_load import imagenet_classes
from xrvlm.errors import UserError

WORDNET = Path("/usr/share/wordnet")     # where Debian's wordnet-base puts its files
IS_A = ("@", "@i")                       # WordNet's pointers to what a noun is a kind of, or an instance of
ALIKE = 8                                # classes whose definitions are compared most closely
FAINT = 0.2                              # sum of squared cosines below which a definition is no full evidence


@dataclass(frozen=True)
class Entry:
    """One synset.

    Args:
        names: its names, ImageNet's curated one first.
        definition: WordNet's, of one sentence.
        classes: {index: share} of ImageNet's classes that it stands for: of its own one, 1. A noun outside ImageNet
            has half of its shares from the tree, all classes below its nearest ancestor (itself included) that has
            some; the other half, and those of an adjective, are of the classes whose definitions are like its own.
            What is missing to 1 says that it stands for none.
    """

    synset: str
    names: tuple[str, ...]
    definition: str
    classes: dict[int, float]


def entries(wordnet: Path = WORDNET) -> list[Entry]:
    """ImageNet's 1,000 classes in their order, all other synsets of timm's list that hang in the tree, adjectives.

    Raises:
        UserError: WordNet's files of nouns and adjectives are not in the folder `wordnet`.
    """
    nouns = _nouns(wordnet)
    found = [*nouns, *_adjectives(wordnet / "data.adj")]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 6), sublinear_tf=True, min_df=2)
    rows = vectors.fit_transform(f"{', '.join(entry.names)}. {entry.definition}" for entry in found)
    classes = len(imagenet_classes())
    for start in range(classes, len(found), 1000):
        cosines = (rows[start:start + 1000] @ rows[:classes].T).toarray()                  # (n, 1000)
        for index, row in enumerate(cosines, start):
            weight = 0.5 if index < len(nouns) else 1.0
            shares = {number: share * (1 - weight) for number, share in found[index].classes.items()}
            for number, share in _alike(row).items():
                shares[number] = shares.get(number, 0.0) + weight * share
            found[index] = replace(found[index], classes=shares)
    return [entry for entry in found if entry.classes]


def classes_below(wordnet: Path = WORDNET) -> dict[str, set[int]]:
    """{synset: the indices of ImageNet's classes at or below it in WordNet's tree of nouns}"""
    return _below(_tree(wordnet / "data.noun"))


def _below(above: dict[str, list[str]]) -> dict[str, set[int]]:
    """{synset: the indices of ImageNet's classes at or below it}, from the synsets directly above each."""
    below: dict[str, set[int]] = defaultdict(set)
    for number, start in enumerate(imagenet_classes()):
        waiting = [start]
        while waiting:
            current = waiting.pop()
            if number not in below[current]:
                below[current].add(number)
                waiting += above[current]
    return below


def _alike(cosines: np.ndarray) -> dict[int, float]:
    """{class: share} from the (1000,) cosines of a definition with those of the classes."""
    best = np.argsort(-cosines)[:ALIKE].tolist()
    total = max(float((cosines[best] ** 2).sum()), FAINT)
    return {number: float(cosines[number]) ** 2 / total for number in best if cosines[number] > 0}


def _nouns(wordnet: Path) -> list[Entry]:
    """ImageNet's classes in their order, then the other nouns, of equal shares of what the tree says."""
    curated, above = imagenet_classes(), _tree(wordnet / "data.noun")
    below = _below(above)
    index = {synset: number for number, synset in enumerate(curated)}
    info, found = ImageNetInfo("imagenet-22k"), []
    for synset in (*curated, *sorted(set(info.label_names()) - curated.keys())):
        names = info.label_name_to_description(synset)                                     # "dog, domestic dog"
        definition = info.label_name_to_description(synset, detailed=True).removeprefix(f"{names}: ")
        classes = (index[synset],) if synset in index else _nearest(synset, above, below)
        if classes:
            first = (curated[synset],) if synset in curated else ()
            shares = dict.fromkeys(classes, 1 / len(classes))
            found.append(Entry(synset, (*first, *names.split(", ")), definition, shares))
    return found


def _adjectives(path: Path) -> Iterator[Entry]:
    for offset, names, _, definition in _synsets(path):
        plain = tuple(name.partition("(")[0].replace("_", " ") for name in names)          # "afraid(p)"
        yield Entry(f"a{offset}", plain, definition, {})


def _tree(path: Path) -> dict[str, list[str]]:
    """{synset: the synsets directly above it} of all nouns."""
    return {f"n{offset}": [f"n{other}" for kind, other in zip(pointers[::4], pointers[1::4], strict=True)
                           if kind in IS_A]
            for offset, _, pointers, _ in _synsets(path)}


def _synsets(path: Path) -> Iterator[tuple[str, list[str], list[str], str]]:
    """Of each synset of a file of WordNet: its offset, names, pointers (four fields each), definition."""
    if not path.is_file():
        raise UserError(f"there is no {path}; install Debian's wordnet-base, or pass the folder of WordNet 3.0's files")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):        # the licence, at the head of the file
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            end = 4 + 2 * int(fields[3], 16)
            yield fields[0], fields[4:end:2], fields[end + 1:], gloss.partition('; "')[0].strip()


def _nearest(synset: str, above: dict[str, list[str]], below: dict[str, set[int]]) -> tuple[int, ...]:
    """The classes below the nearest of the synset and its ancestors that has some; of equally near ones, of all."""
    level = [synset] if synset in above else []
    while level:
        found = set().union(*(below.get(node, set()) for node in level))
        if found:
            return tuple(sorted(found))
        level = [parent for node in level for parent in above[node]]
    return ()

