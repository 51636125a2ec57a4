"""Clocks: how long one call takes, in seconds.

There are two figures, and they are never mixed. The headline is the device's: on a CPU
that is the host's ``perf_counter_ns``; on CUDA events around the call, from which host
launch time stays out (see ``clock_cuda``). On CUDA each point has the host's figure too:
the wall time of the eager call with synchronisation, launch included, which is what a
model that launches kernel by kernel pays.

A clock says in which state the caches are when a call begins. ``cold``: a buffer of twice
the last-level cache was overwritten just before (on CUDA, the L2). ``warm``: the same call
ran just before. A GPU is timed cold by default, as nvbench does: between two uses of the
same attention inputs a model streams far more than the L2 through it. A CPU is timed warm
by default: overwriting its last-level cache costs some 50 ms a sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from attnbench.measure.cache import Cache, host_flush

Call = Callable[[], None]

now_ns = time.perf_counter_ns  # bound at import: a plugin that patches time changes nothing
# Below this a single call drowns in the loop and the timer, and a round of such calls in
# what is done between rounds: announcing, new contents, guarding (0.3 ms).
_HOST_RESOLUTION_S = 500e-6


class Copies(Protocol):
    """Calls of one implementation over copies of its inputs, equal in contents."""

    calls: Sequence[Call]

    def poison(self) -> None:
        """Overwrite what the last calls returned with NaN."""

    def fault(self) -> str | None:
        """What is wrong with what the last calls returned; None if it is as it was."""


@dataclass(frozen=True)
class Work:
    """What is to be timed round by round, as warm-up has shown it.

    Attributes:
        call: the timed call.
        one_s: how long it takes, about.
        calls: how many make a sample that the clock can tell.
        samples: how many samples make a round.
        copy: makes so many copies, whose calls are the same work on memory of their own;
            None where there is nothing to copy.
    """

    call: Call
    one_s: float
    calls: int = 1
    samples: int = 1
    copy: Callable[[int], Copies] | None = None


class Timer(Protocol):
    """Takes the samples of one call, by the method that fits it.

    Attributes:
        method: in words.
        calls_per_sample: how many calls one sample is the mean of.
        fallback: why a better method could not be used; None if none was wanted.
    """

    method: str
    calls_per_sample: int
    fallback: str | None

    def take(self) -> list[float]:
        """One round's samples, in seconds a call."""

    def fault(self) -> str | None:
        """What is wrong with what the timed calls returned, where they were not the call itself."""


class Stopwatch(Protocol):
    """Times a number of calls.

    Attributes:
        name: whose time it tells.
        method: in words.
        cache: state of the caches when a sample begins.
    """

    name: Literal["host", "device"]
    method: str
    cache: Cache

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row; the first begins with ``cache``."""

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""


class Clock(Stopwatch, Protocol):
    """Tells a device's own time, and finds the timer for a call.

    Attributes:
        resolution_s: calls shorter than this are timed several at a time.
        host: tells wall time beside it; None where the device's own time is host time.
    """

    resolution_s: float
    host: Stopwatch | None

    def timer(self, work: Work) -> Timer:
        """The way to take samples of this work, all of whose calls begin with ``cache``."""


class LoopTimer:
    """Samples that a clock takes one by one."""

    def __init__(self, clock: Stopwatch, work: Work) -> None:
        self.method = clock.method
        self.calls_per_sample = work.calls
        self.fallback: str | None = None
        self._clock = clock
        self._work = work

    def take(self) -> list[float]:
        """One round's samples, in seconds a call."""
        work = self._work
        return [self._clock.time(work.call, work.calls) for _ in range(work.samples)]

    def fault(self) -> str | None:
        """Nothing: the call itself was timed."""
        return None


class HostClock:
    """Wall time of the calling thread, by ``perf_counter_ns``.

    Args:
        cache: ``cold`` overwrites twice the last-level cache before each sample. A cold
            sample is always one call, however short: the next would find its inputs warm.
    """

    name: Literal["host", "device"] = "host"
    method = "perf_counter_ns"
    host: Stopwatch | None = None

    def __init__(self, cache: Cache = "warm") -> None:
        self.cache: Cache = cache
        self.resolution_s = _HOST_RESOLUTION_S if cache == "warm" else 0.0
        self._flush = host_flush() if cache == "cold" else None

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row."""
        if self._flush is not None:
            self._flush()
        start = now_ns()
        for _ in range(calls):
            call()
        return (now_ns() - start) / 1e9 / calls

    def timer(self, work: Work) -> Timer:
        """One sample after another."""
        return LoopTimer(self, work)

    def synchronize(self) -> None:
        """Nothing to wait for."""


def clock_for(device: torch.device, cache: Cache | Literal["auto"] = "auto") -> Clock:
    """The clock that tells a device's time.

    Args:
        device: a CPU or a GPU.
        cache: state of the caches when a call begins; ``auto`` is cold on CUDA, warm on a CPU.
    """
    if device.type == "cuda":
        from attnbench.measure.clock_cuda import DeviceClock  # it imports this module

        return DeviceClock(device, "cold" if cache == "auto" else cache)
    return HostClock("warm" if cache == "auto" else cache)
