import json
import os
import time

import pytest
import torch
from photos import photo_folder
from safetensors.torch import save_file

from xrvlm.cli.main import main
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.features.cache import CURRENT, STALE, UNREADABLE, banks, prune, table
from xrvlm.features.source import FeatureSettings, extract
from xrvlm.files import alone


@pytest.fixture
def cache(clip, tmp_path):
    """A bank of today, one of each older revision, one that is damaged, and a drawn world of two versions."""
    dataset = image_folder(photo_folder(tmp_path / "birds", images=2))
    extract(clip, dataset.source, dataset.split.train, FeatureSettings(cache=str(tmp_path / "cache")))
    features = tmp_path / "cache" / "features"
    (today,) = features.iterdir()
    for name, key in (("by_list", {"ids": ["a", "b"], "format": 1}), ("later", {"format": 99})):
        (features / name).mkdir()
        whole = json.loads((today / "key.json").read_text()) | key
        (features / name / "key.json").write_text(json.dumps(whole))
        save_file({"pooled": torch.zeros(2, 1, 4)}, features / name / "shard-00000.safetensors",
                  {"xrvlm": json.dumps({"key": name})})
    (features / "broken").mkdir()
    (features / "broken" / "shard-1.safetensors").write_bytes(b"no shard")
    for version in (0, 1):
        photo_folder(tmp_path / "cache" / f"drawn_birds-{version}" / "world0", images=1)
    return tmp_path / "cache"


def states(cache):
    return {bank.folder.name: bank.state for bank in banks(cache)}


def test_every_bank_is_listed_with_its_state(cache):
    found = states(cache)
    (today,) = set(found) - {"by_list", "later", "broken", "drawn_birds-0", "drawn_birds-1"}
    assert found == {today: CURRENT, "by_list": STALE, "later": STALE, "broken": UNREADABLE, "drawn_birds-0": STALE,
                     "drawn_birds-1": CURRENT}
    images = {bank.folder.name: bank.images for bank in banks(cache)}
    assert images[today] == 6 and images["by_list"] == 2 and images["drawn_birds-1"] == 3
    assert today in table(banks(cache))


def test_pruning_deletes_what_no_run_reads(cache):
    kept = {name for name, state in states(cache).items() if state == CURRENT}
    assert {bank.folder.name for bank in prune(cache, dry_run=True)} == set(states(cache)) - kept
    assert len(states(cache)) == 6
    prune(cache)
    assert set(states(cache)) == kept
    assert len(prune(cache, every=True)) == 2
    assert states(cache) == {}


def test_a_link_is_no_part_of_the_cache(cache, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"x")
    (cache / "features" / "link").symlink_to(tmp_path / "mine")
    (cache / "drawn_birds-7").symlink_to(tmp_path / "mine")
    deleted = {bank.folder.name for bank in prune(cache, every=True)}
    assert not deleted & {"link", "drawn_birds-7"}
    assert list((cache / "features").iterdir()) == [cache / "features" / "link"]
    assert (tmp_path / "mine" / "photo.png").exists()


def test_pruning_by_age(cache):
    (today,) = (bank for bank in banks(cache) if bank.state == CURRENT and bank.what != "drawn birds")
    assert today.folder not in {bank.folder for bank in prune(cache, older_than="1h")}
    long_ago = time.time() - 3 * 86400
    for path in today.folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert today.folder in {bank.folder for bank in prune(cache, older_than="2d")}
    with pytest.raises(UserError, match="must be a time such as 12h"):
        prune(cache, older_than="soon")


def test_a_bank_that_is_being_filled_stays(cache, caplog):
    lock = cache / "features" / "later" / ".lock-1"
    with alone(lock):
        prune(cache)
    assert "not deleted" in caplog.text and "later" in states(cache)


def test_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path / "nothing"))
    assert banks() == []
    with pytest.raises(UserError, match=r"other is no folder; give the folder of a cache with cache, or leave it out"):
        banks(tmp_path / "other")
    assert table([]).startswith("0 folders, 0.0 MB.")


def test_the_commands(cache, capsys):
    assert main(["cache", "list", f"cache={cache}"]) == 0
    assert "older version" in capsys.readouterr().out
    assert main(["cache", "prune", f"cache={cache}", "dry_run=true"]) == 0
    assert len(states(cache)) == 6
    assert main(["cache", "prune", f"cache={cache}"]) == 0
    assert "4 folders" in capsys.readouterr().out
    assert len(states(cache)) == 2


def test_an_empty_folder_of_the_cache_has_the_age_of_the_folder(tmp_path):
    (tmp_path / "features" / "empty").mkdir(parents=True)
    (bank,) = banks(tmp_path)
    assert bank.size == 0 and time.time() - bank.used < 1000
    assert prune(tmp_path, older_than="1d", dry_run=True) == [bank]            # it is unreadable, whatever its age
