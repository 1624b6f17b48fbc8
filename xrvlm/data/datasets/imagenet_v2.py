"""ImageNet-V2 (Recht et al., ICML 2019, arXiv:1902.10811): a new test set for ImageNet, 10 photos a class.

The 10,000 matched-frequency photos of 1,000 classes, none for training. `root` holds
imagenetv2-matched-frequency-format-val/, with folders 0 to 999 in ImageNet's order.
"""

from xrvlm.data.datasets.synsets import variant

imagenet_v2 = variant("imagenet_v2", "ImageNet-V2",
                      "https://github.com/modestyachts/ImageNetV2 (imagenetv2-matched-frequency.tar.gz)",
                      images=10000, numbered=True,
                      folders=("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"))
