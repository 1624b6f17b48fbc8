import json

import pytest
import torch
import torch.nn.functional as F
from banks import features_of, made_bank
from safetensors import safe_open
from safetensors.torch import save_file

from xrvlm.backbones.base import Features
from xrvlm.errors import UserError
from xrvlm.inference.classifier import Classifier, ModelHeader
from xrvlm.methods import GalLoP
from xrvlm.text.class_text import class_text

CLASSES = class_text(("bird", "dog"))


def axis(clip, *parts) -> torch.Tensor:
    """A vector of these first numbers."""
    return F.pad(torch.tensor(parts), (0, clip.embed_dim - len(parts)))


@pytest.fixture
def by_hand(clip):
    """One image of four positions behind a class token, one global and two local prompts of two classes."""
    method = GalLoP(clip, CLASSES, global_prompts=1, local_prompts=2, top_k=1)
    tokens = torch.stack([axis(clip, 9.0, 9.0), axis(clip, 3.0), axis(clip, 0.0, 2.0), axis(clip, 0.6, 0.8),
                          axis(clip, -1.0)])[None]
    prompts = torch.stack([torch.stack([axis(clip, 1.0), axis(clip, 0.0, 1.0)]),           # global: bird, dog
                           torch.stack([axis(clip, 1.0), axis(clip, 0.0, 1.0)]),           # local, the best position
                           torch.stack([axis(clip, 0.6, 0.8), axis(clip, 0.8, -0.6)])])    # local, the best two
    return method, Features(axis(clip, 0.8, 0.6)[None], tokens), prompts


# the cosines of the four positions with each prompt, written down and sorted by hand
LOCAL = [[1.0, 1.0], [(1.0 + 0.8) / 2, (0.8 + 0.0) / 2]]


def test_its_prompts_start_as_words_without_a_full_stop(clip):
    method = GalLoP(clip, CLASSES, global_prompts=1, local_prompts=1)
    for made in (method, method.for_classes(clip, CLASSES)):
        torch.testing.assert_close(made.class_features(clip)[0],
                                   clip.encode_text([f"a photo of a {name}" for name in CLASSES.names]))


def test_cosines_by_hand(by_hand):
    method, x, prompts = by_hand
    whole, local = method.cosines(x, prompts)
    torch.testing.assert_close(whole, torch.tensor([[[0.8, 0.6]]]))
    torch.testing.assert_close(local, torch.tensor([LOCAL]))


def test_logits_are_the_mean_of_the_two_means(by_hand, clip):
    method, x, prompts = by_hand
    means = torch.tensor([[(0.8 + (1.0 + 0.9) / 2) / 2, (0.6 + (1.0 + 0.4) / 2) / 2]])
    torch.testing.assert_close(method.logits(x, prompts), clip.logit_scale * means)


def test_the_loss_is_that_of_the_global_prompts_and_the_mean_of_the_local_ones(by_hand, clip, monkeypatch):
    method, x, prompts = by_hand
    monkeypatch.setattr(GalLoP, "class_features", lambda self, clip: prompts)
    y, scale = torch.tensor([1]), clip.logit_scale
    first, second = (F.cross_entropy(scale * torch.tensor([row]), y) for row in LOCAL)
    expected = F.cross_entropy(scale * torch.tensor([[0.8, 0.6]]), y) + (first + second) / 2
    torch.testing.assert_close(method.loss(x, y, clip), expected)
    parts = [F.cross_entropy(scale * torch.tensor([row]), y, label_smoothing=0.2) for row in ([0.8, 0.6], *LOCAL)]
    torch.testing.assert_close(method.loss(x, y, clip, label_smoothing=0.2), parts[0] + (parts[1] + parts[2]) / 2)


def test_the_loss_of_a_batch_is_the_mean_over_its_images(by_hand, clip, monkeypatch):
    method, x, prompts = by_hand
    monkeypatch.setattr(GalLoP, "class_features", lambda self, clip: prompts)
    other = Features(axis(clip, 0.6, -0.8)[None], x.tokens.roll(1, dims=-1))
    both = Features(torch.cat([x.pooled, other.pooled]), torch.cat([x.tokens, other.tokens]))
    losses = [method.loss(x, torch.tensor([1]), clip), method.loss(other, torch.tensor([0]), clip)]
    torch.testing.assert_close(method.loss(both, torch.tensor([1, 0]), clip), sum(losses) / 2)


