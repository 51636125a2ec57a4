"""A check of the self-test: who is asked, how the answer becomes a row, and when it is wrong.

A machine on which others are busy disturbs a check now and then; an instrument that is
wrong errs every time. So a check that fails is tried again, a bounded number of times, and
the row says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from attnbench.compare import Comparison, compare
from attnbench.errors import in_words
from attnbench.measure.clock import Call, Clock
from attnbench.measure.memory import peak_memory
from attnbench.measure.sampling import Budget, Taken, sample
from attnbench.record import Memory
from attnbench.runs import Run
from attnbench.selftest import Row
from attnbench.stats import Interval, median_interval

_ATTEMPTS = 4
_PAUSE_S = 1.0  # before another attempt: what disturbed may pass


class Sampler(Protocol):
    """:func:`attnbench.measure.sampling.sample`."""

    def __call__(
        self, calls: Mapping[Hashable, Call], clock: Clock, budget: Budget, seed: int
    ) -> Mapping[Hashable, Taken]:
        """Measure all calls in interleaved rounds."""


class Judge(Protocol):
    """:func:`attnbench.compare.compare`."""

    def __call__(self, base: Run, new: Run, *, threshold: float) -> Comparison:
        """A verdict for each point."""


@dataclass(frozen=True)
class Instrument:
    """What is tested: by default the very functions that points are measured with."""

    device: torch.device
    clock: Clock
    sample: Sampler = sample
    peak_memory: Callable[[Call, torch.device], Memory] = peak_memory
    compare: Judge = compare

    def take(self, call: Call, max_s: float = 0.6) -> Taken:
        """Measure one call as a point is measured, to a precision of a tenth of a percent."""
        budget = Budget(
            precision=0.001, min_rounds=8, samples=5, warmup_s=0.02, warmup_cap_s=0.1, max_s=max_s
        )
        return self.sample({"call": call}, self.clock, budget, 0)["call"]

    def in_a_row(self, call: Call, calls: int) -> Interval:
        """Seconds a call, so many at a time: eight rounds of five, after a call to get ready."""
        call()
        self.clock.synchronize()
        rounds = [[self.clock.time(call, calls) for _ in range(5)] for _ in range(8)]
        return median_interval(rounds)


Wait = Callable[[int], None]
"""Keeps the device busy for so many nanoseconds, by a clock that is not the one tested."""


@dataclass(frozen=True)
class Check:
    """One question to the instrument.

    Attributes:
        name: of the row.
        ask: puts it, and makes a row of the answer (:func:`judged`, :func:`not_here`).
        attempts: how often it is asked before it has failed.
    """

    name: str
    ask: Callable[[Instrument], Row]
    attempts: int = _ATTEMPTS


def judged(
    check: str,
    expected: float,
    measured: float | Interval,
    allowed: float | None,
    unit: Any = "s",
    reason: str = "",
) -> Row:
    """A row: passed if the error is at most ``allowed``; not judged (``shown``) if it is None."""
    told = measured if isinstance(measured, Interval) else Interval(measured, measured, measured)
    error = abs(told.median - expected)
    status = "shown" if allowed is None else "passed" if error <= allowed else "failed"
    has_interval = isinstance(measured, Interval)
    return Row(
        check=check,
        status=status,
        unit=unit,
        expected=expected,
        measured=told.median,
        low=told.low if has_interval else None,
        high=told.high if has_interval else None,
        allowed=allowed,
        reason=reason,
    )


def not_here(check: str, reason: str) -> Row:
    """A row for what this machine cannot tell."""
    return Row(check=check, status="not here", reason=reason)


def ask(check: Check, instrument: Instrument) -> Row:
    """Ask until the answer is right, or has been wrong often enough."""
    for attempt in range(1, check.attempts + 1):
        if attempt > 1:
            time.sleep(_PAUSE_S)
        try:
            row = check.ask(instrument)
        except Exception as error:
            row = Row(check=check.name, status="failed", reason=in_words(error))
        if row.status != "failed":
            break
    if attempt == 1:
        return row
    outcome = "wrong" if row.status == "failed" else "right"
    told = f"{outcome} at attempt {attempt}; {_load()}"
    return row.model_copy(update={"reason": f"{row.reason}; {told}" if row.reason else told})


def _load() -> str:
    """How busy the machine is, this test included."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
