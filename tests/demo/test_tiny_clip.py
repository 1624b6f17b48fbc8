import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xrvlm.demo import drawn_birds, pretrain, tiny_clip
from xrvlm.demo.tiny_clip import load_tiny_clip
from xrvlm.errors import UserError


def test_the_file_is_small_and_is_the_one_of_the_record():
    assert tiny_clip.CHECKPOINT.stat().st_size <= 10e6
    record = json.loads(tiny_clip.CHECKPOINT.with_name("tiny_clip_record.json").read_text())
    assert record["benchmark_version"] == drawn_birds.VERSION
    found = record["world_0_training_images"]
    assert 50 <= found["descriptions"] <= 70
    assert found["names"] > 2.5 * 2              # chance is 2.5
    assert found["probe_16_shots"] < 85
    kinds = drawn_birds.species(0)
    clip = load_tiny_clip(device="cpu")
    images = np.stack([drawn_birds.image_of(0, "train", kind, index) for kind in range(40) for index in range(8)])
    x = clip.encode_image(pretrain._normalise(images)).pooled
    described = clip.encode_text([drawn_birds.description(kind) for kind in kinds])
    right = (x @ described.T).argmax(dim=1) == torch.arange(40).repeat_interleave(8)
    # a quarter of the record's images: twice their standard error, 2 * sqrt(0.65 * 0.35 / 320) = 5.3 points
    assert 100 * right.float().mean().item() == pytest.approx(found["descriptions"], abs=5.5)


def test_the_default_settings_are_those_of_the_shipped_file():
    record = json.loads(tiny_clip.CHECKPOINT.with_name("tiny_clip_record.json").read_text())
    assert vars(pretrain.Settings()) == record["settings"]


def test_saved_and_loaded_it_is_the_same_function(tmp_path):
    torch.manual_seed(0)
    model = tiny_clip.build().half().float().eval()
    ids = torch.tensor([7, 320, 49406, 49407])
    model.token_embedding.weight.data = tiny_clip.token_rule(*model.token_embedding.weight.shape)
    model.token_embedding.weight.data[ids] = torch.randn(4, 128).half().float()
    tiny_clip.save(model, tmp_path / "x.safetensors", ids, {})
    loaded = tiny_clip.load(tmp_path / "x.safetensors")
    tokens, images = tiny_clip.tokenizer()(["a finch", "Sarkel's wren"]), torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.encode_text(tokens), model.encode_text(tokens))
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))


def test_the_rule_of_unseen_rows_is_exact_and_nearly_normal():
    table = tiny_clip.token_rule(1000, 128)
    assert torch.equal(table, tiny_clip.token_rule(1000, 128))
    assert table.mean().abs() < 1e-3
    assert table.std().item() == pytest.approx(0.02, rel=0.02)
    expected = [0.003324768040329218, -0.019244009628891945, 0.01585475541651249]
    assert table[3, :3].tolist() == expected     # on every machine, for ever


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_damaged_file_is_told(tmp_path, damage):
    path = tmp_path / "tiny.safetensors"
    data = tiny_clip.CHECKPOINT.read_bytes()
    if damage != "missing":
        path.write_bytes(data[:-1000] if damage == "truncated" else data.replace(b"visual.proj", b"visual.pro_", 1))
    with pytest.raises(UserError, match=r"tiny\.safetensors.*install xrvlm again"):
        tiny_clip.load(path)


def test_a_short_pretraining_learns_and_leaves_a_file_that_loads(tmp_path):
    settings = pretrain.Settings(steps=3, images=64, batch_size=16)
    images, captions = pretrain._draw(settings)
    tokens, token_ids = pretrain._tokenize(captions)
    torch.manual_seed(0)
    before = tiny_clip.build()
    table = before.token_embedding.weight.detach().clone()
    after = pretrain._train(before, images, tokens, token_ids, settings)
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[token_ids] = False
    assert torch.equal(after.token_embedding.weight[unseen], table[unseen])
    assert not torch.equal(after.token_embedding.weight[~unseen], table[~unseen])
    tiny_clip.save(after, tmp_path / "x.safetensors", token_ids, {})
    loaded = tiny_clip.load(tmp_path / "x.safetensors")
    text = tiny_clip.tokenizer()(["a photo of a finch."])
    similarity = F.cosine_similarity(loaded.encode_text(text), after.encode_text(text))
    assert similarity.item() > 0.999             # fp16 on disk


def test_the_pretraining_command_leaves_a_file_that_loads_and_its_record(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(pretrain, "figures", lambda model: measured.append(model) or {"descriptions": 1.0})
    out, threads = tmp_path / "x.safetensors", torch.get_num_threads()
    try:
        pretrain.main(["--steps", "3", "--images", "64", "--batch-size", "16", "--out", str(out), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "x_record.json").read_text())
    assert (record["images_seen"], record["world_0_training_images"]) == (48, {"descriptions": 1.0})
    again = tiny_clip.load(out).state_dict()
    # what is recorded is measured on the file as it is read back, not on the model in memory
    assert all(torch.equal(value, again[name]) for name, value in measured[0].state_dict().items())
    assert all(torch.equal(value, value.half().float()) for name, value in again.items() if name != tiny_clip.TABLE)


def test_the_rows_of_captions_are_found_again():
    said = [["a red wren.", "a wren with a tall crest.", "a bird."]]
    tokens, token_ids = pretrain._tokenize(said)
    whole = torch.stack([tiny_clip.tokenizer()(captions) for captions in said])
    assert torch.equal(token_ids[tokens], whole[..., :tokens.shape[-1]])
    assert not whole[..., tokens.shape[-1]:].any()
