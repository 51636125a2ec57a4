"""Energy: the counter's joules against the power that the device reports, added up.

NVML tells both: ``TotalEnergyConsumption``, the counter that energy a call is taken from,
and ``PowerUsage``, an average over up to a second (``nvidia-smi`` shows it). Under a steady
load of several seconds the growth of the one is the integral of the other, but for what
the average remembers of before: the load runs for a while before anything is read.

RAPL tells energy alone, so that on a CPU there is nothing to hold the counter against.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from attnbench.device import nvml_uuid
from attnbench.errors import in_words
from attnbench.measure.selftest_check import Check, Instrument, judged, not_here
from attnbench.selftest import Row

ALLOWED = 0.05
_SETTLE_S = 2.0  # twice the window of the averaged power
_STRETCH_S = 4.0
_SIDE = 8192  # of the matrices whose product is the load: a few milliseconds


@dataclass(frozen=True)
class Readings:
    """What the device says of its energy and power, and the time of a reading."""

    joules: Callable[[], float]
    watts: Callable[[], float]
    now_s: Callable[[], float] = time.monotonic


def energy(instrument: Instrument) -> Row:
    """The device's own counter against its integrated power."""
    if instrument.device.type != "cuda":
        reason = "a CPU reports no power to hold its counter of energy against"
        return not_here("energy", reason)
    try:
        readings = _nvml(instrument.device)
        readings.joules()
        readings.watts()
    except Exception as error:  # no library, no permission, or a GPU without the counter
        return not_here("energy", f"NVML: {in_words(error)}")
    a = torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=instrument.device)

    def work() -> None:
        a @ a
        instrument.clock.synchronize()

    return compare_energy(readings, work)


def compare_energy(readings: Readings, work: Callable[[], object]) -> Row:
    """Load the device, and read both from one update of the counter to a later one.

    The counter moves every 20 to 100 ms: the stretch begins and ends when it does.
    """
    _keep_busy(readings, work, _SETTLE_S)
    begin_j = _next_update(readings, work)
    last_s, last_w = readings.now_s(), readings.watts()
    start_s, integral_j = last_s, 0.0
    before_j = now_j = begin_j
    while now_j == before_j or last_s - start_s < _STRETCH_S:
        work()
        before_j, now_j = now_j, readings.joules()
        now_s, now_w = readings.now_s(), readings.watts()
        integral_j += (now_s - last_s) * (now_w + last_w) / 2
        last_s, last_w = now_s, now_w
        if last_s - start_s > 3 * _STRETCH_S:
            return not_here("energy", "the counter of energy does not move")
    return judged("energy", integral_j, now_j - begin_j, ALLOWED * integral_j, "J")


CHECK = Check("energy", energy)


def _keep_busy(readings: Readings, work: Callable[[], object], seconds: float) -> None:
    end = readings.now_s() + seconds
    while readings.now_s() < end:
        work()


def _next_update(readings: Readings, work: Callable[[], object]) -> float:
    """The counter, at the moment when it moves; as it is, if it does not move in a second."""
    before, end = readings.joules(), readings.now_s() + 1.0
    while (now := readings.joules()) == before and readings.now_s() < end:
        work()
    return now


def _nvml(device: torch.device) -> Readings:
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(nvml_uuid(device))
    return Readings(
        joules=lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        watts=lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
    )
