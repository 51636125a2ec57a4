"""The bound on learning curves: it lets rounding through and nothing that is more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.train import bound

STEPS = 100


def wander(rng: np.random.Generator, runs: int, size: float = 1e-6) -> np.ndarray:
    """Deviations as rounding makes them: many small kicks, each of which grows."""
    apart = np.zeros((runs, STEPS))
    for step in range(1, STEPS):
        apart[:, step] = 1.08 * apart[:, step - 1] + size * rng.standard_normal(runs)
    return apart


def curve() -> np.ndarray:
    return 3.0 * np.exp(-np.arange(STEPS) / 40) + 1.0


def is_within(deviation: np.ndarray, reruns: np.ndarray) -> bool:
    truth = curve()
    allowed = bound.allowed(truth.tolist(), (truth + reruns).tolist())
    return bound.gap((truth + deviation).tolist(), truth.tolist(), allowed).ok


def test_fair_curves_raise_hardly_an_alarm_even_at_twice_the_rounding() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(
        not is_within(wander(rng, 1, 2e-6)[0], wander(rng, bound.RERUNS)) for _ in range(1000)
    )
    assert alarms <= 5  # one in a thousand at most; more than five has a chance below 1e-3


@pytest.mark.parametrize("start", [0, 30, 70])
def test_a_deviation_beyond_rounding_is_found_whenever_it_begins(start: int) -> None:
    rng = np.random.default_rng(2)
    reruns = wander(rng, bound.RERUNS)
    scatter = np.sqrt((reruns**2).mean(axis=0)).max()
    deviation = np.where(np.arange(STEPS) >= start, 60 * scatter, 0.0)
    assert not is_within(deviation, reruns)


def test_a_lucky_crossing_of_all_curves_does_not_narrow_the_bound() -> None:
    reruns = wander(np.random.default_rng(3), bound.RERUNS)
    reruns[:, 50] = 0.0
    allowed = bound.allowed(curve().tolist(), (curve() + reruns).tolist())
    assert allowed[50] > 0.9 * allowed[49]


def test_the_rounding_of_the_loss_itself_is_always_allowed() -> None:
    truth = curve()
    allowed = bound.allowed(truth.tolist(), [truth.tolist()] * bound.RERUNS)
    nudged = np.nextafter(truth.astype(np.float32), np.float32(9)).astype(float)
    assert bound.gap(nudged.tolist(), truth.tolist(), allowed).ok
    assert not bound.gap((truth + 1e-3).tolist(), truth.tolist(), allowed).ok


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    truth = curve().tolist()
    allowed = bound.allowed(truth, [truth] * bound.RERUNS)
    found = bound.gap([*truth[:7], math.nan, *truth[8:]], truth, allowed)
    assert (found.ok, found.step, found.max_deviation, found.ratio) == (False, 7, None, None)


def test_a_curve_that_stopped_early_is_compared_as_far_as_it_goes() -> None:
    truth = curve().tolist()
    allowed = bound.allowed(truth, [truth] * bound.RERUNS)
    assert bound.gap(truth[:20], truth, allowed).steps == 20


def test_there_is_no_bound_without_reruns_or_with_a_reference_that_diverged() -> None:
    with pytest.raises(ValueError, match="at least one rerun"):
        bound.allowed([1.0], [])
    with pytest.raises(ValueError, match="not finite"):
        bound.allowed([math.inf], [[1.0]])
