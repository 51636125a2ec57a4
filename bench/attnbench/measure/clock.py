"""Clocks: how long one call takes, in seconds.

On a CPU the host's ``perf_counter_ns``; on CUDA device events around the call, with the
L2 cache flushed first (twice its size is overwritten), so that host launch time stays out
and every sample starts cold. The flush also keeps the device busy while the host
enqueues the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Call = Callable[[], None]

_now = time.perf_counter_ns  # bound at import: a plugin that patches time changes nothing
_EVENT_RESOLUTION_S = 20e-6  # below this a single pair of events is too coarse
_HOST_RESOLUTION_S = 50e-6  # below this a single call drowns in the loop and the timer


class Clock(Protocol):
    """Times a number of back-to-back calls."""

    name: str
    resolution_s: float  # calls shorter than this are timed several at a time

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row."""

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""


class HostClock:
    """Wall time of the calling thread."""

    name = "host"
    resolution_s = _HOST_RESOLUTION_S

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row."""
        start = _now()
        for _ in range(calls):
            call()
        return (_now() - start) / 1e9 / calls

    def synchronize(self) -> None:
        """Nothing to wait for."""


class DeviceClock:
    """CUDA events around the call, starting from a cold L2."""

    name = "device"
    resolution_s = _EVENT_RESOLUTION_S

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, over ``calls`` calls in a row; only the first finds L2 cold."""
        self._flush.zero_()
        self._start.record()
        for _ in range(calls):
            call()
        self._stop.record()
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop)) / 1e3 / calls

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        torch.cuda.synchronize(self._device)


def clock_for(device: torch.device) -> Clock:
    """The clock that tells a device's time."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()
