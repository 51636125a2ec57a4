"""What a worker does with a meter: idle power once, the fields of a record, reasons."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.measure import energy
from attnbench.measure.energy import EnergyMeter
from attnbench.measure.energy_counters import Absent
from attnbench.measure.power import Energy
from attnbench.stats import Interval

CPU = torch.device("cpu")
WATTS = Interval(80.0, 79.0, 81.0)
FOUND = Energy(
    Interval(2.0, 1.9, 2.1), Interval(1.5, 1.4, 1.6), WATTS, 500.0, (2.0,) * 5, 10, "a counter"
)


class Counter:
    """A meter as slow as NVML's."""

    name = "a counter"
    step_j = 1e-3
    period_s = 0.1

    def read_j(self) -> float:
        raise AssertionError("nobody reads it here")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of each measurement. Idle power is there to be had once."""
    calls: list[dict[str, Any]] = []
    idle = iter([WATTS])

    def measured(call: Any, synchronize: Any, meter: Any, idle_w: Any, **settings: Any) -> Energy:
        calls.append({"idle_w": idle_w, **settings})
        return FOUND

    monkeypatch.setattr(energy, "idle_power", lambda meter: next(idle))
    monkeypatch.setattr(energy, "energy_per_call", measured)
    return calls


def test_idle_power_is_waited_for_once_and_the_loops_share_the_time(
    asked: list[dict[str, Any]],
) -> None:
    meter = EnergyMeter(CPU, 10.0, Counter())
    for _ in range(2):
        assert meter.measure(lambda: None) == {"energy": FOUND.to_json()}
    assert asked == [{"idle_w": WATTS, "seconds": 2.0, "repeats": 5, "max_s": 20.0}] * 2


def test_too_short_a_time_for_the_meter_says_how_long_it_needs() -> None:
    told = EnergyMeter(CPU, 4.0, Counter()).measure(lambda: None)
    assert told == {"energy_absent": "energy_s = 4: a counter needs 10 s or more"}


def test_without_a_meter_the_reason_is_told() -> None:
    meter = EnergyMeter(CPU, 1.0, Absent("no RAPL counters"))
    assert meter.measure(lambda: None) == {"energy_absent": "no RAPL counters"}
