"""Energy from counters whose power is known, on a clock that only moves when told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench.measure.energy_counters import (
    Absent,
    MeterFault,
    NvmlMeter,
    RaplMeter,
    meter_for,
)
from attnbench.measure.power import Energy, Time, energy_per_call, idle_power, joules_per_token
from attnbench.problem import Problem
from attnbench.record import Energy as Recorded
from attnbench.stats import Interval

IDLE_W, WORK_W, CALL_S = 80.0, 500.0, 0.004


class Machine:
    """A device that draws ``IDLE_W`` asleep and ``WORK_W`` at work, with a lagging counter."""

    name, step_j, period_s = "a made-up counter", 1e-3, 0.1

    def __init__(self, idle_w: float = IDLE_W, work_w: float = WORK_W) -> None:
        self.t = self.joules = self.shown = self.shown_at = 0.0
        self.idle_w, self.work_w = idle_w, work_w
        self.fails_after: float | None = None

    def spend(self, seconds: float, watts: float) -> None:
        self.t += seconds
        self.joules += seconds * watts
        if self.t - self.shown_at >= self.period_s:
            self.shown, self.shown_at = self.joules, self.t

    def call(self) -> None:
        self.spend(CALL_S, self.work_w)

    def read_j(self) -> float:
        if self.fails_after is not None and self.t > self.fails_after:
            raise MeterFault("the driver is gone")
        return self.shown

    @property
    def timer(self) -> Time:
        return Time(lambda: self.t, lambda seconds: self.spend(seconds, self.idle_w))


def energy_of(machine: Machine, **settings: Any) -> Energy | Absent:
    idle_w = idle_power(machine, timer=machine.timer)
    return energy_per_call(
        machine.call, lambda: None, machine, idle_w, timer=machine.timer, **settings
    )


def test_known_power_gives_known_joules_gross_and_net() -> None:
    energy = energy_of(Machine())
    assert isinstance(energy, Energy)
    assert energy.gross_j.median == pytest.approx(WORK_W * CALL_S, rel=0.03)
    assert isinstance(energy.net_j, Interval)
    assert energy.net_j.median == pytest.approx((WORK_W - IDLE_W) * CALL_S, rel=0.04)
    assert energy.net_j.low <= (WORK_W - IDLE_W) * CALL_S <= energy.net_j.high
    assert energy.idle_w.median == pytest.approx(IDLE_W, rel=0.05)
    assert energy.power_w == pytest.approx(WORK_W, rel=0.03)
    assert len(energy.joules) == 5
    assert energy.calls * CALL_S >= 20 * Machine.period_s


def test_a_record_reads_what_it_tells() -> None:
    energy = energy_of(Machine())
    assert isinstance(energy, Energy)
    recorded = Recorded.model_validate(energy.to_json())
    assert recorded.gross_j == energy.gross_j.median
    assert recorded.net_j is not None
    assert recorded.net_absent is None


def test_work_that_cannot_be_told_from_idling_has_no_net_figure() -> None:
    energy = energy_of(Machine(idle_w=100.0, work_w=100.0))
    assert isinstance(energy, Energy)
    assert isinstance(energy.net_j, Absent)
    told = Recorded.model_validate(energy.to_json())
    assert told.net_j is None
    assert "told from idling" in (told.net_absent or "")


def test_a_counter_that_does_not_move_gives_no_figure_rather_than_zero() -> None:
    found = energy_of(Machine(idle_w=0.0, work_w=0.0))
    assert isinstance(found, Absent)
    assert "did not move" in found.reason


def test_a_meter_that_fails_is_told_at_whatever_moment() -> None:
    for moment in (0.1, 4.0):
        machine = Machine()
        machine.fails_after = moment
        assert energy_of(machine) == Absent("the driver is gone")


def test_what_would_take_too_long_is_not_begun() -> None:
    found = energy_of(Machine(), max_s=5.0)
    assert isinstance(found, Absent)
    assert "longer than 5 s" in found.reason


def test_fewer_than_five_loops_are_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        energy_of(Machine(), repeats=4)


def test_joules_a_token_are_those_of_a_query() -> None:
    assert joules_per_token(6.0, Problem.of(batch=2, seqlen=3)) == 1.0


# ---- RAPL --------------------------------------------------------------------------------


def domain(
    root: Path, place: str, name: str, microjoules: int, most: int = 262_143_328_850
) -> Path:
    folder = root / "sys/class/powercap" / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_packages_and_their_memory_are_added_and_nothing_counts_twice(tmp_path: Path) -> None:
    zero = domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    one = domain(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    core = domain(tmp_path, "intel-rapl:0/intel-rapl:0:0", "core", 0)
    dram = domain(tmp_path, "intel-rapl:0/intel-rapl:0:1", "dram", 0)
    psys = domain(tmp_path, "intel-rapl:2", "psys", 0)
    mmio = domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    meter = RaplMeter(tmp_path)
    assert meter.name == "RAPL package-0 + package-1 + dram"
    assert meter.read_j() == 0.0
    (zero / "energy_uj").write_text("3000000")
    (one / "energy_uj").write_text("5500000")
    (dram / "energy_uj").write_text("250000")
    for ignored in (core, psys, mmio):
        (ignored / "energy_uj").write_text("99000000")
    assert meter.read_j() == pytest.approx(2.75)


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    folder = domain(tmp_path, "intel-rapl:0", "package-0", 9_500_000, most=10_000_000)
    meter = RaplMeter(tmp_path)
    (folder / "energy_uj").write_text("500000")
    assert meter.read_j() == pytest.approx(1.0)
    (folder / "energy_uj").write_text("700000")
    assert meter.read_j() == pytest.approx(1.2)


def test_without_counters_or_the_right_to_read_them_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(MeterFault, match="no RAPL counters"):
        RaplMeter(tmp_path)
    folder = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "energy_uj").write_text("garbage")
    with pytest.raises(MeterFault, match="energy_uj"):
        RaplMeter(tmp_path)


def test_a_counter_that_only_root_may_read_says_how_to_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1)

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return (tmp_path / path).open().read()

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterFault, match="chmod a\\+r"):
        RaplMeter(tmp_path)


# ---- NVML --------------------------------------------------------------------------------


class Nvml:
    """A stand-in for pynvml."""

    millijoules = 5_000

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: str) -> int:
        if self.millijoules < 0:
            raise RuntimeError("Not Supported")
        return self.millijoules


def test_nvml_counts_millijoules() -> None:
    assert NvmlMeter("GPU-1", Nvml()).read_j() == 5.0


def test_a_gpu_without_a_counter_says_so_before_anything_is_measured() -> None:
    nvml = Nvml()
    nvml.millijoules = -1
    with pytest.raises(MeterFault, match="TotalEnergyConsumption: Not Supported"):
        NvmlMeter("GPU-1", nvml)


def test_a_gpu_that_nvml_does_not_know_has_no_meter() -> None:
    assert meter_for("cuda:0", None) == Absent("it is not known which of NVML's GPUs this is")
