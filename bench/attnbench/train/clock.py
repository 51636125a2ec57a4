"""The clock of training steps: wall time, launching and waiting for data included.

Tokens a second are what a training run gets, so neither launch overhead nor gaps between
kernels may stay out, as they do from a single attention's device time. Several steps make a
sample where one is short, because a device runs behind the host that launches it: waiting
for it after each step would stop it each time.
"""

from __future__ import annotations

from typing import Literal

import torch

from attnbench.device import synchronize
from attnbench.measure.cache import Cache
from attnbench.measure.clock import Call, LoopTimer, Stopwatch, Timer, Work, now_ns

_DEVICE_RESOLUTION_S = 0.25  # of a sample on a GPU: the wait at its end is then below a per mille


class StepClock:
    """Wall time of steps in a row, the device waited for before and after."""

    name: Literal["host", "device"] = "host"
    cache: Cache = "warm"
    host: Stopwatch | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self.method = "perf_counter_ns" + (", synchronized around several steps" * is_cuda)
        self.resolution_s = _DEVICE_RESOLUTION_S if is_cuda else 0.0

    def time(self, call: Call, calls: int) -> float:
        """Seconds a step, over ``calls`` steps in a row."""
        self.synchronize()
        start = now_ns()
        for _ in range(calls):
            call()
        self.synchronize()
        return (now_ns() - start) / 1e9 / calls

    def timer(self, work: Work) -> Timer:
        """One sample after another."""
        return LoopTimer(self, work)

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        synchronize(self._device)
