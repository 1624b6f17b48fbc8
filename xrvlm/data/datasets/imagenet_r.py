"""ImageNet-R (Hendrycks et al., ICCV 2021, arXiv:2006.16241): art, cartoons, toys and other renditions.

30,000 test images of 200 of ImageNet's classes, none for training. `root` holds imagenet-r/ with a folder a synset. A
run on ImageNet is scored among these 200 classes with `among=data`.
"""

from xrvlm.data.datasets.synsets import variant

imagenet_r = variant("imagenet_r", "ImageNet-R", "https://github.com/hendrycks/imagenet-r",
                     images=30000, classes=200, folders=("imagenet-r",))
