"""Sampling: which call is timed when, how often, and when it is enough.

All implementations of one shape are measured together. Each is first warmed up until it is
steady: by the very loop that takes the samples, flush included, because a GPU's clocks and
a CPU's caches settle under the load that they will see (``do_bench`` warms up without its
flush, and estimates with it). Then each round visits every one of them in a seeded random
order and takes several samples, so that a machine that warms up, throttles or is disturbed
does the same to all of them (google-benchmark interleaves for that reason). Sampling ends
when every median is known to the asked precision, or has had its time; then ``converged``
is false. No sample is thrown away.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from attnbench.measure.cache import Cache
from attnbench.measure.clock import Call, Clock, Copies, Timer, Work
from attnbench.stats import Interval, median_interval

Key = TypeVar("Key", bound=Hashable)

_WINDOWS = 2  # of warm-up, that must agree
_LEAST_CALLS = 3  # in a window: below, its median is no median
_MOST_CALLS = 1000  # in a sample, for a call that seems to take no time at all
_HOST_SAMPLES = 2  # a round, of host time beside device time: the second figure


@dataclass(frozen=True)
class Budget:
    """How long and how well to measure a point (``[measure]`` of a suite).

    Attributes:
        precision: wanted half-width of the 95 % interval, relative to the median.
        min_rounds: never fewer rounds, whatever they cost.
        samples: timed samples a round, fewer if a round would take too long.
        warmup_s: least warm-up of each implementation, after its first call; 0 is none.
        warmup_cap_s: longest warm-up; whoever is not steady by then is told so.
        steady_share: how close the medians of two windows of warm-up must be.
        max_s: time for the rounds of one implementation.
        cache: state of the caches when a call begins; ``auto`` is as the device's clock has it.
    """

    precision: float = 0.01
    min_rounds: int = 8
    samples: int = 10
    warmup_s: float = 0.1
    warmup_cap_s: float = 1.0
    steady_share: float = 0.01
    max_s: float = 2.0
    cache: Cache | Literal["auto"] = "auto"


@dataclass
class Taken:
    """The samples of one implementation.

    Attributes:
        timer: takes them, by a method of its own; None once let go.
        warmup_s: what warm-up took, with finding the method.
        steady: whether warm-up ended because two windows agreed; None if there was none.
        rounds: samples in seconds a call.
        host_rounds: the same of host time, where the headline is another one.
        spent_s: what the rounds took.
        next_look: rounds before the interval is worked out again.
    """

    timer: Timer | None = None
    warmup_s: float = 0.0
    steady: bool | None = None
    rounds: list[list[float]] = field(default_factory=list)
    host_rounds: list[list[float]] = field(default_factory=list)
    spent_s: float = 0.0
    next_look: int = 0

    @property
    def calls_per_sample(self) -> int:
        """How many calls one sample is the mean of."""
        assert self.timer is not None
        return self.timer.calls_per_sample

    @property
    def interval(self) -> Interval:
        """Median and 95 % interval over the rounds."""
        return median_interval(self.rounds)

    def is_precise(self, budget: Budget) -> bool:
        """Whether the interval is as narrow as asked."""
        return len(self.rounds) >= budget.min_rounds and (
            self.interval.half_width <= budget.precision
        )


def sample(
    calls: Mapping[Key, Call],
    clock: Clock,
    budget: Budget,
    seed: int,
    announce: Callable[[Key, str], None] = lambda key, phase: None,
    ended: Callable[[Key], None] = lambda key: None,
    copy: Callable[[Key, int], Copies] | None = None,
) -> dict[Key, Taken]:
    """Warm up and measure all calls in interleaved rounds.

    Args:
        calls: the timed call of each implementation.
        clock: of their device.
        budget: precision and caps.
        seed: of the random order within rounds.
        announce: told before each turn who is at work, so that a crash can be blamed.
        ended: told right after each turn, before anything else is done.
        copy: makes so many copies of the work of one; without it a clock that needs copies
            says in its timer's ``fallback`` what it did instead.
    """
    taken = {}
    for key, call in calls.items():
        announce(key, "warm-up")
        own = None if copy is None else _bind(copy, key)
        taken[key] = _warm_up(call, clock, budget, own)
        ended(key)
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    while order:
        shuffle(order)
        for key in order:
            announce(key, "measure")
            _take_round(calls[key], clock, taken[key])
            ended(key)
        order = [key for key in order if not _is_done(taken[key], budget)]
    return taken


def _bind(copy: Callable[[Key, int], Copies], key: Key) -> Callable[[int], Copies]:
    return lambda count: copy(key, count)


def _is_done(taken: Taken, budget: Budget) -> bool:
    rounds = len(taken.rounds)
    if rounds < budget.min_rounds:
        return False
    if taken.spent_s >= budget.max_s:
        return True
    if rounds < taken.next_look:
        return False
    # The interval costs more the more rounds there are: look after ever more of them.
    taken.next_look = rounds + 1 + rounds // 4
    return taken.is_precise(budget)


def _warm_up(
    call: Call, clock: Clock, budget: Budget, copy: Callable[[int], Copies] | None
) -> Taken:
    """Run until steady, and size samples and rounds from what that showed."""
    start = time.perf_counter()
    loop = _Loop(call, clock)
    loop.run_once()
    steady = _settle(loop, budget, start) if budget.warmup_s > 0 else None
    one_s = max(loop.least_s, 1e-9)
    calls = min(max(1, math.ceil(clock.resolution_s / one_s)), _MOST_CALLS)
    round_s = budget.max_s / budget.min_rounds
    sample_s = calls * one_s + loop.overhead_s
    samples = max(1, min(budget.samples, int(round_s / sample_s)))
    timer = clock.timer(Work(call, one_s, calls, samples, copy))
    return Taken(timer, time.perf_counter() - start, steady)


def _settle(loop: _Loop, budget: Budget, start: float) -> bool:
    """Run window after window until two in a row agree; False if the cap comes first."""
    before: float | None = None  # the median of the window before
    while (left_s := start + budget.warmup_cap_s - time.perf_counter()) > 0:
        now = loop.run_window(budget.warmup_s / _WINDOWS, left_s)
        if now is None:  # the cap cut it short
            return False
        if before is not None and abs(now - before) <= budget.steady_share * before:
            return True
        before = now
    return False


class _Loop:
    """One call again and again, as it will be sampled."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self._call = call
        self._clock = clock
        self.least_s = math.inf  # of one call
        self.overhead_s = math.inf  # of a sample, beside its calls: flush, hold, waiting

    def run_once(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        seconds = self._clock.time(self._call, 1)
        self.least_s = min(self.least_s, seconds)
        self.overhead_s = min(self.overhead_s, max(0.0, time.perf_counter() - start - seconds))
        return seconds

    def run_window(self, window_s: float, left_s: float) -> float | None:
        """Median over a window; None if the time that is left ended it before it was one."""
        start, seconds = time.perf_counter(), list[float]()
        while (spent := time.perf_counter() - start) < window_s or len(seconds) < _LEAST_CALLS:
            if spent >= left_s:
                return None
            seconds.append(self.run_once())
        return statistics.median(seconds)


def _take_round(call: Call, clock: Clock, taken: Taken) -> None:
    assert taken.timer is not None
    start = time.perf_counter()
    # One untimed call first: the caches hold what the previous implementation left there.
    call()
    clock.synchronize()
    taken.rounds.append(taken.timer.take())
    if clock.host is not None:
        taken.host_rounds.append([clock.host.time(call, 1) for _ in range(_HOST_SAMPLES)])
    taken.spent_s += time.perf_counter() - start
