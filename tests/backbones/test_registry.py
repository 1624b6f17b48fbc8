"""Saved models name the loader of their tower; nothing but the loaders of xrvlm can be named."""

import sys

import pytest

from xrvlm.backbones import hf, openclip_load, registry
from xrvlm.backbones.composed import look, pair, trunk
from xrvlm.backbones.registry import load_tower
from xrvlm.demo import tiny_clip
from xrvlm.errors import UserError
from xrvlm.files import shipped, shipped_options
from xrvlm.photo import photo_tower


def test_a_tower_is_loaded_again_from_its_loader():
    clip = tiny_clip.load_tiny_clip(resize_to=80, interpolation="bilinear", device="cpu")
    assert clip.loader == {"name": "tiny", "options": {"resize_to": 80, "interpolation": "bilinear"}}
    again = load_tower(clip.loader, device="cpu", precision="fp32")
    assert (again.fingerprint, again.transform, again.loader) == (clip.fingerprint, clip.transform, clip.loader)


@pytest.fixture
def calls(monkeypatch):
    """The options of each call of a loader; nothing is loaded."""
    found = {}
    for module, function in ((openclip_load, "load_openclip"), (hf, "load_hf"), (tiny_clip, "load_tiny_clip"),
                             (photo_tower, "load_photo"), (trunk, "load_timm_trunk"), (trunk, "load_hf_trunk"),
                             (pair, "load_pair"), (look, "load_look")):
        monkeypatch.setattr(module, function, lambda name=function, **options: found.setdefault(name, options))
    return found


def test_every_name_is_that_of_a_loader(calls):
    for name in registry.LOADERS:
        load_tower({"name": name, "options": {"text": name}}, device="cpu")
    assert calls == {"load_openclip": {"text": "openclip", "device": "cpu"}, "load_hf": {"text": "hf", "device": "cpu"},
                     "load_tiny_clip": {"text": "tiny", "device": "cpu"},
                     "load_photo": {"text": "photo", "device": "cpu"},
                     "load_timm_trunk": {"text": "timm_trunk", "device": "cpu"},
                     "load_hf_trunk": {"text": "hf_trunk", "device": "cpu"},
                     "load_pair": {"text": "pair", "device": "cpu"}, "load_look": {"text": "look", "device": "cpu"}}


def test_files_with_a_dotted_path_are_still_read(calls):
    former = ("xrvlm.backbones.load_openclip", "xrvlm.backbones.load_hf", "xrvlm.demo.load_tiny_clip")
    for target in former:
        load_tower({"target": target, "arguments": {"text": target}}, precision="fp32")
    assert calls == {target.rpartition(".")[2]: {"text": target, "precision": "fp32"} for target in former}


def test_options_of_another_loader_are_those_of_a_changed_file():
    with pytest.raises(UserError, match="the file's options of the tower 'tiny' are not .*'trunk'.*it was changed"):
        load_tower({"name": "tiny", "options": {"trunk": "efficientnet_lite0"}})


@pytest.mark.parametrize("loader", [
    {"name": "clip", "options": {}}, {"name": "xrvlm.backbones.load_hf", "options": {}},
    {"target": "tiny", "arguments": {}}, {"target": "this.load_nothing", "arguments": {}},
    {"target": "xrvlm.backbones.openclip_load.load_openclip", "arguments": {}},
    {"target": "xrvlm.backbones.load_everything", "arguments": {}}])
def test_nothing_else_is_imported_or_called(loader):
    with pytest.raises(UserError, match=r"names '.*' as the loader.*no loader of xrvlm's: do not use .*as `clip`$"):
        load_tower(loader)
    assert "this" not in sys.modules


def test_every_shipped_backbone_has_a_loader_with_a_name():
    targets = {shipped_options(group, name)["_target_"] for group in ("backbone", "second") for name in shipped(group)}
    assert targets == {path for name, path in registry.LOADERS.items() if name not in ("pair", "look")}
