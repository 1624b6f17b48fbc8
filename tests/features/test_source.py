import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from photos import photo_folder
from safetensors import safe_open
from safetensors.torch import load_file

from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.features import bank as bank_module
from xrvlm.features import source as features
from xrvlm.features.bank import FeatureBank
from xrvlm.features.source import (
    FeatureSettings,
    OnlineFeatures,
    bank_bytes,
    extract,
    feature_source,
    stays_on,
    training_order,
)
from xrvlm.views import Augmentation, augmented_view, evaluation_view, read_image

ALL = frozenset({"pooled", "tokens", "mid_tokens"})


@pytest.fixture
def dataset(tmp_path):
    return image_folder(photo_folder(tmp_path / "photos"))


@pytest.fixture
def settings(tmp_path):
    return FeatureSettings(cache=str(tmp_path / "cache"), views=2, dtype="float32")


class Counts(list, logging.Handler):
    """How many images each extraction encoded, as its log says."""

    def __init__(self):
        logging.Handler.__init__(self)

    def emit(self, record):
        if "are encoded now" in record.msg:
            self.append(record.args[0])

    __hash__ = logging.Handler.__hash__


@pytest.fixture
def encoded(caplog):
    caplog.set_level(logging.INFO)
    counts, logger = Counts(), logging.getLogger("xrvlm.features.bank")
    logger.addHandler(counts)
    yield counts
    logger.removeHandler(counts)


@pytest.fixture
def a_shard_an_image(monkeypatch):
    monkeypatch.setattr(bank_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(features, "CPU_BATCH", 1)


def everything(source) -> dict[str, torch.Tensor]:
    batches = [x for x, _ in source.in_order()]
    there = [name for name, value in vars(batches[0]).items() if value is not None]
    return {name: torch.cat([getattr(x, name) for x in batches]) for name in there}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_bank_holds_what_the_tower_says(clip, dataset, settings):
    items = dataset.split.train
    bank = extract(clip, dataset.source, items, settings, needs=ALL, views=2, seed=3)
    online = OnlineFeatures(clip, dataset.source, items, ALL, settings.augmentation, seed=3)
    ours, theirs = everything(bank), everything(online)
    for name in ALL:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert bank.ids == tuple(item.id for item in items)
    assert bank.labels.tolist() == [item.label for item in items]
    first = bank.select(torch.tensor([4, 1]), torch.tensor([1, 2]))
    assert first.pooled.shape == (2, clip.embed_dim)
    assert not torch.allclose(first.pooled[0], ours["pooled"][4])


def test_workers_and_cache_do_not_change_a_number(clip, dataset, tmp_path):
    banks = [extract(clip, dataset.source, dataset.split.train,
                     FeatureSettings(cache=str(tmp_path / f"cache{place}"), views=2, dtype="float32"),
                     needs=ALL, views=2, seed=1, workers=workers) for place, workers in ((0, 0), (1, 2), (0, 0))]
    for other in banks[1:]:
        for one, two in zip(banks[0].shards, other.shards, strict=True):
            assert_same(dict(one), dict(two))
    order = training_order(banks[0].labels, 1, 0, 8)
    online = [[x.pooled for x, _ in OnlineFeatures(clip, dataset.source, dataset.split.train, ALL, Augmentation(), 1,
                                                   workers).batches(order, 5)] for workers in (0, 2)]
    assert all(torch.equal(one, two) for one, two in zip(*online, strict=True))


def test_a_finished_bank_is_read_without_the_tower(clip, dataset, settings, monkeypatch):
    first = extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=1)
    monkeypatch.setattr(bank_module, "write_atomically", lambda *_: pytest.fail("the tower ran again"))
    assert_same(everything(extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=1)),
                everything(first))


@pytest.mark.parametrize("change", ["seed", "views", "dtype", "crop"])
def test_whatever_the_numbers_depend_on_is_in_the_key(clip, dataset, settings, tmp_path, change):
    items = dataset.split.train
    arguments = {"needs": ALL, "views": 1, "seed": 1}
    extract(clip, dataset.source, items, settings, **arguments)
    before = len(list((tmp_path / "cache").rglob("key.json")))
    if change in ("seed", "views"):
        arguments[change] = 2
    if change == "dtype":
        settings = FeatureSettings(cache=settings.cache, dtype="float16")
    if change == "crop":
        settings = FeatureSettings(cache=settings.cache, dtype="float32", crop_scale=(0.9, 1.0))
    extract(clip, dataset.source, items, settings, **arguments)
    assert len(list((tmp_path / "cache").rglob("key.json"))) == before + 1


