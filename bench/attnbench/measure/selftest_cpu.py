"""Host clock: waits of known length, calls in a row, and the kernel's own account.

Where the known length comes from. Waiting until ``perf_counter_ns`` says so would prove
nothing: the instrument reads that clock, and would be right by definition. So:

- The waits end by ``CLOCK_MONOTONIC_RAW``. It counts the same oscillator, but is a clock of
  its own: read by another call, and not slewed by NTP as the monotonic clock is (which may
  move that by 0.05 %). What it proves is that nothing between the clock and the record
  adds, loses or rescales time: reading, looping, dividing by the calls, rounds, medians.
- Work of a fixed number of steps, which looks at no clock, is held against the CPU time
  that the kernel's scheduler accounts for the very same calls: another source, another
  path. On a quiet machine a busy thread's CPU time is wall time.

No process can check the oscillator itself: every clock of a machine hangs on it (that of
a GPU does not, and is held against the host's in :mod:`attnbench.measure.selftest_cuda`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from attnbench.measure.selftest_check import Check, Instrument, Wait, judged, not_here
from attnbench.selftest import Row

WAITS_NS = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000, 10_000_000)
JUDGED_NS = 100_000  # shorter waits are shown: what Python adds to a call is no longer small
ALLOWED = 0.01
_MOST_FLOOR_S = 1e-6  # a percent of the shortest wait that is judged
_ROW_CALLS = 16
_WORK_S = 1e-3  # long beside a reading of the CPU time, short beside a turn of another process
_COARSE_NS = 20_000  # steps of a CPU clock that are too coarse for a percent of the work

_raw_ns = time.clock_gettime_ns
_RAW = time.CLOCK_MONOTONIC_RAW


def wait(ns: int, now_ns: Callable[[int], int] = _raw_ns) -> None:
    """Stay busy until ``CLOCK_MONOTONIC_RAW`` has moved by ``ns``."""
    end = now_ns(_RAW) + ns
    while now_ns(_RAW) < end:
        pass


def checks(waiting: Wait = wait) -> Sequence[Check]:
    """All checks of the host clock, with waits by ``waiting``."""
    return [
        Check("empty call", empty_call),
        *(_wait_check(ns, waiting) for ns in WAITS_NS),
        Check(f"{_ROW_CALLS} waits in a row", lambda i: waits_in_a_row(i, waiting)),
        Check("calls counted", calls_counted),
        Check("CPU time", cpu_time),
    ]


def length(ns: int) -> str:
    """``2 µs``, ``10 ms``.

    >>> length(2_000), length(10_000_000)
    ('2 µs', '10 ms')
    """
    return f"{ns // 1_000_000} ms" if ns >= 1_000_000 else f"{ns // 1_000} µs"


def empty_call(instrument: Instrument) -> Row:
    """What the instrument adds to a call that does nothing."""
    measured = instrument.take(lambda: None, max_s=0.2).interval
    return judged("empty call", 0.0, measured, _MOST_FLOOR_S)


def calls_counted(instrument: Instrument) -> Row:
    """As many calls are made as the time is divided by."""
    made = 0

    def call() -> None:
        nonlocal made
        made += 1

    instrument.clock.time(call, 1000)
    return judged("calls counted", 1000, made, 0, "calls")


def waits_in_a_row(instrument: Instrument, waiting: Wait, floor_s: float = 0.0) -> Row:
    """A sample of several calls tells the seconds of one.

    Args:
        instrument: what is tested.
        waiting: the call.
        floor_s: what a wait of nothing takes.
    """
    measured = instrument.in_a_row(partial(waiting, JUDGED_NS), _ROW_CALLS)
    expected = JUDGED_NS / 1e9 + floor_s
    return judged(f"{_ROW_CALLS} waits in a row", expected, measured, ALLOWED * expected)


def cpu_time(
    instrument: Instrument,
    cpu_ns: Callable[[], int] = time.thread_time_ns,
    work: Callable[[], object] | None = None,
) -> Row:
    """Work that looks at no clock, against the CPU time of the same calls.

    Args:
        instrument: what is tested.
        cpu_ns: the CPU time of this thread.
        work: None for counted steps that take about 1 ms.
    """
    if (step_ns := _smallest_step(cpu_ns)) > _COARSE_NS:
        return not_here("CPU time", f"the kernel accounts for it in steps of {step_ns / 1e6:g} ms")
    if work is None:
        work = partial(_count, _steps_for(_WORK_S, cpu_ns))
    spent_ns: list[int] = []

    def call() -> None:
        before = cpu_ns()
        work()
        spent_ns.append(cpu_ns() - before)

    measured = instrument.take(call).interval
    expected = statistics.median(spent_ns) / 1e9
    return judged("CPU time", expected, measured, ALLOWED * expected)


def _wait_check(ns: int, waiting: Wait) -> Check:
    name = f"wait {length(ns)}"
    expected = ns / 1e9
    allowed = ALLOWED * expected if ns >= JUDGED_NS else None

    def check(instrument: Instrument) -> Row:
        return judged(name, expected, instrument.take(partial(waiting, ns)).interval, allowed)

    return Check(name, check)


def _smallest_step(cpu_ns: Callable[[], int]) -> int:
    """By how much a CPU clock moves at a time: its own reading takes time, so it does move."""
    steps: list[int] = []
    last = cpu_ns()
    while len(steps) < 5:
        if (now := cpu_ns()) != last:
            steps.append(now - last)
            last = now
    return min(steps)


def _count(steps: int) -> None:
    for _ in range(steps):
        pass


def _steps_for(seconds: float, cpu_ns: Callable[[], int]) -> int:
    """How many steps take so long, found by doubling."""
    steps = 1000
    while True:
        before = cpu_ns()
        _count(steps)
        if (spent_s := (cpu_ns() - before) / 1e9) > seconds / 2:
            return max(1, int(steps * seconds / spent_s))
        steps *= 2
