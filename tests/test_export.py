"""An exported model says what torch says, whatever the method and the tower, and nothing is left where it does not."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from photos import photo_folder
from test_cli import FAST, told
from test_methods import bank, clip, classes, factory  # noqa: F401  (fixtures, and methods made small)
from towers import IMAGE_KINDS, images, tiny_resnet, tiny_vit

from xrvlm import export, export_onnx
from xrvlm.bank import FeatureBank
from xrvlm.classifier import Classifier, describe
from xrvlm.cli import main
from xrvlm.draws import seeded
from xrvlm.errors import UserError
from xrvlm.images import read_image
from xrvlm.views import evaluation_view


def classifier(clip, case: str = "xr_vlm") -> Classifier:    # noqa: F811
    """Prepared, not trained: weights and statistics are drawn, so that no part of the graph is an identity."""
    labels, needs = torch.arange(4).repeat(3), {"pooled", "tokens", "mid_tokens"}
    x = clip.encode_image(images(12, clip.transform.image_size), needs)
    shard = {name: value[:, None] for name, value in vars(x).items()}
    support = FeatureBank([shard], 12, tuple(map(str, range(12))), labels, views=0, seed=1)
    make = factory(case)
    with seeded(1, "initial weights"):
        method = make(clip, classes())
        method.prepare(clip, support)
        for name, value in method.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2.0)
            elif "running_mean" in name:
                value.normal_(0.0, 0.1)
    return Classifier(clip, method, describe(clip, make, classes()))


def run(path, batch) -> list[np.ndarray]:
    return InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": batch.numpy()})


def agrees(model: Classifier, path) -> None:
    for count in (1, 3, 5):
        batch = images(count, model.clip.transform.image_size, seed=count)
        expected = model.probabilities(batch)
        probabilities, logits = map(torch.from_numpy, run(path, batch))
        assert probabilities.shape == logits.shape == (count, 4)
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(logits.softmax(dim=1), probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["xr_vlm", "tip_adapter", "linear_probe pooled+mid"])
def test_methods(tmp_path, case):
    model = classifier(tiny_vit(), case)
    agrees(model, export_onnx(model, tmp_path / "model.onnx"))
