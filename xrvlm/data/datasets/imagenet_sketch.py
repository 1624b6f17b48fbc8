"""ImageNet-Sketch (Wang et al., NeurIPS 2019, arXiv:1905.13549): sketches of ImageNet's classes.

50,889 test images of 1,000 classes, none for training. `root` holds sketch/ (or images/, as in CoOp) with a folder a
synset.
"""

from xrvlm.data.datasets.synsets import variant

imagenet_sketch = variant("imagenet_sketch", "ImageNet-Sketch", "https://github.com/HaohanWang/ImageNet-Sketch",
                          images=50889, folders=("sketch", "images"))
