"""Set-ups that many tests share."""

import gc

import pytest
import torch

import xrvlm  # noqa: F401  first: it mends torchvision where its wheel does not fit torch

torch.set_num_threads(1)                 # tiny tensors: a second thread costs more than it computes


def pytest_collection_finish() -> None:
    """What is imported by now lives on: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """`tmp_path` is the working folder and the home, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def clip():
    """A tiny ViT; modules that want another tower have a `clip` of their own."""
    from towers import tiny_vit  # not before it is asked for: it imports all of the towers' libraries

    return tiny_vit()
