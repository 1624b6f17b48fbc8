"""Cross-validation within a budget, from Python and as a user types it."""

import json
import re
import shlex
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from command_line import TINY, told
from photos import photo_folder

import xrvlm
from xrvlm.cli.main import main
from xrvlm.data.dataset import with_test_set
from xrvlm.data.extra import with_extra
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.experiments import budget, compare
from xrvlm.experiments.compare import Candidate, CompareOptions, default_candidates
from xrvlm.experiments.compare import compare as compare_methods
from xrvlm.features import bank
from xrvlm.features.source import FeatureSettings, bank_bytes
from xrvlm.methods import XRVLM, CoOp, LinearProbe, ResidualProbe, TipAdapter, TransCLIP, ZeroShot
from xrvlm.methods.base import Recipe

pytestmark = pytest.mark.usefixtures("at_home")
SHORT = Recipe("short", epochs=2, batch_size=8)
PROBE = Candidate("residual_probe", ResidualProbe, SHORT)
CANDIDATES = (Candidate("zero_shot", ZeroShot), Candidate("linear_probe", LinearProbe), PROBE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "my birds", images=8)


@pytest.fixture
def terms(tmp_path):
    return CompareOptions(folds=3, runs=tmp_path / "runs", features=FeatureSettings(views=1))


@pytest.fixture
def folds(monkeypatch) -> list[str]:
    """The label of the method of each fold that is fitted."""
    done, keep = [], compare.learn
    monkeypatch.setattr(compare, "learn", lambda method, *rest, **options: done.append(method.label) or keep(
        method, *rest, **options))
    return done


def test_every_method_is_scored_on_every_labelled_image_and_on_no_test_image(clip, photos, terms, monkeypatch):
    dataset, read = image_folder(photos), set()
    keep = type(dataset.source).read
    monkeypatch.setattr(type(dataset.source), "read", lambda source, name: read.add(name) or keep(source, name))
    found = compare_methods(clip, dataset, CANDIDATES, options=terms)
    whole = with_test_set(dataset.split)
    assert [score.words for score in found.scores] == ["zero_shot", "linear_probe", "residual_probe"]
    assert {len(score.hits) for score in found.scores} == {len(whole.train)} == {18}
    assert read == {item.id for item in whole.train}
    assert found.scores[1].accuracy > 0.9            # the classes differ in their colour
    assert found.recommendation.chosen in found.scores
    assert found.left_out == {}


def test_extra_images_that_a_fold_would_hold_out_are_refused(clip, photos, terms, tmp_path):
    dataset = image_folder(photos)
    photo = photos / dataset.split.train[0].id
    (tmp_path / "extra" / photo.parent.name).mkdir(parents=True)
    (tmp_path / "extra" / photo.parent.name / "same.png").write_bytes(photo.read_bytes())
    with pytest.raises(UserError, match="1 of 1 extra images are training images: .*; remove them from"):
        compare_methods(clip, with_extra(dataset, tmp_path / "extra"), [CANDIDATES[0], PROBE], options=terms)


def test_features_are_extracted_once_for_all_folds_and_methods(clip, photos, terms, monkeypatch):
    made, make = [], bank.encoded
    monkeypatch.setattr(bank, "encoded", make)
    monkeypatch.setattr("xrvlm.features.source.encoded", lambda *arguments: (
        made.append(len(features["pooled"])) or features for features in make(*arguments)))
    more = (*CANDIDATES, Candidate("mid", partial(LinearProbe, inputs="pooled+mid")), Candidate("tip", TipAdapter))
    found = compare_methods(clip, image_folder(photos), more, options=terms)
    assert len(found.scores) == 5
    assert sum(made) == 18 + 18                      # without augmented views for closed forms, with them for training


def test_a_fold_learns_nothing_from_the_images_that_it_holds_out(clip, photos, terms, monkeypatch):
    seen, keep = [], LinearProbe.prepare
    monkeypatch.setattr(LinearProbe, "prepare", lambda method, tower, support, val=None: seen.append(set(support.ids))
                        or keep(method, tower, support, val))
    compare_methods(clip, image_folder(photos), CANDIDATES[1:2], options=terms)
    assert [len(ids) for ids in seen] == [12, 12, 12]
    assert not set.intersection(*seen)               # each is held out once


