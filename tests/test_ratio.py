"""The estimate under known noise: intervals that hold, calls that are not false, power.

``pytest -m slow tests/test_ratio.py -s`` prints the table of :mod:`attnbench.ratio`.
P = process, R = round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from attnbench import ratio
from attnbench.compare import FALSE_SHARE, FALSE_SHARE_ASSUMED, THRESHOLD
from attnbench.ratio import Evidence, Ratio, RunScatter, estimate, weigh
from attnbench.record import Samples
from attnbench.stats import benjamini_hochberg

BETWEEN = 0.01  # log standard deviation between processes
INSIDE = 0.005  # of round medians inside one
MEMORY = 0.9  # autocorrelation of the rounds

Side = np.ndarray


def side(
    rng: np.random.Generator,
    processes: int = 3,
    factor: float = 1.0,
    *,
    between: float = BETWEEN,
    inside: float = INSIDE,
    memory: float = MEMORY,
    rounds: int = 10,
) -> Side:
    """Round medians in seconds, ``PR``: a process's own level, and rounds that remember."""
    noise_PR = rng.normal(size=(processes, rounds))
    for i in range(1, rounds):
        noise_PR[:, i] = memory * noise_PR[:, i - 1] + math.sqrt(1 - memory**2) * noise_PR[:, i]
    level_P1 = between * rng.normal(size=(processes, 1))
    return 1e-3 * factor * np.exp(level_P1 + inside * noise_PR)


def samples(times_PR: Side) -> Samples:
    """Samples of one call a round; built without the checks, which the simulations would pay."""
    return Samples.model_construct(
        clock="host", times_s=[[[float(t)] for t in process] for process in times_PR]
    )


def weighed(pairs: Sequence[tuple[Side, Side]], **how) -> list[Evidence]:
    return [weigh(samples(base), samples(new), **how) for base, new in pairs]


def called(evidence: Sequence[Evidence], found: Sequence[Ratio], share: float) -> list[bool]:
    """What :func:`attnbench.compare.compare` calls SLOWER or FASTER."""
    adjusted = benjamini_hochberg([r.p for r in found])
    return [
        p < share and max(r.ratio, 1 / r.ratio) - 1 > max(THRESHOLD, math.expm1(e.scatter))
        for e, r, p in zip(evidence, found, adjusted, strict=True)
    ]


def run_of(
    rng: np.random.Generator, points: int, slower: int, processes: int, **noise: float
) -> list[tuple[Side, Side]]:
    """Both sides of many points, of which the first few became 5 % slower."""
    return [
        (side(rng, processes, **noise), side(rng, processes, 1.05 if i < slower else 1.0, **noise))
        for i in range(points)
    ]


# ---- what is estimated -----------------------------------------------------------------


def test_the_ratio_is_that_of_the_processes_medians() -> None:
    base, new = np.array([[1.0, 2.0, 90.0]]), np.array([[3.0, 4.0, 0.1]])
    (found,) = estimate(weighed([(base, new)]))
    assert found.ratio == pytest.approx(1.5)


def test_every_process_counts_once_however_many_rounds_it_has() -> None:
    uneven = Samples.model_construct(clock="host", times_s=[[[1.0]] * 50, [[4.0]] * 2])
    evidence = weigh(uneven, samples(np.ones((2, 5))))
    assert math.exp(-evidence.log_ratio) == pytest.approx(2.0)  # the geometric mean of 1 and 4


def test_one_round_counts_by_its_samples() -> None:
    one = Samples.model_construct(clock="host", times_s=[[[1.0, 1.1, 0.9, 1.0]]])
    two = Samples.model_construct(clock="host", times_s=[[[2.0, 2.2, 1.8, 2.0]]])
    assert estimate([weigh(one, two)])[0].ratio == pytest.approx(2.0)


def test_swapping_the_sides_turns_the_ratio_over() -> None:
    rng = np.random.default_rng(1)
    base, new = side(rng), side(rng, factor=1.2)
    (there,), (back,) = estimate(weighed([(base, new)])), estimate(weighed([(new, base)]))
    assert (there.ratio, there.low, there.high) == pytest.approx(
        (1 / back.ratio, 1 / back.high, 1 / back.low)
    )
    assert there.p == pytest.approx(back.p)


