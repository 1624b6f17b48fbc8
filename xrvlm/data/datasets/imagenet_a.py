"""ImageNet-A (Hendrycks et al., CVPR 2021, arXiv:1907.07174): photos that classifiers of the time got wrong.

7,500 test images of 200 of ImageNet's classes, none for training. `root` holds imagenet-a/ with a folder a synset. A
run on ImageNet is scored among these 200 classes with `among=data`.
"""

from xrvlm.data.datasets.synsets import variant

imagenet_a = variant("imagenet_a", "ImageNet-A", "https://github.com/hendrycks/natural-adv-examples",
                     images=7500, classes=200, folders=("imagenet-a",))
