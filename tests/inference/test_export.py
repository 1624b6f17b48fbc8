"""An exported model says what torch says, whatever the method and the tower; where it does not, nothing is left."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_line import TINY, told
from onnxruntime import InferenceSession
from photos import CLASSES, odd_photos, photo_folder
from PIL import Image
from slow import SLOW, slow
from torch import Tensor, nn
from towers import IMAGE_KINDS, VIT, images, openclip
from zoo import CASES, METHODS, NAMES, classes, factory

import xrvlm
from xrvlm import Classifier, UserError, export_onnx
from xrvlm.backbones.base import FrozenCLIP
from xrvlm.backbones.openclip import ViT
from xrvlm.backbones.tower import Reading
from xrvlm.cli.main import main
from xrvlm.distributed import seeded
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import without_labels
from xrvlm.inference import export, onnx_graph
from xrvlm.inference.classifier import ModelHeader
from xrvlm.methods import plot
from xrvlm.views import evaluation_view, read_image

SHORT = {"xr_vlm": {"context_length": 2}}    # some towers have a short text window
# one method of each kind of logits: the others are the same graph with other numbers
KINDS = {(method.logits, method.needs): name for name in sorted(METHODS, reverse=True)
         for method in (factory(name).func,)}
EXPORTED = sorted({*KINDS.values(), "linear_probe pooled+mid", "xr_vlm alignment",
                   "xr_vlm per_class shared text prior"} - {"cocoop", "plot"})    # these two have tests of their own


# theirs are products, exponentials and sums, as of the others
ALIKE = sorted({"dmn", "proker", "rla", "ss_text", "stat_a", "tda"} & set(EXPORTED))


class Patches(ViT):
    """A ViT without its blocks, quick to trace: what is exported here is the method."""

    def pooled(self, images: Tensor) -> Tensor:
        return self.project(self._cells(images).mean(dim=1))

    def read(self, images: Tensor) -> Reading:
        cells = self._cells(images)
        return Reading(self.project(cells.mean(dim=1)), cells, cells)

    def unprojected(self, images: Tensor, run: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
        return run(images), self.visual.ln_post(self._cells(images).mean(dim=1))

    def _cells(self, images: Tensor) -> Tensor:
        return self.visual.conv1(images).flatten(2).mT.square()                        # (b, p, e)


def shallow(**options) -> FrozenCLIP:
    clip: Any = openclip("shallow", VIT | {"layers": 2}, **options).clip
    clip.image = Patches(clip.image.encode, clip.model.visual)
    return clip


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return shallow()


def classifier(clip: FrozenCLIP, case: str) -> Classifier:
    """Not trained, but what is learned and the statistics are drawn, so that no step is an identity.

    A transductive method has seen the support images twice, as test images and as shots: such ties must not matter.
    """
    needs = {"pooled", "tokens", "mid_tokens", *(("unprojected",) if clip.unprojected_width else ())}
    x = clip.encode_image(images(12, clip.transform.image_size), needs)
    shard = {name: value[:, None] for name, value in vars(x).items() if value is not None}
    support = FeatureBank([shard], 12, tuple(map(str, range(12))), torch.arange(4).repeat(3), views=0, seed=1)
    make = partial(factory(case), **SHORT.get(CASES[case][0], {}))
    with seeded(1, "initial weights"), torch.no_grad():
        method = make(clip, classes())
        method.prepare(clip, support)
        for parameter in method.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
        for name, value in method.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.1)
    if method.transductive:
        method.transduce(clip, without_labels(support), support if method.learns else None)
    return Classifier(clip, method, ModelHeader.of(clip, make, classes()))


def run(path: Path, batch: Tensor) -> list[Tensor]:
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {"images": batch.numpy()})]


def check(model: Classifier, path: Path) -> None:
    """By numbers of images that the export itself did not try, too."""
    for count in (1, 3, 7):
        batch = images(count, model.clip.transform.image_size, seed=count)
        probabilities, logits = run(path, batch)
        expected = model.probabilities(batch)
        assert probabilities.shape == logits.shape == (count, 4)
        assert expected.std() > 1e-3, "all the same: nothing could differ"
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in EXPORTED if case not in ALIKE] + slow(*ALIKE))
def test_methods(tmp_path, clip, case):
    model = classifier(clip, case)
    check(model, export_onnx(model, tmp_path / "model.onnx"))


def test_an_exported_plan_takes_as_many_steps_as_it_needs(tmp_path, clip, monkeypatch):
    """A plan so sharp that it takes more than 15 steps; a file with fewer of them than torch takes is refused."""
    monkeypatch.setattr(plot, "SOFTNESS", 0.025)
    model = classifier(clip, "plot")
    check(model, export_onnx(model, tmp_path / "model.onnx"))
    batch, expected = images(7, seed=7), model.probabilities(images(7, seed=7))
    monkeypatch.setattr(plot, "STEPS", 15)
    assert (model.probabilities(batch) - expected).abs().max() > 1e-4, "fewer steps say something else"
    monkeypatch.setattr(plot, "EXPORTED_STEPS", 2)
    with pytest.raises(UserError, match="the exported graph differs from torch by .* of the largest logit"):
        export_onnx(model, tmp_path / "short.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_class_features_of_every_image_are_refused(tmp_path, clip):
    with pytest.raises(UserError, match="^CoCoOp runs the text tower anew for every image, .* such as coop$"):
        export_onnx(classifier(clip, "cocoop"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["timm map", *slow("resnet", "hf clip")])
def test_towers(tmp_path, kind):
    model = classifier(IMAGE_KINDS[kind]().clip, "xr_vlm")
    check(model, export_onnx(model, tmp_path / "model.onnx"))


@pytest.fixture(scope="module")
def exported(clip, tmp_path_factory) -> Path:
    return export_onnx(classifier(clip, "zero_shot"), tmp_path_factory.mktemp("exported") / "new" / "model.onnx")


def test_what_a_caller_must_know_stands_in_the_file(clip, exported):
    stored = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert stored["classes"] == list(NAMES)
    assert stored["transform"] == {
        "image_size": 32, "mean": list(clip.transform.mean), "std": list(clip.transform.std), "resize": "shortest",
        "interpolation": "bicubic", "resize_to": 32}
    assert stored["xrvlm"]["method"]["name"] == "zero_shot"
    (entry,), names = onnx.load(exported).graph.input, [output.name for output in onnx.load(exported).graph.output]
    assert (entry.name, names) == ("images", ["probabilities", "logits"])
    assert entry.type.tensor_type.shape.dim[0].dim_param, "the number of images is free"
    assert [size.dim_value for size in entry.type.tensor_type.shape.dim[1:]] == [3, 32, 32]


def more_than_8_bits(folder):
    """{name: file} of floats in each usual range and beyond, with holes, and of integers of 32 bits."""
    grey = np.linspace(0, 1, 40 * 30).reshape(30, 40).astype(np.float32)
    holes = grey.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    values = {"floats_1": grey, "floats_255": 255 * grey, "floats_65535": 65535 * grey, "floats_beyond": 1e5 * grey,
              "floats_holes": holes, "floats_negative": grey - 0.5, "black": 0 * grey,
              "integers_255": (255 * grey).astype(np.int32), "integers_beyond": (1e5 * grey).astype(np.int32)}
    for name, array in values.items():
        Image.fromarray(array).save(folder / f"{name}.tif")
    (folder / "floats.pfm").write_bytes(b"Pf\n40 30\n-1.0\n" + grey[::-1].astype("<f4").tobytes())
    return {name: folder / f"{name}.tif" for name in values} | {"pfm": folder / "floats.pfm"}


def test_the_recipe_of_the_docs_reads_photos_as_predict_does(clip, exported, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "guides" / "export.md"
    found = re.search(r"```python\n(import io\nimport json.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported, "birds.onnx")
    model = classifier(clip, "zero_shot")
    photos = odd_photos(tmp_path) | more_than_8_bits(tmp_path)
    for name, path in photos.items():
        recipe: dict = {}
        exec(found[1].replace("robin.jpg", str(path)), recipe)
        view = evaluation_view(read_image(path), clip.transform)
        assert np.abs(recipe["probabilities"][0] - model.probabilities(view[None])[0].numpy()).max() < 2e-4, name
    stored = InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert "upright by its EXIF orientation" in json.loads(stored["photo"])


def test_only_the_image_side_is_in_the_file(exported):
    assert (49408, 24) not in {tuple(entry.dims) for entry in onnx.load(exported).graph.initializer}    # token table
    assert exported.stat().st_size < 1e6


def test_half_precision_is_exported_in_float32(tmp_path):
    model = classifier(shallow(precision="bf16"), "zero_shot")
    before = model.clip.state_hash()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert {entry.data_type for entry in onnx.load(path).graph.initializer if len(entry.dims) > 1} == {1}    # float32
    torch.testing.assert_close(run(path, images(3))[0], model.probabilities(images(3)), rtol=0, atol=0.05)
    assert model.clip.precision == "bf16"
    assert model.clip.state_hash() == before
    assert next(model.clip.parameters()).dtype == torch.bfloat16


def test_a_wrong_graph_is_refused(exported, clip, tmp_path):
    right = export.Deployed(classifier(clip, "zero_shot")).eval()
    assert export.largest_difference(exported, right, [images(2)]) < 1e-5
    graph = onnx.load(exported)
    weight = next(entry for entry in graph.graph.initializer if list(entry.dims) == [32, 3, 8, 8])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 0] *= 1.01                 # a little more red
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    with pytest.raises(UserError, match="differs from torch by .* of the largest logit, 1e-04 is allowed"):
        export.largest_difference(tmp_path / "wrong.onnx", right, [images(2)])
    (tmp_path / "wrong.onnx").write_bytes(exported.read_bytes()[:2000])
    with pytest.raises(UserError, match="onnxruntime does not run the exported graph"):
        export.largest_difference(tmp_path / "wrong.onnx", right, [images(2)])


class Twice(nn.Module):
    """Where it is traced it is another function than where it is run."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_compiling() else x


