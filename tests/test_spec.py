"""The text form ``name:key=value,…``: what is written reads back, what is wrong is told."""

from __future__ import annotations

import doctest
import math

import pytest

from attnbench import errors
from attnbench.errors import UserError, suggest, unknown
from attnbench.spec import format_spec, parse_spec, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("64", 64),
        ("-3", -3),
        (" 64 ", 64),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("2.0", 2.0),
        ("max-autotune", "max-autotune"),
        (" bf16 ", "bf16"),
        ("", ""),
        ("nan", "nan"),  # a NaN would travel into records
        ("inf", "inf"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("3+4", "3+4"),
        ("0-1", "0-1"),
    ],
)
def test_a_value_is_read_in_its_own_type(text, value):
    got = parse_value(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("triton", "triton", {}),
        ("triton:", "triton", {}),
        ("triton:block_m=64", "triton", {"block_m": 64}),
        (" triton : block_m = 64 , fast = true ", "triton", {"block_m": 64, "fast": True}),
        ("a:mode=x=y", "a", {"mode": "x=y"}),
        ("a:path=b:c", "a", {"path": "b:c"}),
        ("sdpa-*:x=1,", "sdpa-*", {"x": 1}),
    ],
)
def test_a_spec_is_a_name_and_options(text, name, options):
    assert parse_spec(text) == (name, options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("triton:64", "'triton:64': option '64' must look like key=value"),
        ("triton:=64", "option '=64' must look like key=value"),
        ("triton:a=1,a=2", "option 'a' is given twice"),
    ],
)
def test_a_wrong_spec_is_told_with_the_whole_text(text, says):
    with pytest.raises(UserError) as error:
        parse_spec(text)
    assert says in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_m": 64},
        {"fast": True, "slow": False},
        {"share": 0.25, "eps": 1e-05, "big": 1e22, "whole": 2.0, "negative": -0.5},
        {"mode": "max-autotune", "empty": "", "path": "a:b=c"},
    ],
)
def test_what_is_written_reads_back_with_its_types(options):
    name, again = parse_spec(format_spec("x", options))
    assert (name, again) == ("x", options)
    assert {k: type(v) for k, v in again.items()} == {k: type(v) for k, v in options.items()}


def test_equal_specs_are_equal_text_whatever_the_order():
    assert format_spec("x", {"b": 1, "a": 2}) == format_spec("x", {"a": 2, "b": 1}) == "x:a=2,b=1"
    assert format_spec("x", {}) == "x"


@pytest.mark.parametrize("value", ["a,b", "64", "true", "0.5", " a", math.nan, math.inf])
def test_a_value_that_would_not_read_back_is_refused(value):
    with pytest.raises(UserError, match=r"option mode=.* has no text form"):
        format_spec("x", {"mode": value})


def test_unknown_names_come_with_what_is_allowed_and_the_nearest():
    text = str(unknown("mask", "casual", ["full", "causal"], where="suites/x.toml"))
    assert text == (
        "suites/x.toml: unknown mask 'casual'; allowed: full, causal; did you mean 'causal'?"
    )
    assert str(unknown("mask", "zzz", ["full"])) == "unknown mask 'zzz'; allowed: full"
    assert str(unknown("mask", "zzz", [])) == "unknown mask 'zzz'; allowed: none"
    assert suggest("zzz", ["full"]) == ""


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(errors).failed == 0
    assert doctest.testmod(errors).attempted > 0
