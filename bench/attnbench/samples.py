"""The ``samples`` part of a record: raw seconds, and what they say."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from attnbench.record_part import Part


class Samples(Part):
    """Raw seconds a call, by process and round, and what they say.

    ``times_s[process][round]`` is the list of samples of one round, in the order taken.
    With several processes the interval is over processes, else over rounds.
    """

    clock: str  # whose time: "host" or "device"
    method: str = ""  # in words: "perf_counter_ns", "cuda events", "cuda graph of events", …
    fallback: str | None = None  # why a better method could not be used
    cache: Literal["cold", "warm"] | None = None  # last-level cache when each call begins
    times_s: list[list[list[float]]]
    calls_per_sample: int = 1  # in the first process
    warmup_s: float = 0.0  # all processes together
    spent_s: float | None = None  # the rounds, untimed calls and flushes included; likewise
    steady: bool | None = None  # whether warm-up ended before its cap; None without warm-up
    median_s: float
    low_s: float  # 95 % interval of the median
    high_s: float
    converged: bool

    @model_validator(mode="after")
    def _plausible(self) -> Samples:
        flat = [t for process in self.times_s for round_ in process for t in round_]
        if not flat or min(flat) <= 0:
            raise ValueError("samples must be positive seconds, at least one")
        if not 0 < self.low_s <= self.median_s <= self.high_s:
            raise ValueError("the median must lie inside its interval, and both above zero")
        if self.calls_per_sample < 1 or self.warmup_s < 0:
            raise ValueError("calls_per_sample must be at least 1, and warmup_s not negative")
        return self