def test_an_image_that_changed_is_encoded_again_and_no_other(clip, dataset, settings, tmp_path, encoded):
    items = dataset.split.train
    before = everything(extract(clip, dataset.source, items, settings, needs=ALL, views=1))
    (tmp_path / "photos" / items[0].id).write_bytes((tmp_path / "photos" / items[1].id).read_bytes())
    encoded.clear()
    after = everything(extract(clip, dataset.source, items, settings, needs=ALL, views=1))
    assert encoded == [1]
    for name, value in after.items():
        assert torch.equal(value, before[name][[1, *range(1, len(items))]])


def test_fewer_shots_are_read_from_the_features_of_more(clip, dataset, settings, tmp_path, encoded):
    """And more shots encode only what is new: bit for bit as if all had been encoded at once."""
    items = dataset.split.train
    few, more = items[2:17:5], (*items[:11], *items[15:])
    for part, new in ((few, 3), (few[:2], 0), (more, 18), (items, 3)):
        encoded.clear()
        ours = extract(clip, dataset.source, part, settings, needs=ALL, views=2, seed=3)
        assert sum(encoded) == new
        fresh = replace(settings, cache=str(tmp_path / f"fresh {len(part)}"))
        straight = extract(clip, dataset.source, part, fresh, needs=ALL, views=2, seed=3)
        assert_same(everything(ours), everything(straight))
        assert ours.labels.tolist() == [item.label for item in part]
    rows = torch.tensor([4, 0, 7])
    whole = everything(ours)
    taken = ours.take(rows)
    assert_same(everything(taken), {name: value[rows] for name, value in whole.items()})
    assert_same(everything(taken.take(torch.tensor([2, 1]))), {name: value[[7, 0]] for name, value in whole.items()})
    assert taken.ids == tuple(items[row].id for row in rows)


def test_a_bank_of_more_features_serves_who_wants_fewer(clip, dataset, settings, encoded):
    items = dataset.split.train
    all_of_them = everything(extract(clip, dataset.source, items, settings, needs=ALL, views=1))
    encoded.clear()
    pooled = everything(extract(clip, dataset.source, items, settings, needs={"pooled"}, views=1))
    assert encoded == []
    assert_same(pooled, {"pooled": all_of_them["pooled"]})


def test_who_wants_more_features_than_there_are_encodes(clip, dataset, settings, encoded):
    items = dataset.split.train
    extract(clip, dataset.source, items, settings, needs={"pooled"}, views=1)
    assert everything(extract(clip, dataset.source, items, settings, needs=ALL, views=1)).keys() == ALL
    assert encoded == [len(items), len(items)]


def test_without_views_the_seed_does_not_matter(clip, dataset, settings, tmp_path):
    for seed in (1, 2):
        extract(clip, dataset.source, dataset.split.train, settings, seed=seed)
    assert len(list((tmp_path / "cache").rglob("key.json"))) == 1


def test_an_interrupted_bank_goes_on_where_it_was(clip, dataset, settings, monkeypatch, tmp_path, a_shard_an_image):
    whole = extract(clip, dataset.source, dataset.split.train,
                    FeatureSettings(cache=str(tmp_path / "whole"), dtype="float32"), needs=ALL, views=2)
    write, written = bank_module.write_atomically, []

    def interrupted(path, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(bank_module, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=2)

    def counted(path, *arguments):
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(bank_module, "write_atomically", counted)
    resumed = extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=2)
    assert len(written) == len(set(written)) == len(dataset.split.train)
    assert_same(everything(resumed), everything(whole))


def test_one_set_of_workers_makes_all_shards(clip, dataset, settings, monkeypatch, a_shard_an_image):
    load, loaders = features.load_images, []
    monkeypatch.setattr(features, "load_images", lambda *arguments: loaders.append(1) or load(*arguments))
    bank = extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=2)
    assert len(bank.shards) == len(dataset.split.train)
    assert len(loaders) == 1