def test_the_layer_aligns_positions_alone_and_starts_as_the_identity(by_hand, clip):
    method, x, prompts = by_hand
    assert torch.equal(method.align.weight, torch.eye(clip.embed_dim))
    with torch.no_grad():
        method.align.weight[0], method.align.weight[1] = axis(clip, 0.0, 1.0), axis(clip, 1.0)    # swaps two numbers
    whole, local = method.cosines(x, prompts)
    torch.testing.assert_close(whole, torch.tensor([[[0.8, 0.6]]]))
    torch.testing.assert_close(local[:, 0].detach(), torch.tensor([[1.0, 1.0]]))
    # swapped, the positions are (0, 1), (1, 0), (0.8, 0.6), (0, -1)
    torch.testing.assert_close(local[:, 1].detach(), torch.tensor([[(0.96 + 0.8) / 2, (0.8 + 0.6) / 2]]))


def test_scales_and_more_positions_than_there_are(clip):
    x = features_of(made_bank(clip, CLASSES, torch.arange(2).repeat(2)))
    method = GalLoP(clip, CLASSES)
    prompts = method.class_features(clip).detach()
    assert prompts.shape == (8, 2, clip.embed_dim)
    _, local = method.cosines(x, prompts)
    positions = F.normalize(x.tokens[:, 1:], dim=-1)
    for index, count in enumerate((5, 10, 15, 16)):          # of 16: the fourth wants 20
        best = (positions @ prompts[4 + index].T).sort(dim=1, descending=True).values[:, :count].mean(dim=1)
        torch.testing.assert_close(local[:, index].detach(), best)


@pytest.mark.parametrize(("prompts", "dropout", "kept"), [(4, 0.75, 1), (4, 0.5, 2), (4, 0.0, 4), (3, 0.99, 1)])
def test_each_image_sees_some_of_the_global_prompts(clip, monkeypatch, prompts, dropout, kept):
    method = GalLoP(clip, CLASSES, global_prompts=prompts, dropout=dropout)
    assert method.kept == kept
    whole = torch.randn(64, prompts, 2, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(GalLoP, "cosines", lambda *_: (whole, torch.zeros(64, 4, 2)))
    seen = []
    monkeypatch.setattr(F, "cross_entropy", lambda logits, *_, **__: seen.append(logits) or torch.zeros(()))
    torch.manual_seed(0)
    method.loss(Features(torch.zeros(64, clip.embed_dim)), torch.zeros(64, dtype=torch.long), clip)
    shown = seen[0] / clip.logit_scale
    subsets = torch.combinations(torch.arange(prompts), kept)
    means = torch.stack([whole[:, subset].mean(dim=1) for subset in subsets], dim=1)       # (b, subsets, c)
    distance = (means - shown[:, None]).abs().sum(dim=2)
    assert distance.min(dim=1).values.max() < 1e-5
    assert len(distance.argmin(dim=1).unique()) == len(subsets), "not the same for all images"


def test_the_recipe_is_its_own(clip):
    recipe = GalLoP(clip, CLASSES).recipe
    assert (recipe.name, recipe.weight_decay, recipe.warmup_epochs) == ("gallop", 0.01, 0)


@pytest.mark.parametrize("options", [{"global_prompts": 0}, {"local_prompts": 0}, {"top_k": 0}, {"dropout": 1.0}])
def test_bad_options_are_told(clip, options):
    with pytest.raises(UserError, match=r"must be at least 1 and dropout in \[0, 1\), found "):
        GalLoP(clip, CLASSES, **options)


def test_a_model_of_revision_1_keeps_its_full_stop(clip, tmp_path):
    """It was trained with one; models of today have none."""
    model = Classifier(clip, GalLoP(clip, CLASSES), ModelHeader.of(clip, GalLoP, CLASSES, "split"))
    model.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["xrvlm"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}    # noqa: SIM118
    del header["method"]["options"]["full_stop"]
    header["method"]["revision"] = 1
    save_file(tensors, tmp_path / "model.safetensors", {"xrvlm": json.dumps(header)})
    for path, ending in ((tmp_path, "."), (model.save(tmp_path / "new"), "")):
        found = Classifier.load(path, clip).method.class_features(clip)[0]
        torch.testing.assert_close(found, clip.encode_text([f"a photo of a {name}{ending}" for name in CLASSES.names]))
