"""The 1,000 classes of ImageNet: synsets from timm, names from open_clip (MIT)."""

from collections import Counter

from open_clip import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo


def imagenet_classes() -> dict[str, str]:
    """{synset: name} in the order of the synsets, such as {"n01440764": "tench"}.

    The names are OpenAI's for CLIP, which give several points more accuracy than WordNet's. Two of them name two
    classes each (missile, sunglasses); those classes get the first WordNet name of their synset.
    """
    info = ImageNetInfo()
    synsets = info.label_names()
    seen = Counter(IMAGENET_CLASSNAMES)
    return {synset: name if seen[name] == 1 else info.label_name_to_description(synset).partition(",")[0]
            for synset, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
