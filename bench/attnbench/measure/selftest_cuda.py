"""Device clock: spins of known length, the floor below them, the host's clock, the profiler.

Where the known length comes from. A kernel spins until the GPU's ``globaltimer`` has moved
by so many nanoseconds, however fast the GPU is clocked (``torch.cuda._sleep`` counts cycles
and would have to be calibrated by the events that are to be tested). The time of a kernel
is the spin and what it takes to start and end any kernel, which is measured by a spin of
nothing, bounded by a row of its own, and added to what is expected.

The events may count the same timer as ``globaltimer`` does. So the device's clock is also
held against the host's, another oscillator, over a spin so long that launching it is
nothing; and against the profiler, whose time of a kernel comes from CUPTI, another path.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from triton.language.extra.cuda import globaltimer

from attnbench.measure.selftest_check import Check, Instrument, Wait, judged, not_here
from attnbench.measure.selftest_cpu import WAITS_NS, length, waits_in_a_row
from attnbench.selftest import Row
from attnbench.stats import Interval

ALLOWED = 0.01
_LEAST_ALLOWED_S = 1e-6  # twice what events resolve
_MOST_FLOOR_S = 5e-6
_LONG_NS = 50_000_000
_PROFILED_NS = 200_000
_PROFILED_CALLS = 20
_ALLOWED_PROFILER = 0.02


@triton.jit
def spin_kernel(spun_ptr, ns):  # type: ignore[no-untyped-def]  # triton reads annotations as types
    """Spin until the global timer has moved by ``ns``; store by how much it did."""
    start = globaltimer()
    now = start
    while now - start < ns:
        now = globaltimer()
    tl.store(spun_ptr, now - start)


class Spins:
    """Spins on one device, on the current stream; they may be captured in a graph."""

    def __init__(self, device: torch.device) -> None:
        self._spun = torch.zeros(1, dtype=torch.int64, device=device)

    def wait(self, ns: int) -> None:
        """Keep the device busy for so long; returns before it has been."""
        spin_kernel[(1,)](self._spun, ns, num_warps=1)


def checks(spin: Wait) -> Sequence[Check]:
    """All checks of the device clock: of :class:`Spins` through ``spin``."""
    return [
        Check("empty call", empty_call),
        Check("empty kernel", lambda i: empty_kernel(i, spin)),
        *(_spin_check(ns, spin) for ns in WAITS_NS),
        Check("16 waits in a row", lambda i: waits_in_a_row(i, spin, floor(i, spin, 16).median)),
        Check("host's clock", lambda i: host_clock(i, spin)),
        Check("profiler", lambda i: profiler(i, spin)),
    ]


def floor(instrument: Instrument, spin: Wait, calls: int) -> Interval:
    """Seconds of a kernel that does nothing, so many at a time."""
    return instrument.in_a_row(lambda: spin(0), calls)


def empty_call(instrument: Instrument) -> Row:
    """What the events add to a call that enqueues nothing."""
    measured = instrument.take(lambda: None, max_s=0.2).interval
    return judged("empty call", 0.0, measured, 2 * _LEAST_ALLOWED_S)


def empty_kernel(instrument: Instrument, spin: Wait) -> Row:
    """What it takes to start and end a kernel that does nothing."""
    return judged("empty kernel", 0.0, floor(instrument, spin, 1), _MOST_FLOOR_S)


def host_clock(
    instrument: Instrument, spin: Wait, now_ns: Callable[[], int] = time.perf_counter_ns
) -> Row:
    """A long spin by the device's clock and by the host's."""
    host_s, device_s = [], []
    for _ in range(5):
        instrument.clock.synchronize()
        start = now_ns()
        spin(_LONG_NS)
        instrument.clock.synchronize()
        host_s.append((now_ns() - start) / 1e9)
        device_s.append(instrument.clock.time(lambda: spin(_LONG_NS), 1))
    expected = statistics.median(host_s)
    return judged("host's clock", expected, statistics.median(device_s), ALLOWED * expected)


def profiler(
    instrument: Instrument,
    spin: Wait,
    profiled: Callable[[Callable[[], None]], Iterable[float]] | None = None,
) -> Row:
    """The time of a kernel by the clock and by the profiler.

    Args:
        instrument: what is tested.
        spin: its kernel.
        profiled: seconds of each kernel that some calls ran; None for torch's profiler.
    """

    def call() -> None:
        spin(_PROFILED_NS)

    def calls() -> None:
        for _ in range(_PROFILED_CALLS):
            call()
        instrument.clock.synchronize()

    times_s = list((profiled or kernel_times)(calls))
    if len(times_s) != _PROFILED_CALLS:
        seen = f"saw {len(times_s)} of {_PROFILED_CALLS} kernels"
        return not_here("profiler", f"it {seen}: CUPTI may be absent, or not permitted here")
    expected = statistics.median(times_s)
    measured = instrument.take(call).interval
    return judged("profiler", expected, measured, _ALLOWED_PROFILER * expected)


def kernel_times(call: Callable[[], None]) -> Iterable[float]:
    """Seconds of each spin that the call ran, as torch's profiler tells them."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    results: Any = profiler.profiler.kineto_results if profiler.profiler else None
    for event in results.events() if results is not None else ():
        if event.device_type() == DeviceType.CUDA and spin_kernel.fn.__name__ in event.name():
            yield event.duration_ns() / 1e9


def _spin_check(ns: int, spin: Wait) -> Check:
    name = f"wait {length(ns)}"

    def check(instrument: Instrument) -> Row:
        taken = instrument.take(lambda: spin(ns))
        expected = ns / 1e9 + floor(instrument, spin, taken.calls_per_sample).median
        allowed = max(_LEAST_ALLOWED_S, ALLOWED * expected)
        return judged(name, expected, taken.interval, allowed)

    return Check(name, check)
