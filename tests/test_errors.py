"""Checks of given values, and how a message names an option to whoever reads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from xrvlm.errors import (
    SPEAKS_KEYS,
    UserError,
    check_choice,
    check_options,
    check_types,
    fits,
    option,
    seconds_of,
    typed,
    unknown,
)


def takes(*, parts: int = 4, rate: float = 1.0, words: str | None = None, kind: Literal["a", "b"] = "a",
          flag: bool = False, scale: tuple[float, float] = (0.5, 1.0)): ...


@pytest.mark.parametrize("given", [
    {}, {"parts": 2}, {"rate": 1}, {"words": None}, {"words": "x"}, {"kind": "b"}, {"flag": True}, {"scale": [0, 1]}])
def test_good_options_pass(given):
    check_options(takes, given, "method")


@pytest.mark.parametrize(("given", "message"), [
    ({"part": 2}, "unknown option 'method.part'; did you mean 'method.parts'.*available: .*"),
    ({"parts": "x"}, "method.parts must be a whole number, found 'x'"),
    ({"parts": True}, "method.parts must be a whole number, found True"),
    ({"parts": 1.5}, "method.parts must be a whole number"),
    ({"rate": "fast"}, "method.rate must be a number"),
    ({"words": 3}, "method.words must be a text or null"),
    ({"kind": "c"}, "unknown method.kind 'c'; available: a, b"),
    ({"flag": 1}, "method.flag must be true or false"),
    ({"scale": 0.5}, "method.scale must be"),
])
def test_bad_options_are_told(given, message, monkeypatch):
    monkeypatch.setenv(SPEAKS_KEYS, "1")
    with pytest.raises(UserError, match=message):
        check_options(takes, given, "method")


def test_unknown_names_what_is_there_and_what_is_close():
    text = str(unknown("class-name list", "cubs", ["cub", "cars"], "or pass a path"))
    assert text == "unknown class-name list 'cubs'; did you mean 'cub'?; available: cars, cub; or pass a path"


def test_a_message_names_arguments_in_python_and_keys_on_the_command_line(monkeypatch):
    assert (option("data.skip_damaged", True), option("text.parts")) == ("skip_damaged=True", "parts")
    with pytest.raises(UserError, match="^flag must be True or False, found None$"):
        check_options(takes, {"flag": None}, "method")
    monkeypatch.setenv(SPEAKS_KEYS, "1")
    assert (option("data.skip_damaged", True), option("text.parts")) == ("data.skip_damaged=true", "text.parts")
    with pytest.raises(UserError, match="^method.flag must be true or false, found null$"):
        check_options(takes, {"flag": None}, "method")


@pytest.mark.parametrize(("value", "hint", "right"), [
    (1, float, True), (True, int, False), ("a", Sequence[str], False),
    (("a", "b"), Sequence[str], True),
    (["a", 3], Sequence[str], False),
    ((0.1, 0.2, 0.3), tuple[float, float], False), ((), tuple[float, ...], True),
    ({"a": 1}, Mapping[str, Any] | None, True), (None, str | None, True), (Path(), str | Path, True),
    (print, Any, True),
    (b"a", str | Path, False)])
def test_types_of_values(value, hint, right):
    assert fits(value, hint) is right


def test_arguments_are_checked_before_anything_is_done():
    done = []

    @typed
    def label(images: Sequence[str], *, topk: int = 5) -> int:
        """Label them."""
        done.append(images)
        return topk

    assert (label(["a"]), label(images=("a",), topk=2), label.__doc__) == (5, 2, "Label them.")
    for call, message in ((lambda: label("a"), "images must be a list, found 'a'"),
                          (lambda: label(["a"], topk="2"), "topk must be a whole number, found '2'"),
                          (lambda: label(["a"], top=2),
                           "unknown argument of label 'top'; did you mean 'topk'?; available: images, topk")):
        with pytest.raises(UserError) as raised:
            call()
        assert str(raised.value) == message
    assert len(done) == 2


def test_times():
    assert [seconds_of("older_than", text, "", "hdw") for text in ("12h", "1.5 d", "2w")] == [43200, 129600, 1209600]
    assert seconds_of("budget", 10, "", "smh", "m") == 600
    for wrong in ("10", "5m", "h", "0d", None):
        with pytest.raises(UserError, match="^older_than must be a time such as 12h or 8w; found "):
            seconds_of("older_than", wrong, "12h or 8w", "hdw")


@pytest.mark.parametrize("value", ["coop", "coop,clap", "[a,b],[c]", "glob([coop*,xr*])", "glob(*,exclude=[a,b])", "[]",
                                   "'2024'", "{epochs: 5}", "2stage", "my-own/method"])
def test_names_of_configurations_pass(value):
    check_choice("recipe", value, ("recipe", "experiment"))


@pytest.mark.parametrize("value", ["1", "null", "0.5", "1e-5", "nan", "[1]", "coop,1", "true", "[{a: 1}]", "1_000"])
def test_what_can_be_no_name_of_a_configuration_is_refused(value):
    with pytest.raises(UserError, match="names no configuration: leave recipe= out for the default"):
        check_choice("recipe", value, ("recipe",))
    check_choice("seed", value, ("recipe",))


def test_a_number_that_no_file_may_hold_is_refused_before_any_work():
    for hint in (int, float, int | None):
        with pytest.raises(UserError, match="seed must be a.* number.*, found one of more than 64 bits"):
            check_types({"seed": 2**70}, {"seed": hint})
    check_types({"seed": 2**63}, {"seed": int})
