"""Energy of the contenders of one problem: which meter, the idle power once, the fields told.

How joules are measured is in ``power``; here is what a worker does with it.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench.device import nvml_uuid, synchronize
from attnbench.measure.energy_counters import Absent, Meter, meter_for
from attnbench.measure.power import LEAST_PERIODS, Call, energy_per_call, idle_power
from attnbench.stats import Interval

_LOOPS = 5


class EnergyMeter:
    """Measures calls on one device, which must be idle but for them.

    Args:
        device: cpu or cuda:N.
        seconds: of the loops of each call, all together.
        meter: of the device; None finds it.
    """

    def __init__(
        self, device: torch.device, seconds: float, meter: Meter | Absent | None = None
    ) -> None:
        self._device, self._seconds = device, seconds
        self._meter = meter_for(str(device), nvml_uuid(device)) if meter is None else meter
        self._idle_w: Interval | Absent | None = None

    def measure(self, call: Call) -> dict[str, Any]:
        """Fields of a record: ``energy``, or ``energy_absent`` with the reason.

        The first call also waits for the device's idle power.
        """
        if (told := self._too_short()) is not None:
            return {"energy_absent": told}
        if self._idle_w is None:
            synchronize(self._device)
            self._idle_w = idle_power(self._meter)
        energy = energy_per_call(
            call,
            lambda: synchronize(self._device),
            self._meter,
            self._idle_w,
            seconds=self._seconds / _LOOPS,
            repeats=_LOOPS,
            max_s=2 * self._seconds,
        )
        if isinstance(energy, Absent):
            return {"energy_absent": energy.reason}
        return {"energy": energy.to_json()}

    def _too_short(self) -> str | None:
        """Why the time is too short for the meter to tell anything, if it is."""
        if isinstance(self._meter, Absent):
            return None
        least_s = _LOOPS * LEAST_PERIODS * self._meter.period_s
        if self._seconds >= least_s:
            return None
        return f"energy_s = {self._seconds:g}: {self._meter.name} needs {least_s:g} s or more"
