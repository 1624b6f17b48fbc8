import ast
from functools import partial
from pathlib import Path

import pytest
import torch
from photos import photo_folder

import xrvlm
from xrvlm.errors import UserError


def test_every_public_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(Path(xrvlm.__file__).read_text())
    checked = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(xrvlm.__all__) <= checked
    assert set(xrvlm.__all__) == set(xrvlm._MODULE_OF)
    assert set(xrvlm.__all__) <= set(dir(xrvlm))
    for name in xrvlm.__all__:
        assert getattr(xrvlm, name) is not None


@pytest.mark.parametrize(("call", "message"), [
    (lambda clip, data: xrvlm.adapt("ViT-B-32", data), "clip must be a FrozenCLIP, found 'ViT-B-32'"),
    (lambda clip, data: xrvlm.adapt(clip, "photos"), "dataset must be a Dataset, found 'photos'"),
    (lambda clip, data: xrvlm.adapt(clip, data, shots="4"), "shots must be a whole number or None, found '4'"),
    (lambda clip, data: xrvlm.adapt(clip, data, recipe=3),
     "recipe must be a Recipe or a text or a mapping or None, found 3"),
    (lambda clip, data: xrvlm.adapt(clip, data, text="photo"), "text must be a function or a mapping, found 'photo'"),
    (lambda clip, data: xrvlm.adapt(clip, data, text={"template": "a {}"}),
     "unknown argument of class_text 'template'"),
    (lambda clip, data: xrvlm.adapt(clip, data, options={}), "options must be a RunOptions or None, found {}"),
    (lambda clip, data: xrvlm.adapt(clip, data, xrvlm.CoOp, shot=4), "unknown argument of adapt 'shot'"),
    (lambda clip, data: xrvlm.compare(clip, data, "coop"), "candidates must be a list or None, found 'coop'"),
    (lambda clip, data: xrvlm.evaluate("run", "photos"), "dataset must be a Dataset or None, found 'photos'"),
    (lambda clip, data: xrvlm.predict("run", "x.jpg", topk="3"), "topk must be a whole number, found '3'"),
    (lambda clip, data: xrvlm.predict(None, 3), "images must be a text or a Path or a list, found 3"),
    (lambda clip, data: xrvlm.RunOptions(features="online"), "features must be a FeatureSettings, found 'online'"),
    (lambda clip, data: xrvlm.FeatureSettings(views="3"), "views must be a whole number, found '3'"),
    (lambda clip, data: xrvlm.FeatureSettings(crop_scale=0.5), "crop_scale must be a list of 2: a number, a number"),
    (lambda clip, data: xrvlm.image_folder(3), "root must be a text or a Path, found 3"),
    (lambda clip, data: xrvlm.load_tiny_clip(devise="cpu"), "unknown argument of load_tiny_clip 'devise'"),
    (lambda clip, data: xrvlm.load_tiny_clip(device="gpu"), "unknown device 'gpu'"),
    (lambda clip, data: xrvlm.class_text("jay"), "classes must be a list, found 'jay'"),
    (lambda clip, data: xrvlm.load(None), "path must be a Path or a text, found None"),
    (lambda clip, data: xrvlm.load("run", 5), "clip must be a FrozenCLIP or None, found 5"),
    (lambda clip, data: xrvlm.hub_dataset(None), "path must be a name on the hub, a folder, or a Dataset"),
    (lambda clip, data: xrvlm.hub_dataset({"train": 5}),
     "path['train'] must be a datasets.Dataset that is not streamed, found 5"),
    (lambda clip, data: xrvlm.wrap_openclip(None, None, name="x"), "model must be a model of open_clip, found None"),
    (lambda clip, data: xrvlm.wrap_openclip(torch.nn.Linear(2, 2), None, name="x"), "model must be a model"),
    (lambda clip, data: xrvlm.wrap_hf(7, None, name="x"), "model must be a CLIPModel or SiglipModel of transformers"),
    (lambda clip, data: xrvlm.wrap_hf(7, None, name=3), "name must be a text, found 3"),
    (lambda clip, data: xrvlm.evaluate("run", class_names=5), "class_names must be a text or a list or a mapping"),
    (lambda clip, data: xrvlm.Split(5, ()), "classes must be a list, found 5"),
    (lambda clip, data: xrvlm.Split(("a", "b"), ("x.jpg",)), "train of a Split must be a list of Items"),
    (lambda clip, data: xrvlm.Dataset("x", data.source, None), "split must be a Split, found None"),
    (lambda clip, data: xrvlm.Dataset("x", "photos", data.split), "source must be an ImageSource, which has read"),
    (lambda clip, data: xrvlm.export("run", format="pt"), "unknown format 'pt'; available: onnx"),
])
def test_a_wrong_argument_is_told_by_its_name(clip, tmp_path_factory, call, message):
    data = xrvlm.image_folder(photo_folder(tmp_path_factory.mktemp("photos"), images=2))
    with pytest.raises(UserError) as raised:
        call(clip, data)
    assert str(raised.value).startswith(message)


def test_an_option_that_a_method_lacks_is_told(clip, tmp_path):
    data = xrvlm.image_folder(photo_folder(tmp_path, images=2))
    with pytest.raises(UserError, match="unknown option of CoOp 'context_len'; did you mean 'context_length'"):
        xrvlm.adapt(clip, data, partial(xrvlm.CoOp, context_len=4))