def test_the_same_samples_always_give_the_same_answer() -> None:
    pairs = run_of(np.random.default_rng(2), 5, 0, 3)
    assert estimate(weighed(pairs)) == estimate(weighed(pairs))


@pytest.mark.parametrize("constant", [1e-9, 1.0, 1e3])
def test_samples_without_any_scatter_are_no_division_by_zero(constant: float) -> None:
    flat = np.full((2, 5), constant)
    for paired in (False, True):
        (found,) = estimate(weighed([(flat, flat)], paired=paired))
        assert found.ratio == 1
        assert found.low < 1 < found.high
        assert found.p == 1


def test_samples_that_jump_across_all_numbers_still_give_finite_numbers() -> None:
    wild = 10.0 ** np.array([[-150, 150, 150, -150, -150, 150, 150]])
    (found,) = estimate(weighed([(wild, wild[:, ::-1])]))
    assert all(map(math.isfinite, (found.ratio, found.low, found.high, found.p)))
    assert found.low < 1e-6
    assert found.high > 1e6


def test_no_points_have_no_ratios() -> None:
    assert estimate([]) == []


# ---- how sure it is --------------------------------------------------------------------


def half_width(pairs: Sequence[tuple[Side, Side]], **how) -> float:
    found = estimate(weighed(pairs, **how))
    return float(np.mean([math.log(r.high / r.low) / 2 for r in found]))


def test_rounds_cannot_make_up_for_processes() -> None:
    """An interval over pooled rounds would shrink tenfold with a hundred times the rounds."""
    rng = np.random.default_rng(3)
    few, many = ([(side(rng, 1, rounds=n), side(rng, 1, rounds=n))] for n in (10, 1000))
    assert half_width(many) > 0.8 * half_width(few)
    three = [(side(rng, 6), side(rng, 6))]
    assert half_width(three) < 0.6 * half_width(few)


def test_a_noisy_machine_widens_all_intervals_though_the_assumption_says_otherwise() -> None:
    pairs = run_of(np.random.default_rng(4), 8, 0, 3, between=0.05)
    alone = float(np.mean([half_width([pair]) for pair in pairs]))
    assert half_width(pairs) > 1.2 * alone
    assert half_width(pairs) > 0.05


def test_many_points_with_replicates_show_that_a_machine_is_quieter_than_assumed() -> None:
    pairs = run_of(np.random.default_rng(5), 60, 0, 3, between=0.001, inside=0.0005)
    assert half_width(pairs) < 0.3 * half_width(pairs[:5])


def test_pairs_know_what_disturbed_both() -> None:
    rng = np.random.default_rng(6)
    mood_PR = np.exp(0.2 * rng.normal(size=(2, 10)))
    pair = (side(rng, 2, between=0) * mood_PR, side(rng, 2, between=0) * mood_PR)
    assert half_width([pair], paired=True) < 0.1 * half_width([pair])


def test_a_side_that_went_on_alone_is_cut_off() -> None:
    rng = np.random.default_rng(7)
    base = side(rng, 1, rounds=8)
    longer = np.concatenate([1.1 * base, np.full((1, 5), 9.0)], axis=1)
    (found,) = estimate(weighed([(base, longer)], paired=True))
    assert found.ratio == pytest.approx(1.1)


def test_a_history_takes_the_place_of_the_assumption() -> None:
    rng = np.random.default_rng(8)
    pairs = [(side(rng, 1), side(rng, 1))]
    quiet, wild = (half_width(pairs, known=RunScatter(sd, 30)) for sd in (0.001, 0.05))
    assert quiet < half_width(pairs) < wild
    assert wild == pytest.approx(2.04 * math.sqrt(2) * 0.05, rel=0.02)


# ---- simulations -----------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("noise", [{}, {"between": 0.005, "inside": 0.04}])
def test_intervals_hold_the_true_ratio_as_often_as_they_say(processes: int, noise: dict) -> None:
    """Also where rounds that remember are the larger part: to take them for independent would
    hold it less often."""
    rng = np.random.default_rng(9)
    found = [estimate(weighed(run_of(rng, 1, 1, processes, **noise)))[0] for _ in range(300)]
    assert np.mean([r.low <= 1.05 <= r.high for r in found]) >= (0.88 if noise else 0.93)


