"""Stamps: when each token of a generation was there, in the very calls that are sampled.

Wall time, launching included, with the device waited for after each token: whoever streams
text has to have a token before anybody can read it. So there is one kind of call, whole
generations; the time to the first token, the time of all others and the gaps between them
are parts of the same samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from attnbench.device import synchronize
from attnbench.measure.clock import LoopTimer, Timer, Work, now_ns
from attnbench.measure.sampling import Budget
from attnbench.samples import Samples
from attnbench.stats import median_interval
from attnbench.train.clock import StepClock
from attnbench.train.models.generate import Generator

_MOST_GAPS = 4096  # of a process in a record

Rounds = list[list[float]]


class Stream:
    """The timed call: a whole generation, stamped at its beginning and after each token.

    Attributes:
        stamps_ns: of the last call, ``new + 1`` of them.
        said: tokens of the last call, each ``(B, 1)`` int64.
    """

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.stamps_ns: list[int] = []
        self.said: list[torch.Tensor] = []
        self._generator = generator
        self._device = device

    def __call__(self) -> None:
        """Generate."""
        generator, device = self._generator, self._device
        said, stamps_ns = [], [now_ns()]
        say: Callable[[], torch.Tensor] = generator.prefill
        for _ in range(generator.new):
            said.append(say())
            synchronize(device)
            stamps_ns.append(now_ns())
            say = generator.decode
        self.said, self.stamps_ns = said, stamps_ns


class StreamTimer(LoopTimer):
    """Takes whole generations one by one, and keeps their stamps.

    Attributes:
        stamps_ns: by round, of each sample.
    """

    def __init__(self, clock: StreamClock, work: Work) -> None:
        super().__init__(clock, work)
        self.stamps_ns: list[list[list[int]]] = []

    def take(self) -> list[float]:
        """One round's samples, in seconds a generation."""
        stream, times_s, stamps_ns = self._work.call, [], []
        assert isinstance(stream, Stream)
        for _ in range(self._work.samples):
            times_s.append(self._clock.time(stream, 1))
            stamps_ns.append(stream.stamps_ns)
        self.stamps_ns.append(stamps_ns)
        return times_s


class StreamClock(StepClock):
    """Wall time of a generation; a sample is always a single one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.resolution_s = 0.0
        self.method = "perf_counter_ns" + (
            ", device waited for after each token" if device.type == "cuda" else ""
        )

    def timer(self, work: Work) -> Timer:
        """One sample after another, with their stamps."""
        return StreamTimer(self, work)


def first_s(timer: StreamTimer) -> Rounds:
    """By round and sample, seconds until the first token."""
    return [[(s[1] - s[0]) / 1e9 for s in taken] for taken in timer.stamps_ns]


def rest_s(timer: StreamTimer) -> Rounds:
    """By round and sample, seconds from the first token to the last."""
    return [[(s[-1] - s[1]) / 1e9 for s in taken] for taken in timer.stamps_ns]


def between_s(timer: StreamTimer) -> Rounds:
    """By round, all seconds between a token and the next."""
    return [
        [(b - a) / 1e9 for s in taken for a, b in itertools.pairwise(s[1:])]
        for taken in timer.stamps_ns
    ]


def thinned(rounds: Rounds, most: int = _MOST_GAPS) -> Rounds:
    """At most so many numbers in all, by rank: each round keeps its distribution."""
    share = max(1, most // len(rounds))
    return [_ranks(round_, share) for round_ in rounds]


def _ranks(values: Sequence[float], most: int) -> list[float]:
    if len(values) <= most:
        return list(values)
    ordered, step = sorted(values), len(values) / most
    return [ordered[math.floor((i + 0.5) * step)] for i in range(most)]


def samples_of(rounds: Rounds, clock: StreamClock, budget: Budget) -> Samples:
    """As a record has them; warm-up and time spent are told by the whole generations."""
    interval = median_interval(rounds)
    return Samples(
        clock=clock.name,
        method=clock.method,
        cache=clock.cache,
        times_s=[rounds],
        median_s=interval.median,
        low_s=interval.low,
        high_s=interval.high,
        converged=interval.half_width <= budget.precision,
    )