def test_a_failed_check_leaves_the_file_before(clip, tmp_path):
    model, path = classifier(clip, "zero_shot"), tmp_path / "model.onnx"
    path.write_text("before")
    twice, logits = Twice(), model.method.logits
    model.method.logits = lambda x, class_features: twice(logits(x, class_features))    # type: ignore[method-assign]
    with pytest.raises(UserError, match="the exported graph differs from torch"):
        export_onnx(model, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_torch_cannot_export_is_told(clip, tmp_path):
    model = classifier(clip, "zero_shot")
    logits = model.method.logits
    model.method.logits = lambda x, known: logits(x, known) * (1 if x.pooled.sum() > 0 else 2)    # type: ignore
    with pytest.raises(UserError, match="torch cannot export shallow with the method CLIP zero-shot: .*data-dependent"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_limits_and_packages_are_told(clip, tmp_path, monkeypatch):
    model = classifier(clip, "zero_shot")
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="shallow has 0.0 GB of weights, an ONNX file holds 2 GB"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"needs onnxscript: run `pip install 'xrvlm\[onnx\]'`"):
        export_onnx(model, tmp_path / "model.onnx")


@SLOW
def test_typed_or_called_it_writes_one_file(at_home, tmp_path, capsys):
    photos = photo_folder(tmp_path / "photos", images=4)
    assert main(["adapt", f"data.root={photos}", *TINY, "method=linear_probe", "shots=2"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("record.json"))
    capsys.readouterr()
    assert main(["export", f"run={folder}"]) == 0
    told_of = capsys.readouterr()
    assert told_of.out.strip() == str(folder / "model.onnx")
    assert "says what torch says of 8 images" in told_of.err    # 1 and 3 random ones, 1 and 3 photos
    assert "initializer" not in told_of.err, "the exporter tells what it does to its graph"
    photo = photos / CLASSES[0] / "0.png"
    model = Classifier.load(folder, device="cpu")
    view = evaluation_view(read_image(photo), model.clip.transform)
    torch.testing.assert_close(run(folder / "model.onnx", view[None])[0], model.probabilities(view[None]), rtol=0,
                               atol=1e-4)
    shutil.rmtree(photos)
    assert xrvlm.export(folder, "other, one.onnx") == Path("other, one.onnx")
    told_of = capsys.readouterr().err
    assert "checked on random images alone: " in told_of
    assert "of 4 images" in told_of
    assert Path("other, one.onnx").stat().st_size == (folder / "model.onnx").stat().st_size
    assert "leave device= and precision= out" in told(capsys, "export", f"run={folder}", "precision=bf16")
    error = told(capsys, "export", f"run={folder}", "format=pt2")
    assert "unknown format 'pt2'; available: onnx" in error


@pytest.mark.parametrize("made", ["folder", "file above", "pipe"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(clip, tmp_path, monkeypatch, made):
    path = tmp_path / "above" / "model.onnx"
    if made == "folder":
        path.mkdir(parents=True)
    elif made == "file above":
        path.parent.touch()
    else:
        path.parent.mkdir()
        os.mkfifo(path)
    monkeypatch.setattr(export, "_graph", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(UserError, match=r"cannot write .*model\.onnx: .*folder.*; name another file|is a pipe or"):
        export_onnx(classifier(clip, "zero_shot"), path)
    assert sorted(tmp_path.rglob("*.onnx")) == ([] if made == "file above" else [path])
