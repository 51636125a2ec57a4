"""The interval is as wide as the noise deserves: no narrower, and not much wider."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.stats import median_interval, process_interval

REPEATS = 200


def coverage(measurements: list[np.ndarray], truth: float) -> float:
    """Share of the intervals that hold the truth. R = round, S = sample."""
    intervals = [median_interval(list(samples_RS)) for samples_RS in measurements]
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def moody(rounds: int, mood: float) -> list[np.ndarray]:
    """Rounds whose five samples share a mood of the machine: median 1, skewed as times are."""
    rng = np.random.default_rng(7)
    return [
        np.exp(mood * rng.normal(size=(rounds, 1)) + 0.01 * rng.normal(size=(rounds, 5)))
        for _ in range(REPEATS)
    ]


@pytest.mark.parametrize("rounds", [10, 30])
@pytest.mark.parametrize("mood", [0.0, 0.1])
def test_the_interval_holds_the_true_median_about_as_often_as_it_says(
    rounds: int, mood: float
) -> None:
    # 95 % is nominal; a bootstrap of few medians is known to stay a little below.
    assert 0.88 <= coverage(moody(rounds, mood), truth=1.0) <= 0.99


def test_an_interval_over_pooled_samples_would_not() -> None:
    """The broken way that the test above catches: each sample counts as a round."""
    pooled = [samples_RS.reshape(-1, 1) for samples_RS in moody(10, mood=0.1)]
    assert coverage(pooled, truth=1.0) < 0.8


def test_the_median_is_that_of_the_rounds_medians() -> None:
    # The pooled median would be 3: the long round must not outvote the others.
    assert median_interval([[1.0], [2.0], [3.0] * 9]).median == 2.0
    assert median_interval([[1.0, 2.0, 90.0], [4.0, 4.0, 1.0]]).median == 3.0


def test_one_round_gives_the_range_of_its_samples() -> None:
    interval = median_interval([[3.0, 1.0, 2.0, 5.0]])
    assert (interval.median, interval.low, interval.high) == (2.5, 1.0, 5.0)


def test_one_sample_is_a_point() -> None:
    interval = median_interval([[2.0]])
    assert (interval.median, interval.low, interval.high, interval.half_width) == (2, 2, 2, 0)


def test_rounds_without_samples_do_not_count() -> None:
    assert median_interval([[], [3.0, 1.0, 2.0], []]) == median_interval([[3.0, 1.0, 2.0]])


@pytest.mark.parametrize("rounds", [[], [[]], [[], []]])
def test_no_sample_has_no_interval(rounds: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval(rounds)


def test_the_same_samples_always_give_the_same_interval() -> None:
    rounds = [list(r) for r in moody(9, mood=0.1)[0]]
    assert median_interval(rounds) == median_interval(rounds)


def test_the_interval_scales_with_the_unit() -> None:
    rounds = moody(9, mood=0.1)[0]
    seconds, milliseconds = median_interval(list(rounds)), median_interval(list(rounds * 1e3))
    assert milliseconds.low == pytest.approx(seconds.low * 1e3)
    assert milliseconds.high == pytest.approx(seconds.high * 1e3)
    assert milliseconds.half_width == pytest.approx(seconds.half_width)


def test_four_times_the_rounds_halve_the_interval() -> None:
    def mean_half_width(rounds: int) -> float:
        intervals = [median_interval(list(samples_RS)) for samples_RS in moody(rounds, 0.1)]
        return math.fsum(i.half_width for i in intervals) / len(intervals)

    assert mean_half_width(15) / mean_half_width(60) == pytest.approx(2, rel=0.15)


def test_the_median_lies_inside_its_interval() -> None:
    for rounds in ([[1.0], [2.0]], [[1.0], [1.0], [9.0]], [[5.0, 4.0], [1.0], [2.0], [3.0]]):
        interval = median_interval(rounds)
        assert interval.low <= interval.median <= interval.high
        assert min(map(min, rounds)) <= interval.low
        assert interval.high <= max(map(max, rounds))


# ---- processes ---------------------------------------------------------------------------


def processes(count: int, between: float, inside: float = 0.0024) -> list[list[np.ndarray]]:
    """Experiments: processes of ten rounds of five, with a level of each process; median 1."""
    rng = np.random.default_rng(11)
    return [
        [np.exp(between * rng.normal() + inside * rng.normal(size=(10, 5))) for _ in range(count)]
        for _ in range(REPEATS)
    ]


def process_coverage(count: int, between: float) -> float:
    told = [process_interval(p) for p in processes(count, between)]  # type: ignore[arg-type]
    return float(np.mean([i.low <= 1.0 <= i.high for i in told]))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("between", [0.003, 0.011, 0.05])
def test_the_interval_over_processes_covers_however_much_they_differ(
    count: int, between: float
) -> None:
    assert 0.91 <= process_coverage(count, between) <= 0.99


def test_intervals_over_rounds_or_resampled_processes_would_not_cover() -> None:
    """The broken ways: all rounds alike, and a percentile bootstrap over three processes."""
    rng = np.random.default_rng(5)
    pooled, resampled = [], []
    for measured_PRS in processes(3, 0.011):
        told = median_interval([list(r) for p in measured_PRS for r in p])
        pooled.append(told.low <= 1.0 <= told.high)
        centres_P = np.array([np.median(np.median(p, axis=1)) for p in measured_PRS])
        medians = np.median(centres_P[rng.integers(0, 3, size=(500, 3))], axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        resampled.append(low <= 1.0 <= high)
    assert np.mean(pooled) < 0.8
    assert np.mean(resampled) < 0.85


def test_one_process_has_the_interval_of_its_rounds() -> None:
    rounds = [[1.0, 1.1], [1.2, 1.0], [1.3, 1.1]]
    assert process_interval([rounds]) == median_interval(rounds)


def test_the_figure_of_several_processes_is_the_median_of_theirs() -> None:
    told = process_interval([[[1.0]], [[1.02]], [[9.0]]])
    assert told.median == pytest.approx(1.02), "one disturbed process does not move it"
    assert told.low < 1.0
    assert told.high > 9.0


def test_equal_processes_have_an_interval_without_width() -> None:
    told = process_interval([[[2.0]]] * 3)
    assert told.low == pytest.approx(2.0)
    assert told.low <= told.median <= told.high
