"""A fixed sample of the hostile inputs of tests/fuzz; `make fuzz` tries them all."""

import pytest
from fuzz import trap
from fuzz.bench import benched
from fuzz.fuzz import KINDS, PREPARED, main, sample, tried
from PIL import Image

SEED = 1
SHARES = {"images": 0.04, "tables": 0.05, "headers": 0.05, "configurations": 0.04, "cache": 0.08, "kills": 0.08}


@pytest.fixture(scope="module")
def bench():
    with benched() as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hostile_is_used_rightly_or_refused(bench, kind):
    tally = tried(bench, kind, SEED, sample(kind, SHARES[kind]))
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.used
    assert bool(tally.refused) == (kind not in ("cache", "kills"))     # neither of these stops a run


def wrong(error):
    def instead(*args, **kwargs):
        raise error

    return instead


@pytest.mark.parametrize(("name", "kind"), [
    ("fuzz.images.read_image", "images"), ("xrvlm.table", "tables"), ("xrvlm.load", "headers"),
    ("fuzz.configurations.command_line", "configurations"), ("fuzz.cache.banks", "cache")])
def test_another_error_than_that_of_a_user_is_a_failure(bench, monkeypatch, name, kind):
    monkeypatch.setattr(name, wrong(ValueError("strange")))
    tally = tried(bench, kind, SEED, range(4))
    assert any("ValueError" in failure and "strange" in failure for failure in tally.failures), tally.failures


def test_a_wrong_answer_is_a_failure(bench, monkeypatch):
    monkeypatch.setattr("fuzz.images.read_image", lambda path: Image.new("RGB", (2, 2)))
    assert len(tried(bench, "images", SEED, range(4)).failures) == 4


def test_code_that_runs_and_a_file_elsewhere_are_failures(bench, monkeypatch):
    for act, said in ((trap.spring, "code ran"), (lambda: (bench.root / "x").write_text(""), "done elsewhere")):
        monkeypatch.setattr("xrvlm.table", lambda *args, act=act, **kwargs: act())
        assert any(said in failure for failure in tried(bench, "tables", SEED, range(2)).failures)


def test_the_program_counts_and_says_what_repeats_a_failure(monkeypatch, capsys):
    monkeypatch.setitem(PREPARED, "tables", lambda bench: None)
    monkeypatch.setitem(KINDS, "tables", (wrong(KeyError("\x1b strange")), 200))
    assert main(["--only", "tables", "--share", "0.01", "--seed", "7"]) == 1
    *_, failure, last = capsys.readouterr().out.splitlines()
    assert failure.startswith("FAILURE --only tables --number 1 --seed 7: KeyError in test_fuzz.py:")
    assert "strange" in failure and "\x1b" not in failure
    assert last == "tables: 2 tried, 0 refused, 0 used, 2 failures, 0 s"
