"""Numbers and values for people."""

import doctest

import pytest

from attnbench.report import fields, units
from attnbench.stats import Interval


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(units).failed == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5e-9, "1.50 ns"), (9.999e-7, "1000 ns"), (1e-6, "1.00 µs"), (0.0123, "12.3 ms"),
        (1.0, "1.00 s"), (7200.0, "7200 s"), (3e-13, "0.000300 ns"),
    ],
)  # fmt: skip
def test_seconds_get_the_unit_that_suits_them(seconds, text):
    assert units.quantity(seconds, units.SECONDS) == text


def test_small_machines_have_gflops_and_large_ones_tflops():
    assert units.quantity(2.5e10, units.FLOPS) == "25.0 GFLOPS"
    assert units.quantity(6.6e14, units.FLOPS) == "660 TFLOPS"


def test_an_interval_has_the_digits_that_tell_its_ends_apart():
    assert units.interval(Interval(1.0, 0.9, 1.2), units.SECONDS) == "1.00 s [0.900, 1.20]"
    narrow = units.interval(Interval(0.0123456, 0.0123451, 0.0123461), units.SECONDS)
    assert narrow == "12.346 ms [12.345, 12.346]"
    exact = units.interval(Interval(0.5, 0.5, 0.5), units.SECONDS)
    assert exact == "500 ms [500, 500]"


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("heads", 8, "heads\u00a08"),
        ("heads", 0, "the model's heads"),
        ("d_ff", 0, "the model's d_ff"),
        ("position", "", "the model's position"),
        ("position", "rope", "position\u00a0rope"),
        ("batch", 0, "largest batch"),
        ("dropout", 0, "dropout\u00a00"),
        ("mask", "causal", "causal"),
    ],
)
def test_a_value_in_a_title_says_what_it_means(field: str, value: object, text: str) -> None:
    assert fields.label(field, value) == text
