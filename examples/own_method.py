"""A method of your own in one file: classes as the mean of their images, blended with their text.

From Python: python examples/own_method.py [FOLDER]. From the command line, by examples/conf/method/prototypes.yaml:

    PYTHONPATH=examples xrvlm adapt --config-dir examples/conf method=prototypes data=drawn_birds backbone=tiny
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import xrvlm


class Prototypes(xrvlm.Method):
    """Cosine with `weight` times the mean image of a class plus its text feature.

    Args:
        weight: of the images; 0 is zero-shot.
    """

    label, prompts = "prototypes", "names"
    recipe = xrvlm.Recipe("none", epochs=0)                  # a closed form: nothing is trained by steps
    prototypes: Tensor                                       # (c, d)

    def __init__(self, clip, classes, *, weight: float = 1.0):
        super().__init__(clip, classes)
        self.weight, self.logit_scale = weight, float(clip.logit_scale)
        self.register_buffer("prototypes", torch.zeros(len(classes.names), clip.embed_dim))

    def prepare(self, clip, support, val=None) -> None:
        text = clip.encode_text([sentences[0] for sentences in self.classes.prompts])      # (c, d)
        total = torch.zeros_like(text)
        for x, y in support.in_order():
            total.index_add_(0, y.to(text.device), x.pooled.to(text))                      # (b, d) by class
        self.prototypes.copy_(F.normalize(self.weight * F.normalize(total, dim=1) + text, dim=1))

    def class_features(self, clip) -> Tensor:                # (c, d)
        return self.prototypes

    def logits(self, x, class_features) -> Tensor:           # (b, c)
        return self.logit_scale * x.pooled @ class_features.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class; default: drawn birds")
    parser.add_argument("--runs", default="runs")
    arguments = parser.parse_args()
    clip = xrvlm.load_tiny_clip()
    dataset = xrvlm.image_folder(arguments.folder) if arguments.folder else xrvlm.load_world()
    for weight in (0.0, 1.0):
        run = xrvlm.adapt(clip, dataset, partial(Prototypes, weight=weight), shots=4,
                          options=xrvlm.RunOptions(runs=arguments.runs))
        print(f"weight {weight}: {run.accuracy:.1%}")


if __name__ == "__main__":
    main()