def test_what_was_finished_is_not_done_again(clip, photos, terms, folds, monkeypatch):
    write, written = compare.write_json, []

    def interrupted(path, value):
        write(path, value)
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    dataset = image_folder(photos)
    monkeypatch.setattr(compare, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_methods(clip, dataset, CANDIDATES, options=terms)
    monkeypatch.setattr(compare, "write_json", write)
    (report,) = (terms.runs).rglob("compare.md")
    assert "not finished" in report.read_text() and "zero_shot" in report.read_text()
    before = list(folds)
    found = compare_methods(clip, dataset, CANDIDATES, options=terms)
    labels = ["CLIP zero-shot", "linear probe", "residual probe"]
    assert folds == [label for label in labels for _ in range(3)]
    assert len(before) == 5
    straight = replace(terms, runs=terms.runs.parent / "straight")
    other = compare_methods(clip, dataset, CANDIDATES, options=straight)
    assert [score.hits for score in found.scores] == [score.hits for score in other.scores]
    folds.clear()
    more = compare_methods(clip, dataset, [*CANDIDATES, Candidate("tip_adapter", TipAdapter)], options=terms)
    assert folds == ["Tip-Adapter"] * 3
    assert len(more.scores) == 4


def test_a_method_that_does_not_fit_in_the_budget_is_left_out_and_told(clip, photos, terms, folds):
    long = Candidate("coop", CoOp, Recipe("long", epochs=10**6, batch_size=8))
    start = time.monotonic()
    found = compare_methods(clip, image_folder(photos), [*CANDIDATES[:2], long, PROBE], options=terms)
    assert time.monotonic() - start < 60
    assert [score.words for score in found.scores] == ["zero_shot", "linear_probe", "residual_probe"]
    assert re.match(r"it would take about [\d.]+ minutes more, and .* were left", found.left_out["coop"])
    assert "CoOp" not in folds


def test_a_first_fold_that_took_too_long_ends_a_method(clip, photos, terms, folds, monkeypatch):
    keep = compare.learn

    def slow(method, *rest, **options):
        progress = keep(method, *rest, **options)
        progress.seconds = 10_000 if method.label == "linear probe" else 0
        return progress

    monkeypatch.setattr(compare, "learn", slow)
    found = compare_methods(clip, image_folder(photos), CANDIDATES, options=terms)
    assert "it would take about 333.3 minutes more" in found.left_out["linear_probe"]
    assert folds.count("linear probe") == 1
    assert len(found.scores) == 2


def test_features_that_do_not_fit_in_the_budget_are_not_made(clip, photos, terms, monkeypatch):
    monkeypatch.setattr(budget, "seconds_an_image", lambda *_: 1e6)
    found = compare_methods(clip, image_folder(photos), CANDIDATES, options=terms)
    assert [score.words for score in found.scores] == ["zero_shot", "linear_probe"]
    assert "its features alone would take about" in found.left_out["residual_probe"]


def test_the_first_method_is_finished_whatever_the_budget(clip, photos, tmp_path):
    terms = CompareOptions(folds=3, runs=tmp_path, budget="0.001s", features=FeatureSettings(views=1))
    found = compare_methods(clip, image_folder(photos), CANDIDATES, options=terms)
    assert found.recommendation.chosen.words == "zero_shot"
    assert set(found.left_out.values()) == {"the budget was spent before it"}


def test_a_method_that_does_not_fit_the_data_is_left_out(clip, photos, terms):
    wrong = Candidate("wrong", partial(LinearProbe, inputs="nothing"))
    found = compare_methods(clip, image_folder(photos), [wrong, CANDIDATES[1]], options=terms)
    assert "unknown inputs 'nothing'" in found.left_out["wrong"]
    with pytest.raises(UserError, match=r"none of the candidates could be scored: .*unknown inputs"):
        compare_methods(clip, image_folder(photos), [wrong], options=terms)


def test_a_transductive_method_sees_the_held_out_images_and_no_others(clip, photos, terms, monkeypatch):
    seen, keep = [], TransCLIP.transduce
    monkeypatch.setattr(TransCLIP, "transduce", lambda method, tower, unlabelled, support, val=None: seen.append(
        (len(unlabelled.pooled), len(support.ids))) or keep(method, tower, unlabelled, support, val))
    found = compare_methods(clip, image_folder(photos), [Candidate("trans_clip", TransCLIP)], options=terms)
    assert seen == [(6, 12)] * 3
    assert len(found.scores[0].hits) == 18


def test_a_class_with_one_image_is_trained_on_and_not_scored(clip, tmp_path, terms, caplog):
    root = photo_folder(tmp_path / "birds", images=6)
    for path in sorted((root / "wren").iterdir())[1:]:
        path.unlink()
    found = compare_methods(clip, image_folder(root), CANDIDATES[1:2], options=terms)
    assert "Classes of one labelled image are trained on and never scored: wren." in caplog.text
    assert "never scored: wren" in found.caption
    assert len(found.scores[0].hits) == 8


@pytest.mark.parametrize(("options", "message"), [
    ({"folds": 1}, "folds must be a whole number, at least 2; found 1"),
    ({"features": FeatureSettings(mode="online")}, "leave mode='online' out"),
])
def test_terms_that_cannot_be_are_told(options, message):
    with pytest.raises(UserError, match=message):
        CompareOptions(**options)


def test_nothing_to_compare_is_told(clip, photos):
    with pytest.raises(UserError, match="nothing to compare"):
        compare_methods(clip, image_folder(photos), [])


def arguments(photos, *more) -> list[str]:
    return ["compare", f"data.root={photos}", "folds=3", "features.views=1", *TINY, *more]


def test_a_user_compares_and_gets_the_command_for_the_best(photos, tmp_path, capsys):
    names = "candidates=[zero_shot,linear_probe,'residual_probe recipe.epochs=2']"
    assert main(arguments(photos, names, "shots=4")) == 0
    out = capsys.readouterr().out
    report = json.loads(next(tmp_path.rglob("compare.json")).read_text())
    assert report["recommended"] in ("linear_probe", "residual_probe recipe.epochs=2")
    assert f"Recommended: {report['recommended']}. " in " ".join(out.split()) + " "
    assert "The best of 3 is picked by these very numbers" in " ".join(out.split())
    assert report["command"] in out and report["command"] in next(tmp_path.rglob("compare.md")).read_text()
    assert [score["words"] for score in report["scores"]] == ["zero_shot", "linear_probe",
                                                             "residual_probe recipe.epochs=2"]
    program, *command = shlex.split(report["command"])
    assert program == "xrvlm"
    assert main(command) == 0
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json"))
    assert record["shots"] == 4
    assert record["method"] == report["recommended"].split()[0]


def test_a_method_that_is_named_twice_is_one_candidate(clip, photos, terms):
    names = ["zero_shot", "gda", "gda method.fit_prior=false", "gda ", "gda method.fit_prior=true"]
    found = compare_methods(clip, image_folder(photos), names, options=terms)
    assert [score.words for score in found.scores] == ["zero_shot", "gda", "gda method.fit_prior=true"]


def test_an_interruption_keeps_what_is_done(photos, capsys, monkeypatch):
    monkeypatch.setattr(compare, "predicted", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(arguments(photos, "candidates=[zero_shot]")) == 130
    assert "the same command goes on where it was" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "message"), [
    (("candidates=[nothing]",), "unknown method 'nothing'; available: "),
    (("candidates=['linear_probe seed=2']",), "a candidate is the name of a method and options of it"),
    (("candidates=['']",), "a candidate is the name of a method"),
    (("candidates=['gda method.fit_prior={']",), "the candidate 'gda method.fit_prior={' has a value that cannot be "),
    (("budget=soon",), "budget must be a time such as 10m"),
    (("folds=1",), "folds must be a whole number, at least 2"),
    (("shots=1",), "cross-validation needs two"),
])
def test_mistakes_are_told_in_one_line(photos, capsys, given, message):
    assert message in told(capsys, *arguments(photos, *given))


