import json
from dataclasses import asdict
from functools import partial

import pytest

from xrvlm.errors import UserError
from xrvlm.experiments.record import RunRecord, append_record
from xrvlm.files import RESULTS
from xrvlm.inference.classifier import MethodHeader
from xrvlm.methods import XRVLM, TipAdapter, XRVLMPlus, ZeroShot
from xrvlm.reporting.results import read_records

METRICS = {"top1": 0.5, "top5": 0.9, "mean_per_class": 0.5, "macro_f1": 0.4, "ece": 0.1}


def record(**changes) -> RunRecord:
    return RunRecord(**({
        "method": "xr_vlm", "label": "XR-VLM", "head": "cross", "prompts": "learned", "recipe": "xr_vlm",
        "data": "birds", "world": None, "backbone": "tiny", "shots": 4, "seed": 1, "label_budget": 12,
        "transductive": False, "selection": "last", "split": "abc", "metrics": METRICS, "train_seconds": 1.5,
        "learned_parameters": 10, "features": "cached", "versions": {}, "run": "a"} | changes))


@pytest.mark.parametrize(("factory", "changed"), [
    (XRVLM, {}),
    (partial(XRVLM, image_parts=4), {}),                     # given, but the default
    (partial(XRVLM, image_parts=3, live_parts=True, prior_weight=0.0), {"image_parts": 3, "live_parts": True}),
    (partial(XRVLMPlus, relate_to="text"), {"relate_to": "text"}),
    (partial(TipAdapter, alpha=2, trainable=True), {"alpha": 2, "trainable": True}),
])
def test_options_are_those_that_are_not_the_defaults(factory, changed):
    method = factory.func if isinstance(factory, partial) else factory
    assert MethodHeader.of(factory).changed(method) == changed


class OfOthers(ZeroShot):
    """A method from elsewhere, whose option is no keyword-only one."""

    def __init__(self, clip, classes, strength: float = 1.0):
        super().__init__(clip, classes)


def test_an_option_without_a_known_default_counts_as_changed():
    assert MethodHeader.of(partial(OfOthers, strength=2.0)).changed(OfOthers) == {"strength": 2.0}


def test_options_come_back_as_they_were(tmp_path):
    given = record(options={"relate_to": "text", "image_parts": 3, "shared_length": None, "prior_weight": 0.5})
    append_record(tmp_path, given)
    assert read_records(tmp_path) == [given]
    assert json.loads((tmp_path / RESULTS).read_text())["options"] == given.options


@pytest.mark.parametrize("value", ["missing", None])
def test_a_line_from_before_the_options_is_read(tmp_path, value):
    line = asdict(record()) | {"options": None}
    if value == "missing":
        for name in ("options", "setting", "protocol"):
            del line[name]
    (tmp_path / RESULTS).write_text(json.dumps(line) + "\n")
    (old,) = read_records(tmp_path)
    assert (old.options, old.setting, old.protocol) == ({}, "", "few_shot")
    append_record(tmp_path, record(run="b", options={"head": "visual"}))
    assert [each.options for each in read_records(tmp_path)] == [{}, {"head": "visual"}]


def test_options_of_the_wrong_kind_are_told(tmp_path):
    (tmp_path / RESULTS).write_text(json.dumps(asdict(record()) | {"options": ["head"]}) + "\n")
    with pytest.raises(UserError, match=r"line 1 is damaged \(missing or of the wrong type: options\); delete"):
        read_records(tmp_path)
