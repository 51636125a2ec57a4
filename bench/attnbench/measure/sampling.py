"""Sampling: which call is timed when, how often, and when it is enough.

All implementations of one shape are measured together. Each round visits every one of
them in a seeded random order and takes several samples, so that a machine that warms up,
throttles or is disturbed does the same to all of them. Sampling ends when every median
is known to the asked precision, or has had its time; then ``converged`` is false.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from attnbench.measure.clock import Call, Clock
from attnbench.stats import Interval, median_interval

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Budget:
    """How long and how well to measure a point (``[measure]`` of a suite).

    Attributes:
        precision: wanted half-width of the 95 % interval, relative to the median.
        min_rounds: never fewer rounds, whatever they cost.
        samples: timed samples a round, fewer if a round would take too long.
        warmup_s: warm-up of each implementation, after its first calls.
        max_s: time for the rounds of one implementation.
    """

    precision: float = 0.02
    min_rounds: int = 5
    samples: int = 5
    warmup_s: float = 0.1
    max_s: float = 1.0


@dataclass
class Taken:
    """The samples of one implementation."""

    calls_per_sample: int = 1
    samples_per_round: int = 1
    warmup_s: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)
    spent_s: float = 0.0
    next_look: int = 0  # rounds before the interval is worked out again

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
) -> dict[Key, Taken]:
    """Warm up and measure all calls in interleaved rounds.

    Args:
        calls: the timed call of each implementation.
        clock: of their device.
        budget: precision and caps.
        seed: of the random order within rounds.
        announce: told before each turn who is at work, so that a crash can be blamed.
        ended: told right after each turn, before anything else is done.
    """
    taken = {}
    for key, call in calls.items():
        announce(key, "warm-up")
        taken[key] = _warm_up(call, clock, budget)
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


def _warm_up(call: Call, clock: Clock, budget: Budget) -> Taken:
    """Run until warm, and size samples and rounds from what that showed."""
    start = time.perf_counter()
    seconds = [clock.time(call, 1)]
    while time.perf_counter() - start < budget.warmup_s:
        seconds.append(clock.time(call, 1))
    one_s = max(min(seconds), 1e-9)
    calls = max(1, math.ceil(clock.resolution_s / one_s))
    round_s = budget.max_s / budget.min_rounds
    samples = max(1, min(budget.samples, int(round_s / (calls * one_s))))
    return Taken(calls, samples, time.perf_counter() - start)


def _take_round(call: Call, clock: Clock, taken: Taken) -> None:
    start = time.perf_counter()
    # One untimed call first: the caches hold what the previous implementation left there.
    call()
    clock.synchronize()
    taken.rounds.append(
        [clock.time(call, taken.calls_per_sample) for _ in range(taken.samples_per_round)]
    )
    taken.spent_s += time.perf_counter() - start