def test_the_candidates_of_the_configuration_are_all_registered():
    scored = [Candidate.parse(words) for words in default_candidates()]
    assert [candidate.words for candidate in scored][:2] == ["zero_shot", "ss_text"]
    assert all(torch.nn.Module in candidate.method.func.__mro__ for candidate in scored)
    assert [candidate.recipe for candidate in scored if candidate.words == "xr_vlm recipe=fast"] == [{"name": "fast"}]


def test_a_candidate_whose_features_are_too_large_takes_no_other_with_it(clip, photos, terms):
    dataset = image_folder(photos)
    few, many = (bank_bytes(clip, 18, terms.features, needs, 1) for needs in (("pooled",), ("pooled", "mid_tokens")))
    tight = replace(terms, features=replace(terms.features, budget_gb=(few + many) / 2e9))
    large = Candidate("xr_vlm", partial(XRVLM, image_parts=2, text_parts=2), Recipe("short", epochs=1, batch_size=8))
    found = compare_methods(clip, dataset, [CANDIDATES[0], PROBE, large], options=tight)
    assert [score.words for score in found.scores] == ["zero_shot", "residual_probe"]
    assert re.match(r"its features take .* GB, over budget_gb=", found.left_out["xr_vlm"])


def test_a_candidate_that_the_device_cannot_do_is_left_out(clip, photos, terms, monkeypatch):
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(LinearProbe, "prepare", no_memory)
    found = compare_methods(clip, image_folder(photos), CANDIDATES[:2], options=terms)
    assert [score.words for score in found.scores] == ["zero_shot"]
    assert found.left_out["linear_probe"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate"


def test_the_call_that_is_recommended_in_python_has_all_options_of_the_comparison(clip, photos, tmp_path):
    dataset, features = image_folder(photos), FeatureSettings(views=1)
    text = {"templates": "a photo of a {}."}
    found = compare_methods(clip, dataset, ["residual_probe recipe.epochs=2"], text=text, options=CompareOptions(
        shots=4, seed=3, folds=3, runs=tmp_path / "mine", features=features))
    run = eval(found.command, {"xrvlm": xrvlm, "clip": clip, "dataset": dataset})
    assert (run.folder.parent, run.record.shots, run.record.seed) == (tmp_path / "mine", 4, 3)
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (saved["recipe"]["epochs"], saved["features"]["views"], saved["text"]) == (2, 1, text)


def test_a_training_that_outlasts_the_budget_is_stopped(clip, photos, tmp_path, monkeypatch):
    """The estimate was too low, as on a machine that others use."""
    monkeypatch.setattr(compare, "training_seconds", lambda *_: 0.0)
    terms = CompareOptions(folds=3, runs=tmp_path, budget="2s", features=FeatureSettings(views=1))
    long = Candidate("coop", CoOp, Recipe("long", epochs=10**6, batch_size=8))
    found = compare_methods(clip, image_folder(photos), [CANDIDATES[0], long], options=terms)
    assert re.fullmatch(r"its time was over in epoch \d+ of 1000000|the budget was spent before it",
                        found.left_out["coop"])