def test_an_interrupted_tower_leaves_the_shards_before(clip, dataset, settings, monkeypatch, tmp_path,
                                                       a_shard_an_image):
    encode, calls = clip.encode_image, []

    def interrupted(images, needs):
        calls.append(1)
        if len(calls) == 6:              # the first call asks for the shapes
            raise KeyboardInterrupt
        return encode(images, needs)

    monkeypatch.setattr(clip, "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(clip, dataset.source, dataset.split.train, settings, needs=ALL)
    assert len(list((tmp_path / "cache").rglob("shard-*.safetensors"))) == 4


def test_a_shard_that_cannot_be_written_is_told(clip, dataset, settings, monkeypatch):
    def full(path, *_):
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(bank_module, "write_atomically", full)
    with pytest.raises(UserError, match="cannot write .*shard-"):
        extract(clip, dataset.source, dataset.split.train, settings)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_bank_is_on_disk_in_the_wanted_type(clip, dataset, tmp_path, dtype):
    settings = FeatureSettings(cache=str(tmp_path / dtype), dtype=dtype)
    bank = extract(clip, dataset.source, dataset.split.train, settings, needs=ALL)
    (shard,) = (tmp_path / dtype).rglob("shard-*.safetensors")
    stored = load_file(shard)
    assert {name: value.dtype for name, value in stored.items()} == {
        "pooled": torch.float32, "tokens": getattr(torch, dtype), "mid_tokens": getattr(torch, dtype)}
    images = torch.stack([evaluation_view(read_image(photo), clip.transform) for photo in sorted(
        (tmp_path / "photos").rglob("*.png")) if str(photo.relative_to(tmp_path / "photos")) in bank.ids[:3]])
    expected = clip.encode_image(images, ALL).tokens.to(getattr(torch, dtype))             # rounded once, not twice
    torch.testing.assert_close(stored["tokens"][:3, 0], expected, rtol=2 ** -7, atol=1e-3)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "garbage", "two images change places"])
def test_a_damaged_shard_is_named_and_made_again(clip, dataset, settings, tmp_path, caplog, damage):
    before = everything(extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=1))
    (shard,) = (tmp_path / "cache").rglob("shard-*.safetensors")
    data = shard.read_bytes()
    with safe_open(shard, framework="pt") as file:
        first, second = (stamp.encode() for stamp in json.loads(file.metadata()["xrvlm"])["images"][:2])
    swapped = data.replace(first, b"?" * len(first)).replace(second, first).replace(b"?" * len(first), second)
    shard.write_bytes({"truncated": data[:-100], "empty": b"", "garbage": b"x" * 500,
                       "two images change places": swapped,
                       "other": data.replace(b'\\"key\\": \\"', b'\\"key\\": \\"0', 1)[:-1]}[damage])
    with caplog.at_level(logging.WARNING):
        after = everything(extract(clip, dataset.source, dataset.split.train, settings, needs=ALL, views=1))
    assert_same(after, before)
    assert shard.name in caplog.text
    assert "encoded again" in caplog.text


def test_the_size_is_told_and_the_budget_is_kept(clip, dataset, settings, caplog):
    size = bank_bytes(clip, 18, settings, ALL, views=2)
    values = clip.embed_dim + 17 * (clip.embed_dim + clip.image_width)
    assert size == 18 * 3 * 4 * values
    make = {"needs": ALL, "views": 2, "seed": 0, "workers": 0}
    with caplog.at_level(logging.INFO):
        assert isinstance(feature_source(clip, dataset.source, dataset.split.train, settings, **make), FeatureBank)
        assert "24 images x 3 views" in caplog.text
        tight = FeatureSettings(cache=settings.cache, budget_gb=1e-6)
        source = feature_source(clip, dataset.source, dataset.split.train, tight, **make)
    assert isinstance(source, OnlineFeatures)
    assert "is over budget_gb=" in caplog.text


