"""Student's t against the tables in every textbook; the gamma functions against their values."""

from __future__ import annotations

import math

import pytest

from attnbench.distributions import (
    digamma,
    t_quantile,
    t_two_sided,
    trigamma,
    trigamma_inverse,
)

TABLE = {  # two-sided 95 % and 99 % points, NIST/SEMATECH e-Handbook, section 1.3.6.7.2
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    5: (2.571, 4.032),
    6: (2.447, 3.707),
    10: (2.228, 3.169),
    30: (2.042, 2.750),
    100: (1.984, 2.626),
}


@pytest.mark.parametrize("df", TABLE)
def test_quantiles_are_those_of_the_published_table(df: int) -> None:
    for confidence, published in zip((0.95, 0.99), TABLE[df], strict=True):
        assert t_quantile(confidence, df) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("df", [1, 2.5, 7, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_a_quantile_leaves_the_rest_outside(df: float, confidence: float) -> None:
    assert t_two_sided(t_quantile(confidence, df), df) == pytest.approx(1 - confidence, rel=1e-9)


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0, 3.0, 50.0, 1e6])
def test_probabilities_are_the_closed_forms_of_one_and_two_degrees(t: float) -> None:
    assert t_two_sided(t, 1) == pytest.approx(2 / math.pi * math.atan(1 / t), rel=1e-9)
    root = math.sqrt(2 + t * t)  # 1 − t ÷ root, without losing digits
    assert t_two_sided(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-9)


def test_the_sign_does_not_matter_and_zero_is_certain() -> None:
    assert t_two_sided(-2.5, 4) == t_two_sided(2.5, 4)
    assert t_two_sided(0.0, 4) == 1.0


def test_many_degrees_are_the_normal_distribution() -> None:
    assert t_two_sided(1.959964, 1e7) == pytest.approx(0.05, rel=1e-5)


def test_gamma_derivatives_have_their_known_values() -> None:
    euler = 0.5772156649015329
    assert digamma(1) == pytest.approx(-euler, rel=1e-9)
    assert digamma(0.5) == pytest.approx(-euler - 2 * math.log(2), rel=1e-9)
    assert digamma(10) == pytest.approx(sum(1 / n for n in range(1, 10)) - euler, rel=1e-9)
    assert trigamma(1) == pytest.approx(math.pi**2 / 6, rel=1e-8)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, rel=1e-8)


@pytest.mark.parametrize("x", [0.1, 1.0, 3.7, 100.0])
def test_the_inverse_of_trigamma_undoes_it(x: float) -> None:
    assert trigamma_inverse(trigamma(x)) == pytest.approx(x, rel=1e-6)
