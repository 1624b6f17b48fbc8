"""The 1,000 classes of ImageNet as the libraries list them: synsets from timm, names from open_clip (MIT)."""

from collections import Counter

from open_clip import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo


def imagenet_classes() -> dict[str, str]:
    """{synset: name}, in the order of the synsets: n01440764 is a tench.

    The names are those that OpenAI chose for CLIP, worth several points over WordNet's. Two of them stand twice there
    (missile, sunglasses): of these the classes have the first name of their synset in WordNet.
    """
    info = ImageNetInfo()
    synsets = info.label_names()
    seen = Counter(IMAGENET_CLASSNAMES)
    return {synset: name if seen[name] == 1 else info.label_name_to_description(synset).partition(",")[0]
            for synset, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
