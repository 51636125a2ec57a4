"""What NVML tells, from a stand-in for it: what it says, what it refuses, who else is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.measure.telemetry_gpu import GpuProbe, reason_names

MINE, OTHER = 500, 600


class NVMLError(Exception):
    def __init__(self, value: int, text: str = "Not Supported") -> None:
        super().__init__(text)
        self.value = value


class Nvml:
    """A stand-in for pynvml with one GPU."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_FOUND = 6

    def __init__(self, bits: int = 0, processes: dict[int, int | None] | None = None) -> None:
        self.bits = bits
        self.processes = processes or {}
        self.percent: dict[int, int] | None = {}
        self.refused: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.refused:
            raise NVMLError(3)
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise NVMLError(6, "Not Found")
        return uuid

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTemperature(self, gpu: str, kind: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 412_500

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        return SimpleNamespace(gpu=98)

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:
        return self.bits

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: str) -> list[Any]:
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: str) -> list[Any]:
        return []

    def nvmlDeviceGetProcessUtilization(self, gpu: str, since: int) -> list[Any]:
        if self.percent is None:
            raise NVMLError(3)
        if not self.percent:
            raise NVMLError(self.NVML_ERROR_NOT_FOUND, "Not Found")
        return [
            SimpleNamespace(pid=p, smUtil=u, timeStamp=since + 1) for p, u in self.percent.items()
        ]


def probe_of(nvml: Nvml, root: Path) -> GpuProbe:
    (root / "proc" / str(OTHER)).mkdir(parents=True, exist_ok=True)
    (root / "proc" / str(OTHER) / "comm").write_text("train\n")
    probe = GpuProbe("GPU-1", nvml, root)
    probe.read()
    probe.scan({MINE})
    return probe


def test_clocks_temperature_power_and_use_are_in_their_units(tmp_path: Path) -> None:
    probe = probe_of(Nvml(), tmp_path)
    assert probe.gauges == {
        "sm_clock_mhz": 1980.0,
        "memory_clock_mhz": 2619.0,
        "gpu_temperature_c": 61.0,
        "power_w": 412.5,
        "gpu_percent": 98.0,
    }
    assert probe.throttle == []


def test_reasons_have_names_and_an_unknown_one_is_kept() -> None:
    assert reason_names(0) == []
    assert reason_names(0x04) == ["power_cap"]
    assert reason_names(0x20 | 0x40 | 0x80) == ["thermal", "hw_thermal", "power_brake"]
    assert reason_names(0x1000) == ["unknown_0x1000"]


def test_an_older_library_names_the_reasons_differently(tmp_path: Path) -> None:
    class Older(Nvml):
        nvmlDeviceGetCurrentClocksEventReasons = None  # type: ignore[assignment]

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:
            return 0x40

    assert probe_of(Older(), tmp_path).throttle == ["hw_thermal"]


def test_another_process_is_named_with_its_memory_and_its_share(tmp_path: Path) -> None:
    nvml = Nvml(processes={MINE: 10, OTHER: 2**30})
    nvml.percent = {MINE: 60, OTHER: 35}
    assert probe_of(nvml, tmp_path).others == [
        {"pid": OTHER, "name": "train", "memory_bytes": 2**30, "sm_percent": 35}
    ]


def test_one_that_only_holds_memory_has_a_share_of_zero_and_an_unknown_share_is_none(
    tmp_path: Path,
) -> None:
    nvml = Nvml(processes={MINE: 10, OTHER: None})
    others = probe_of(nvml, tmp_path).others
    assert others is not None
    assert others[0]["sm_percent"] == 0
    assert others[0]["memory_bytes"] is None
    nvml.percent = None
    others = probe_of(nvml, tmp_path).others
    assert others is not None
    assert others[0]["sm_percent"] is None


def test_alone_is_told_as_nobody_and_in_a_container_it_cannot_be_told(tmp_path: Path) -> None:
    assert probe_of(Nvml(processes={MINE: 1}), tmp_path).others == []
    for hidden in ({99999: 1}, {}):  # pids of another namespace, or none at all
        probe = probe_of(Nvml(processes=hidden), tmp_path)
        assert probe.others is None
        assert "container" in probe.absent["gpu_others"]
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    os.symlink("pid:[4026531836]", tmp_path / "proc/self/ns/pid")
    assert probe_of(Nvml(), tmp_path).others == []
    seen = probe_of(Nvml(processes={OTHER: 1}), tmp_path).others
    assert seen is not None
    assert [other["pid"] for other in seen] == [OTHER]


def test_a_refused_question_costs_only_its_own_signal(tmp_path: Path) -> None:
    nvml = Nvml(bits=0x20, processes={MINE: 1})
    nvml.refused = {"nvmlDeviceGetPowerUsage"}
    probe = probe_of(nvml, tmp_path)
    assert "power_w" not in probe.gauges
    assert probe.absent == {"power_w": "NVML: Not Supported"}
    assert probe.throttle == ["thermal"]
    nvml.refused = set()
    probe.read()
    assert probe.gauges["power_w"] == 412.5
    assert probe.absent == {}


@pytest.mark.parametrize(("uuid", "why"), [(None, "not known which"), ("GPU-2", "NVML: Not Found")])
def test_without_the_gpu_everything_is_absent_and_says_why(
    uuid: str | None, why: str, tmp_path: Path
) -> None:
    probe = GpuProbe(uuid, Nvml(), tmp_path)
    probe.read()
    probe.scan({MINE})
    assert (probe.gauges, probe.throttle, probe.others) == ({}, None, None)
    assert set(probe.absent) >= {"sm_clock_mhz", "power_w", "throttle", "gpu_others"}
    assert all(why in reason for reason in probe.absent.values())


def test_without_the_library_everything_is_absent_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    probe = GpuProbe("GPU-1")
    probe.read()
    assert probe.gauges == {}
    assert "pynvml" in probe.absent["throttle"]
