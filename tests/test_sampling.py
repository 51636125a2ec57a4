"""Rounds are interleaved in a seeded order, and end for the reasons that are told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import pytest

from attnbench.measure import sampling
from attnbench.measure.cache import Cache
from attnbench.measure.clock import Call, Copies, LoopTimer, Stopwatch, Timer, Work
from attnbench.measure.sampling import Budget, Taken, sample


class FakeMachine:
    """Time passes only inside calls, so that every figure can be foretold.

    It is the clock of the samples and, in place of the module ``time``, of the budgets.
    """

    name: Literal["host", "device"] = "host"
    method = "fake"
    cache: Cache = "warm"
    host: Stopwatch | None = None

    def __init__(self, resolution_s: float = 1e-6) -> None:
        self.resolution_s = resolution_s
        self.now_s = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now_s

    def time(self, call: Call, calls: int) -> float:
        start_s = self.now_s
        for _ in range(calls):
            call()
        return (self.now_s - start_s) / calls

    def timer(self, work: Work) -> Timer:
        return LoopTimer(self, work)

    def synchronize(self) -> None:
        pass

    def takes(self, name: str, seconds: float | Iterable[float]) -> Call:
        """A call that takes so long, or so long in turn."""
        durations = itertools.repeat(seconds) if isinstance(seconds, float) else iter(seconds)

        def call() -> None:
            self.log.append(name)
            self.now_s += next(durations)

        return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    fake = FakeMachine()
    monkeypatch.setattr(sampling, "time", fake)
    return fake


def noisy(seed: int, spread: float) -> Callable[[], Iterable[float]]:
    """Durations around 1 ms whose mood lasts for a round of samples."""

    def durations() -> Iterable[float]:
        draw = random.Random(seed)
        while True:
            mood = draw.uniform(1 - spread, 1 + spread)
            yield from [1e-3 * mood] * 6

    return durations


def calls_per_sample(taken: Taken) -> int:
    assert taken.timer is not None
    return taken.timer.calls_per_sample


def turns(machine: FakeMachine, names: Sequence[str], seed: int, rounds: int = 12) -> list[str]:
    """Who was measured, turn by turn, told by ``announce``."""
    seen: list[str] = []

    def announce(key: str, phase: str) -> None:
        if phase == "measure":
            seen.append(key)

    calls = {name: machine.takes(name, 1e-3) for name in names}
    sample(calls, machine, Budget(min_rounds=rounds, warmup_s=0.0), seed, announce)
    return seen


# ---- order -------------------------------------------------------------------------------


def test_each_round_visits_everybody_once_in_changing_order(machine: FakeMachine) -> None:
    seen = turns(machine, "abcd", seed=1)
    rounds = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    assert len(rounds) == 12
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 6, "the order is drawn anew each round"
    assert {r[0] for r in rounds} == set("abcd"), "nobody always goes first"


def test_the_order_follows_from_the_seed(machine: FakeMachine) -> None:
    assert turns(machine, "abcd", seed=1) == turns(machine, "abcd", seed=1)
    assert turns(machine, "abcd", seed=1) != turns(machine, "abcd", seed=2)


def test_everybody_is_warm_before_the_first_is_measured(machine: FakeMachine) -> None:
    phases: list[str] = []
    calls = {name: machine.takes(name, 1e-3) for name in "abc"}
    sample(calls, machine, Budget(), 0, lambda key, phase: phases.append(phase))
    assert phases[:3] == ["warm-up"] * 3
    assert set(phases[3:]) == {"measure"}


def test_an_untimed_call_goes_before_the_samples_of_a_round(machine: FakeMachine) -> None:
    durations = [1e-3, *([9e-3, 1e-3, 1e-3] * 5)]  # warm-up, then each round's first is slow
    budget = Budget(min_rounds=5, samples=2, warmup_s=0.0)
    taken = sample({"a": machine.takes("a", durations)}, machine, budget, 0)["a"]
    assert [len(r) for r in taken.rounds] == [2] * 5
    assert max(t for r in taken.rounds for t in r) == pytest.approx(1e-3)


# ---- when it ends ------------------------------------------------------------------------


def test_a_steady_call_is_done_after_the_fewest_rounds(machine: FakeMachine) -> None:
    budget = Budget(min_rounds=7, samples=3, warmup_s=0.0, max_s=100.0)
    taken = sample({"a": machine.takes("a", 1e-3)}, machine, budget, 0)["a"]
    assert len(taken.rounds) == 7
    assert taken.is_precise(budget)


def test_a_noisy_call_is_measured_until_it_is_precise(machine: FakeMachine) -> None:
    budget = Budget(precision=0.05, samples=5, warmup_s=0.0, max_s=100.0)
    call = machine.takes("a", noisy(3, spread=0.3)())
    taken = sample({"a": call}, machine, budget, 0)["a"]
    assert len(taken.rounds) > budget.min_rounds
    assert taken.is_precise(budget)
    assert taken.interval.half_width <= 0.05
    ended = len(taken.rounds)
    (looked,) = (n for n in range(ended) if n + 1 + n // 4 == ended)  # the time before
    before = Taken(rounds=taken.rounds[:looked])
    assert not before.is_precise(budget), "it went on after it was precise"


def test_a_call_that_stays_noisy_ends_at_max_s_and_is_not_precise(machine: FakeMachine) -> None:
    budget = Budget(precision=1e-6, samples=5, warmup_s=0.0, max_s=0.3)
    taken = sample({"a": machine.takes("a", noisy(3, spread=0.3)())}, machine, budget, 0)["a"]
    assert not taken.is_precise(budget)
    assert 0.3 <= taken.spent_s < 0.3 + 6 * 1.3e-3, "one round more than its time at most"
    assert taken.spent_s == pytest.approx(machine.now_s, rel=0.02)


def test_a_slow_call_still_gets_its_fewest_rounds_one_sample_each(machine: FakeMachine) -> None:
    budget = Budget(min_rounds=4, samples=5, warmup_s=0.0, max_s=1.0)
    taken = sample({"a": machine.takes("a", 10.0)}, machine, budget, 0)["a"]
    assert [len(r) for r in taken.rounds] == [1] * 4
    assert calls_per_sample(taken) == 1


def test_who_is_done_waits_while_the_others_go_on(machine: FakeMachine) -> None:
    budget = Budget(precision=0.05, warmup_s=0.0, max_s=100.0)
    calls = {
        "steady": machine.takes("steady", 1e-3),
        "noisy": machine.takes("noisy", noisy(3, spread=0.3)()),
    }
    taken = sample(calls, machine, budget, 0)
    assert len(taken["steady"].rounds) == budget.min_rounds
    assert len(taken["noisy"].rounds) > budget.min_rounds


def test_few_rounds_are_never_called_precise() -> None:
    taken = Taken(rounds=[[1.0, 1.0], [1.0, 1.0]])
    assert not taken.is_precise(Budget(min_rounds=3))
    assert taken.is_precise(Budget(min_rounds=2))


# ---- sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call_s", "resolution_s", "calls"),
    [(1e-6, 50e-6, 50), (30e-6, 50e-6, 2), (50e-6, 50e-6, 1), (1e-3, 50e-6, 1)],
)
def test_calls_shorter_than_the_clock_tells_are_timed_several_at_a_time(
    machine: FakeMachine, call_s: float, resolution_s: float, calls: int
) -> None:
    machine.resolution_s = resolution_s
    taken = sample({"a": machine.takes("a", call_s)}, machine, Budget(warmup_s=0.0), 0)["a"]
    # Sums of binary fractions may fall a hair short of the resolution.
    assert calls <= calls_per_sample(taken) <= calls + 1
    for seconds in itertools.chain(*taken.rounds):
        assert seconds == pytest.approx(call_s), "samples are seconds a call"


def test_a_round_takes_fewer_samples_where_it_would_take_too_long(machine: FakeMachine) -> None:
    budget = Budget(min_rounds=5, samples=5, warmup_s=0.0, max_s=1.0)  # 0.2 s a round
    taken = sample({"a": machine.takes("a", 0.09)}, machine, budget, 0)["a"]
    assert [len(r) for r in taken.rounds] == [2] * 5


def test_a_flush_counts_towards_what_a_round_may_take(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = machine.time

    def flush_and_time(call: Call, calls: int) -> float:
        machine.now_s += 50e-3
        return timed(call, calls)

    monkeypatch.setattr(machine, "time", flush_and_time)
    budget = Budget(min_rounds=5, samples=5, warmup_s=0.0, max_s=1.0)  # 0.2 s a round
    taken = sample({"a": machine.takes("a", 1e-3)}, machine, budget, 0)["a"]
    assert [len(r) for r in taken.rounds] == [3] * 5
    assert taken.interval.high == pytest.approx(1e-3), "but not as time of the call"


def test_a_call_that_seems_to_take_no_time_is_not_repeated_without_end(
    machine: FakeMachine,
) -> None:
    durations = itertools.chain([0.0], itertools.repeat(1e-6))
    taken = sample({"a": machine.takes("a", durations)}, machine, Budget(warmup_s=0.0), 0)["a"]
    assert calls_per_sample(taken) == 1000


# ---- warm-up -----------------------------------------------------------------------------


def test_warm_up_of_a_steady_call_lasts_as_long_as_asked(machine: FakeMachine) -> None:
    taken = sample({"a": machine.takes("a", 1e-3)}, machine, Budget(warmup_s=0.2), 0)["a"]
    assert 0.2 <= taken.warmup_s < 0.205
    assert taken.steady is True


def test_calls_of_warm_up_are_no_samples(machine: FakeMachine) -> None:
    durations = itertools.chain([50e-3] * 3, itertools.repeat(1e-3))  # slow until compiled
    taken = sample({"a": machine.takes("a", durations)}, machine, Budget(warmup_s=0.2), 0)["a"]
    assert taken.interval.high == pytest.approx(1e-3)
    assert [len(r) for r in taken.rounds] == [10] * 8, "sized by the warm call, not by the first"


def test_warm_up_goes_on_while_calls_still_become_faster(machine: FakeMachine) -> None:
    def settling() -> Iterable[float]:
        while True:  # slower by half at first, gone after a second
            yield 1e-3 * (1 + 0.5 * max(0.0, 1 - machine.now_s))

    budget = Budget(warmup_s=0.1, warmup_cap_s=10.0)
    taken = sample({"a": machine.takes("a", settling())}, machine, budget, 0)["a"]
    assert taken.steady is True
    assert 0.9 < taken.warmup_s < 1.3
    assert taken.interval.high == pytest.approx(1e-3, rel=0.03)


def test_a_wider_share_ends_warm_up_sooner(machine: FakeMachine) -> None:
    def settling() -> Iterable[float]:
        while True:
            yield 1e-3 * (1 + 0.5 * max(0.0, 1 - machine.now_s))

    budget = Budget(warmup_s=0.1, warmup_cap_s=10.0, steady_share=0.05)
    taken = sample({"a": machine.takes("a", settling())}, machine, budget, 0)["a"]
    assert taken.steady is True
    assert taken.warmup_s < 0.3


def test_a_call_that_never_settles_is_warmed_up_to_the_cap_and_told(machine: FakeMachine) -> None:
    def drifting() -> Iterable[float]:
        while True:
            yield 1e-3 * (1 + machine.now_s)

    budget = Budget(warmup_s=0.1, warmup_cap_s=0.5)
    taken = sample({"a": machine.takes("a", drifting())}, machine, budget, 0)["a"]
    assert taken.steady is False
    assert 0.5 <= taken.warmup_s < 0.5 + 2 * 1.5e-3


def test_a_call_longer_than_the_cap_warms_up_once(machine: FakeMachine) -> None:
    budget = Budget(min_rounds=1, samples=1, warmup_s=0.1, warmup_cap_s=1.0)
    taken = sample({"a": machine.takes("a", 10.0)}, machine, budget, 0)["a"]
    assert taken.warmup_s == pytest.approx(10.0)
    assert taken.steady is False


def test_no_warm_up_says_nothing_of_steadiness(machine: FakeMachine) -> None:
    taken = sample({"a": machine.takes("a", 1e-3)}, machine, Budget(warmup_s=0.0), 0)["a"]
    assert taken.steady is None
    assert machine.log == ["a"] * (1 + 8 * (1 + 10)), "one call to size rounds by, then rounds"


# ---- two figures -------------------------------------------------------------------------


def test_host_time_beside_the_devices_is_kept_apart(machine: FakeMachine) -> None:
    class Launched(FakeMachine):
        """Each call costs its launch beside."""

        def time(self, call: Call, calls: int) -> float:
            return super().time(call, calls) + 7e-3

    machine.host = Launched()
    taken = sample({"a": machine.takes("a", 1e-3)}, machine, Budget(warmup_s=0.0), 0)["a"]
    assert [len(r) for r in taken.host_rounds] == [2] * len(taken.rounds)
    assert {round(t, 6) for r in taken.rounds for t in r} == {1e-3}
    assert min(t for r in taken.host_rounds for t in r) >= 7e-3


def test_copies_are_asked_of_the_implementation_whose_turn_it_is(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def copy(key: str, count: int) -> Copies:
        asked.append((key, count))
        raise LookupError

    def timer(work: Work) -> Timer:
        assert work.copy is not None
        with pytest.raises(LookupError):
            work.copy(3)
        return LoopTimer(machine, work)

    monkeypatch.setattr(machine, "timer", timer)
    calls = {name: machine.takes(name, 1e-3) for name in "ab"}
    sample(calls, machine, Budget(warmup_s=0.0), 0, copy=copy)
    assert asked == [("a", 3), ("b", 3)]