@pytest.mark.parametrize(("processes", "share"), [(1, FALSE_SHARE_ASSUMED), (3, FALSE_SHARE)])
def test_equal_code_compared_alone_is_called_different_once_in_a_hundred_at_most(
    processes: int, share: float
) -> None:
    rng = np.random.default_rng(10)
    calls = []
    for _ in range(400):
        evidence = weighed(run_of(rng, 1, 0, processes))
        calls += called(evidence, estimate(evidence), share)
    assert np.mean(calls) <= 0.01


def test_five_percent_are_found_and_nothing_else_among_many_points() -> None:
    evidence = weighed(run_of(np.random.default_rng(11), 300, 40, 3))
    calls = called(evidence, estimate(evidence), FALSE_SHARE)
    assert np.mean(calls[:40]) >= 0.95
    assert np.mean(calls[40:]) <= 0.01


def test_five_percent_are_found_in_a_point_alone() -> None:
    rng = np.random.default_rng(12)
    calls = []
    for _ in range(200):
        evidence = weighed(run_of(rng, 1, 1, 3))
        calls += called(evidence, estimate(evidence), FALSE_SHARE)
    assert np.mean(calls) >= 0.95


def bootstrap(base_PR: Side, new_PR: Side, rng: np.random.Generator) -> Ratio:
    """The broken way: a percentile bootstrap over processes, then over their rounds."""
    draws_D = []
    for times_PR in (base_PR, new_PR):
        processes, rounds = times_PR.shape
        p_DP1 = rng.integers(0, processes, size=(1000, processes, 1))
        r_DPR = rng.integers(0, rounds, size=(1000, processes, rounds))
        draws_D.append(np.median(np.log(times_PR)[p_DP1, r_DPR], axis=2).mean(axis=1))
    logs_D = draws_D[1] - draws_D[0]
    low, middle, high = np.percentile(logs_D, [2.5, 50, 97.5])
    p = 2 * min((logs_D <= 0).mean(), (logs_D >= 0).mean())
    return Ratio(math.exp(middle), math.exp(low), math.exp(high), float(min(max(p, 1e-3), 1)))


def test_a_bootstrap_over_three_processes_would_be_sure_too_often() -> None:
    rng = np.random.default_rng(13)
    pairs = run_of(rng, 300, 0, 3)
    naive = [bootstrap(*pair, rng) for pair in pairs]
    assert np.mean([r.p < 0.05 for r in naive]) > 0.08
    assert np.mean([r.low <= 1 <= r.high for r in naive]) < 0.9
    found = estimate(weighed(pairs))
    assert np.mean([r.p < 0.05 for r in found]) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.01, 0.02])
def test_the_table_of_the_module(between: float) -> None:
    rng = np.random.default_rng(14)
    trials = [run_of(rng, 400, 40, 3, between=between) for _ in range(5)]
    methods: dict[str, Callable[[list[tuple[Side, Side]]], list[Ratio]]] = {
        "bootstrap": lambda pairs: [bootstrap(*pair, rng) for pair in pairs],
        "moderated t": lambda pairs: estimate(weighed(pairs)),
    }
    print(f"\nbetween processes {between:.0%}: method, coverage, false by p alone, false, found")
    told = {}
    for name, method in methods.items():
        cover, alone, false, hits = [], [], [], []
        for pairs in trials:
            evidence, found = weighed(pairs), method(pairs)
            calls = called(evidence, found, FALSE_SHARE)
            truth = [1.05] * 40 + [1.0] * 360
            cover += [r.low <= t <= r.high for r, t in zip(found, truth, strict=True)]
            alone += [r.p < 0.05 for r in found[40:]]
            false += calls[40:]
            hits += calls[:40]
        told[name] = [float(np.mean(values)) for values in (cover, alone, false, hits)]
        print(f"{name:12}" + "".join(f"{share:9.2%}" for share in told[name]))
    assert 0.93 <= told["moderated t"][0] <= 0.99
    assert told["moderated t"][2] <= 0.01
    assert told["bootstrap"][0] < 0.9
    assert ratio.ASSUMED_SD == 0.01
