"""Features on disk are those that were written: a bit that flips is found, and the images are encoded again."""

import os
from multiprocessing import active_children

import pytest
import torch
from photos import photo_folder
from towers import tiny_vit

from xrvlm.data.folder import image_folder
from xrvlm.errors import WriteError
from xrvlm.features import bank, source
from xrvlm.features.bank import checksum
from xrvlm.features.cache import banks
from xrvlm.features.source import FeatureSettings, extract


@pytest.mark.parametrize("at", [0, 0.3, 0.7, 1])
def test_a_flipped_bit_is_found(tmp_path, caplog, at):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=3))
    settings = FeatureSettings(views=0, cache=tmp_path / "cache")

    def features():
        read = extract(clip, dataset.source, dataset.split.train, settings, needs=("pooled", "tokens"))
        x = read.select(torch.arange(len(read.labels)), torch.zeros(len(read.labels), dtype=torch.long))
        return torch.cat([x.pooled.flatten(), x.tokens.flatten()])

    before = features()
    (shard,) = (tmp_path / "cache").rglob("shard-*.safetensors")
    data = bytearray(shard.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin + int(at * (len(data) - begin - 1))] ^= 0x10
    shard.write_bytes(data)
    assert torch.equal(features(), before)
    assert any("the checksum of" in record.getMessage() for record in caplog.records)
    caplog.clear()
    assert torch.equal(features(), before)
    assert not [record for record in caplog.records if "damaged" in record.getMessage()]


def test_a_shard_is_checked_once_a_process(tmp_path, monkeypatch):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=3))
    settings, read = FeatureSettings(views=0, cache=tmp_path / "cache"), []
    extract(clip, dataset.source, dataset.split.train, settings)
    monkeypatch.setattr("xrvlm.features.bank.checksum", read.append)
    extract(clip, dataset.source, dataset.split.train, settings)
    assert read == []


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_a_checksum_sees_every_bit_and_the_order_of_blocks(kind):
    values = torch.randn(3, 100_001).to(kind)
    before = checksum(values)
    assert checksum(values.clone()) == before
    for at in (0, 65_536 * 2, 300_001, -1):
        data = values.clone().reshape(-1).view(torch.uint8)
        data[at] ^= 1
        assert checksum(data.view(kind)) != before
    swapped = values.clone().reshape(-1).view(torch.uint8)
    swapped[:2**19] = values.reshape(-1).view(torch.uint8)[-2**19 - 2:-2]
    assert checksum(swapped.view(kind)) != before
    assert checksum(values[:, 1:]) != before                      # not aligned to eight bytes in memory


def test_a_cache_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path, caplog):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=3))
    (tmp_path / "file").write_text("")
    settings = [FeatureSettings(views=1, cache=tmp_path / name) for name in ("file", "cache")]
    banks = [extract(clip, dataset.source, dataset.split.train, each, views=1) for each in settings]
    rows, views = torch.arange(len(banks[0].labels)), torch.ones(len(banks[0].labels), dtype=torch.long)
    assert torch.equal(*(each.select(rows, views).pooled for each in banks))
    assert "file/features is not used, it cannot be written: the features are computed for this process" in caplog.text
    assert "name another folder with cache or $XRVLM_CACHE" in caplog.text


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=3))
    settings, write = FeatureSettings(cache=tmp_path / "cache"), bank.write_atomically
    expected = extract(clip, dataset.source, dataset.split.train, FeatureSettings(cache=tmp_path / "other"))

    def full(path, save):
        if path.is_relative_to(tmp_path):
            raise WriteError(f"cannot write {path}: No space left on device")
        write(path, save)

    monkeypatch.setattr(bank, "write_atomically", full)
    found = extract(clip, dataset.source, dataset.split.train, settings)
    rows = torch.arange(len(found.labels))
    assert torch.equal(*(each.select(rows, torch.zeros_like(rows)).pooled for each in (found, expected)))
    assert "No space left on device: the features are computed for this process alone" in caplog.text
    monkeypatch.setattr(bank, "write_atomically", lambda path, _: full(tmp_path / path.name, None))
    with pytest.raises(WriteError, match="another folder of features: cache='DIR' or .XRVLM_CACHE"):
        extract(clip, dataset.source, dataset.split.train, settings, needs=("tokens",))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_what_is_no_file_is_no_shard(tmp_path):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=3))
    settings = FeatureSettings(views=0, cache=tmp_path / "cache")
    extract(clip, dataset.source, dataset.split.train, settings)
    (shard,) = (tmp_path / "cache").rglob("shard-*.safetensors")
    shard.unlink()
    os.mkfifo(shard)                     # opening it would wait for a writer
    shard.with_name("shard-a.safetensors").mkdir()
    assert len(extract(clip, dataset.source, dataset.split.train, settings).labels) == len(dataset.split.train)
    assert len(banks(tmp_path / "cache")) == 1


def test_where_a_disk_is_full_the_processes_that_decode_end(tmp_path, monkeypatch):
    clip, dataset = tiny_vit(), image_folder(photo_folder(tmp_path / "photos", images=60))
    alive, elsewhere = [], source.for_this_process

    def full(path, save):
        alive.append(len(active_children()))
        raise WriteError(f"cannot write {path}: No space left on device")

    def counted(*arguments):
        alive.append(len(active_children()))
        monkeypatch.undo()
        return elsewhere(*arguments)

    monkeypatch.setattr(bank, "SHARD_IMAGES", 32)
    monkeypatch.setattr(bank, "write_atomically", full)
    monkeypatch.setattr(source, "for_this_process", counted)
    extract(clip, dataset.source, dataset.split.train, FeatureSettings(cache=tmp_path / "cache"), workers=1)
    assert alive[0] == 1                 # it writes while the tower encodes
    assert alive[-1] == 0                # before the features are computed again
