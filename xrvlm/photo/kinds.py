"""Photos of kinds of things, to try methods on: `python -m xrvlm.photo.kinds --photos DIR --out kinds.csv`.

DIR holds one photo of each of ImageNet's 1,000 classes (`n01440764.jpg`). A kind is a noun of WordNet; its photos are
those of the classes below it, and a photo of two kinds is left out. Every other photo of a kind, by its synset, is for
training. The table is for `xrvlm adapt data=table data.root=DIR data.file=kinds.csv`. The photo tower was trained on
ImageNet: what counts here is the difference between two methods on its features, not how high both are.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

from xrvlm.backbones.openclip_load import imagenet_classes
from xrvlm.errors import UserError
from xrvlm.files import write_atomically
from xrvlm.photo.vocabulary import WORDNET, classes_below

KINDS = {
    "terrier": "n02092468", "hound": "n02087551", "working dog": "n02103406", "bird": "n01503061",
    "reptile": "n01661091", "insect": "n02159955", "primate": "n02469914", "motor vehicle": "n03791235",
    "craft": "n03125870", "furniture": "n03405725", "garment": "n03419014", "musical instrument": "n03800933",
    "structure": "n04341686", "food": "n00021265",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="one photo of each class of ImageNet: SYNSET.jpg")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder of WordNet 3.0's files")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    given = parser.parse_args(arguments)
    rows = table(given.photos, given.wordnet)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "class", "split"), *rows])

    write_atomically(given.out, write)
    for name, count in Counter((kind, split) for _, kind, split in rows).items():
        print(*name, count)


def table(photos: Path, wordnet: Path = WORDNET) -> list[tuple[str, str, str]]:
    """(file name, kind, `train` or `test`) of each photo of one kind.

    Raises:
        UserError: a photo is missing, or WordNet's nouns are not in the folder `wordnet`.
    """
    below, synsets = classes_below(wordnet), list(imagenet_classes())
    among = {kind: sorted(synsets[index] for index in below.get(synset, ())) for kind, synset in KINDS.items()}
    times = Counter(synset for some in among.values() for synset in some)
    rows = []
    for kind, some in among.items():
        own = [f"{synset}.jpg" for synset in some if times[synset] == 1]
        missing = [name for name in own if not (photos / name).is_file()]
        if missing:
            raise UserError(f"{photos} lacks {missing[0]}, a photo of the kind {kind}")
        rows += [(name, kind, ("train", "test")[number % 2]) for number, name in enumerate(own)]
    return rows


if __name__ == "__main__":
    main()