def test_a_resident_bank_reads_the_same(clip, dataset, settings, a_shard_an_image):
    bank = extract(clip, dataset.source, dataset.split.train, settings, views=2).take(torch.arange(20, 3, -1))
    resident = bank.resident(torch.device("cpu"))
    assert len(bank.shards) > len(resident.shards) == 1
    assert resident.nbytes == bank.nbytes
    order = training_order(bank.labels, 1, 0, 3)
    for (x, y), (x_resident, y_resident) in zip(bank.batches(order, 0), resident.batches(order, 0), strict=True):
        assert torch.equal(y, y_resident)
        for name, value in vars(x).items():
            assert value is None or torch.equal(value, getattr(x_resident, name)), name


def test_a_bank_stays_on_a_gpu_that_has_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100e9))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert stays_on(gpu, 19e9, FeatureSettings()) and not stays_on(gpu, 21e9, FeatureSettings())
    assert stays_on(gpu, 2e9, FeatureSettings(gpu_gb=3)) and not stays_on(gpu, 4e9, FeatureSettings(gpu_gb=3))
    assert not stays_on(gpu, 1, FeatureSettings(gpu_gb=0)) and not stays_on(cpu, 1, FeatureSettings())


def test_the_order_of_an_epoch():
    labels = torch.arange(3).repeat_interleave(5)
    order = training_order(labels, 1, 0, 7)
    assert [len(batch) for batch in order] == [7, 7]            # a last batch of one is dropped, nothing else is
    assert len(torch.cat(order).unique()) == 14
    assert [len(batch) for batch in training_order(labels, 1, 0, 4)] == [4, 4, 4, 3]
    assert [len(batch) for batch in training_order(labels, 1, 0, 64)] == [15]
    same, other = training_order(labels, 1, 0, 7), training_order(labels, 1, 1, 7)
    assert torch.equal(torch.cat(order), torch.cat(same))
    assert not torch.equal(torch.cat(order), torch.cat(other))
    with pytest.raises(UserError, match="one training image in all"):
        training_order(torch.tensor([0]), 1, 0, 64)


def test_a_balanced_order_draws_the_classes_equally_often():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = labels[torch.cat(training_order(labels, 1, 0, 100, balanced=True))].bincount() / 1000
    assert ((drawn - 1 / 3).abs() < 0.06).all()


def test_each_epoch_reads_its_own_views(clip, dataset, settings):
    bank = extract(clip, dataset.source, dataset.split.train, settings, views=2, seed=1)
    order = [torch.arange(len(bank.labels))]
    epochs = [next(bank.batches(order, epoch))[0].pooled for epoch in range(4)]
    evaluation = everything(bank)["pooled"]
    assert not any(torch.equal(row, evaluation[i]) for epoch in epochs for i, row in enumerate(epoch))
    assert len({tuple(epoch.flatten().tolist()) for epoch in epochs}) == 4


def test_the_evaluation_view_is_the_one_of_open_clip(clip, dataset):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    image = Image.open(dataset.source.root / dataset.split.train[0].id).convert("RGB").resize((90, 61))
    for resize in ("shortest", "squash"):
        transform = type(clip.transform)(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", resize)
        theirs = image_transform_v2(PreprocessCfg(size=32, mean=transform.mean, std=transform.std,
                                                  interpolation="bicubic", resize_mode=resize), is_train=False)
        assert torch.equal(evaluation_view(image, transform), theirs(image))


def test_a_view_is_drawn_from_its_key_alone(clip, dataset):
    from PIL import Image

    image = Image.open(dataset.source.root / dataset.split.train[0].id).convert("RGB")
    views = [augmented_view(image, clip.transform, Augmentation((0.3, 0.9)), 1, "view", key) for key in (0, 0, 1)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "both"}, "unknown mode 'both'"), ({"dtype": "int8"}, "unknown dtype"),
    ({"crop_scale": (0.9, 0.2)}, "crop_scale"), ({"views": -1}, "views must be"),
    ({"gpu_gb": -1.0}, "gpu_gb must be")])
def test_bad_settings_are_told(options, message):
    with pytest.raises(UserError, match=message):
        FeatureSettings(**options)


def test_the_key_is_kept_for_people(clip, dataset, settings, tmp_path):
    extract(clip, dataset.source, dataset.split.train, settings)
    (path,) = (tmp_path / "cache").rglob("key.json")
    assert json.loads(path.read_text())["backbone"] == clip.fingerprint
