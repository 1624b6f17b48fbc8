"""On a CPU the batch norms of a tower that xrvlm loaded itself are folded into its convolutions."""

import pytest
import torch
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from towers import IMAGE_KINDS, images

from xrvlm.backbones.openclip_image import without_batch_norms

NEEDS = ("pooled", "tokens", "mid_tokens")
LEFT = {"resnet": 0, "timm efficientnet": 0, "timm mobilenet": 0, "timm mobilenetv4": 1, "timm regnet": 0}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("kind", sorted(IMAGE_KINDS))
def test_features_differ_by_rounding_and_fingerprints_do_not(kind):
    plain, own = IMAGE_KINDS[kind](), IMAGE_KINDS[kind](loader={"name": "test", "options": {}})
    assert own.clip.fingerprint == plain.clip.fingerprint
    batch = images(3, plain.clip.transform.image_size)
    expected, found = plain.clip.encode_image(batch, NEEDS), own.clip.encode_image(batch, NEEDS)
    for need in NEEDS:
        wanted = getattr(expected, need)
        assert (getattr(found, need) - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())
    if kind in LEFT:
        assert norms(plain.clip.model) > norms(own.clip.model) == LEFT[kind]


@pytest.mark.parametrize("options", [{}, {"loader": {"name": "test", "options": {}}, "precision": "bf16"}], ids=str)
def test_a_users_model_and_other_precisions_keep_theirs(options):
    tower = IMAGE_KINDS["resnet"](**options)
    assert norms(tower.clip.model) > 0
    assert tower.clip.model is tower.model


class Net(nn.Module):
    """A convolution, a norm, and what `after` makes of both outputs."""

    def __init__(self, convolution: nn.Conv2d | None = None, *, skip: bool = False, twice: bool = False):
        super().__init__()
        self.first, self.norm = convolution or nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.skip, self.twice = skip, twice
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        found = self.norm(made)
        return self.norm(self.first(found)) if self.twice else found + made * self.skip


@pytest.mark.parametrize(("net", "left"), [
    (Net(), 0), (Net(nn.Conv2d(3, 3, 1, bias=False)), 0), (Net(skip=True), 1), (Net(twice=True), 1),
    (Net(StdConv2d(3, 3, 3, padding=1)), 1)], ids=["plain", "no bias", "read twice", "run twice", "own weights"])
def test_only_what_gives_the_same_is_folded(net, left):
    net.requires_grad_(False).eval()
    x, before = torch.randn(2, 3, 8, 8), norms(net)
    with torch.no_grad():
        expected = net(x)
        folded = without_batch_norms(net, 8)
        assert (folded(x) - expected).abs().max() < 1e-5
    assert (norms(folded), norms(net)) == (left, before), "the model itself is not touched"
    assert not any(parameter.requires_grad for parameter in folded.parameters())
