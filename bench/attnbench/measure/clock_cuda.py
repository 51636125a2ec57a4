"""The CUDA clock: events around the call, and nothing of the host between them.

A sample is [flush, hold, event, call, event]. The flush overwrites twice the L2. The hold
keeps the device busy (``torch.cuda._sleep``) for about twice the time that the host needs to
enqueue the rest, so that all of it is queued before the first event passes. nvbench blocks
the stream by a kernel that waits for the host, which cannot be had from Python without the
risk of a deadlock. ``triton.testing.do_bench`` has no hold, and measures the host's launch
for short kernels (its issues 6066 and 10149: 5.5 TFLOPS where 15 were right). Whether the
hold was long enough is asked of the device after each sample, not assumed.

Where launching dominates (under 200 µs, or enqueueing takes longer than the work), the same
is captured in a CUDA graph: see ``graph``. Events resolve about 0.5 µs, so calls below 20 µs
are timed in batches, over copies of the inputs where they are to be cold: see ``copies``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import torch

from attnbench.measure.cache import Cache, device_flush
from attnbench.measure.clock import Call, Stopwatch, Timer, Work, now_ns
from attnbench.measure.graph import (
    GraphTimer,
    NotCapturable,
    refuse_synchronization,
    timing_event,
)

_EVENT_RESOLUTION_S = 20e-6  # 2.5 % of it is what a pair of events resolves
_GRAPH_BELOW_S = 200e-6
_MOST_COPIES = 64
_LEAST_HOLD_S, _MOST_HOLD_S = 20e-6, 50e-3  # what is enqueued for longer is not held for
_ATTEMPTS = 3
_CALIBRATION_CYCLES = 10_000_000
_LATE = "the host was still launching when the call began: launch time is inside its figure"


class DeviceClock:
    """Device time by CUDA events.

    Args:
        device: a GPU; becomes the current one, where ``_sleep`` and events are.
        cache: of its L2 when a sample begins.
    """

    name: Literal["host", "device"] = "device"
    method = "cuda events"
    resolution_s = _EVENT_RESOLUTION_S

    def __init__(self, device: torch.device, cache: Cache = "cold") -> None:
        torch.cuda.set_device(device)
        self._device = device
        self.cache: Cache = cache
        self.flush = device_flush(device) if cache == "cold" else None
        self.host: Stopwatch | None = SynchronizedClock(self)
        self._start = timing_event()
        self._stop = timing_event()
        self._cycles_a_second = self._calibrate()
        self._hold_s = _LEAST_HOLD_S
        self.enqueue_s = 0.0  # of the last sample: how long the host took to launch it
        self.is_late = False  # whether the device had begun before the host was done

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row; only the first finds L2 cold."""
        return self.time_all([call] * calls)

    def time_all(self, calls: Sequence[Call], attempts: int = 2) -> float:
        """Seconds a call, over a batch of calls.

        Where the hold was too short the sample is taken again under a longer one, up to
        ``attempts`` times; ``is_late`` tells whether the last one was still too short.
        """
        for _ in range(attempts):
            if self.flush is not None:
                self.flush()
            _sleep(int(self._hold_s * self._cycles_a_second))
            self._start.record()
            begin = now_ns()
            for call in calls:
                call()
            self._stop.record()
            self.enqueue_s = (now_ns() - begin) / 1e9
            self.is_late = bool(self._start.query())  # type: ignore[no-untyped-call]
            self._stop.synchronize()
            self._hold_s = min(max(2 * self.enqueue_s, _LEAST_HOLD_S), _MOST_HOLD_S)
            if not self.is_late:
                break
        return float(self._start.elapsed_time(self._stop)) / 1e3 / len(calls)

    def timer(self, work: Work) -> Timer:
        """Events, or a CUDA graph of events where launching dominates."""
        eager = self._eager(work)
        eager_s = statistics.median(eager.take())
        is_short = eager_s * eager.calls_per_sample < _GRAPH_BELOW_S
        if not (is_short or self.enqueue_s > eager_s * eager.calls_per_sample):
            return eager
        try:
            if work.copy is None:
                raise NotCapturable("there is nothing to make copies of")
            refuse_synchronization(work.call)
            known_s = None if eager.is_late else eager_s
            return GraphTimer(work, eager.calls_per_sample, self.cache, self.flush, known_s)
        except NotCapturable as fault:
            reason = f"a CUDA graph was wanted, but {fault}"
        eager.fallback = "; ".join(filter(None, [reason, eager.fallback]))
        return eager

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        torch.cuda.synchronize(self._device)

    def _eager(self, work: Work) -> EagerTimer:
        if work.calls == 1 or self.cache == "warm":
            return EagerTimer(self, [work.call] * work.calls, work.samples, "cuda events")
        if work.copy is None:
            timer = EagerTimer(self, [work.call], work.samples, "cuda events")
            timer.fallback = "too short for one pair of events, with nothing to make copies of"
            return timer
        copies = work.copy(min(work.calls, _MOST_COPIES))
        return EagerTimer(self, copies.calls, work.samples, "cuda events over rotated inputs")

    def _calibrate(self) -> float:
        """Cycles of ``_sleep`` a second, measured: the rated clock is not the one that runs."""
        for _ in range(2):  # the first finds the device asleep
            self._start.record()
            _sleep(_CALIBRATION_CYCLES)
            self._stop.record()
            self._stop.synchronize()
        return _CALIBRATION_CYCLES / (float(self._start.elapsed_time(self._stop)) / 1e3)


class EagerTimer:
    """Samples by events around calls that are launched one by one."""

    def __init__(
        self, clock: DeviceClock, calls: Sequence[Call], samples: int, method: str
    ) -> None:
        self.method = method
        self.calls_per_sample = len(calls)
        self.fallback: str | None = None
        self.is_late = False  # some sample could not be held long enough
        self._clock = clock
        self._calls = calls
        self._samples = samples

    def take(self) -> list[float]:
        """One round's samples, in seconds a call."""
        taken = []
        for _ in range(self._samples):
            # Once known to be hopeless (it waits for the device itself) it is not tried again.
            taken.append(self._clock.time_all(self._calls, 1 if self.is_late else _ATTEMPTS))
            if self._clock.is_late and not self.is_late:
                self.is_late = True
                self.fallback = "; ".join(filter(None, [self.fallback, _LATE]))
        return taken

    def fault(self) -> str | None:
        """Nothing: copies run the same code that is checked, eagerly."""
        return None


class SynchronizedClock:
    """Wall time of one eager call: launch, work, and waiting for its end."""

    name: Literal["host", "device"] = "host"
    method = "perf_counter_ns, synchronized"

    def __init__(self, device_clock: DeviceClock) -> None:
        self._device_clock = device_clock
        self.cache: Cache = device_clock.cache

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, each waited for before the next."""
        total = 0
        for _ in range(calls):
            if self._device_clock.flush is not None:
                self._device_clock.flush()
            self.synchronize()
            start = now_ns()
            call()
            self.synchronize()
            total += now_ns() - start
        return total / 1e9 / calls

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        self._device_clock.synchronize()


def _sleep(cycles: int) -> None:
    """Keep the device busy; enqueued, not waited for."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
