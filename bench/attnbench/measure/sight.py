"""What can be seen on this machine while something is measured, and why not the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from attnbench.measure.energy_counters import Absent, meter_for
from attnbench.measure.telemetry_cpu import CpuProbe
from attnbench.measure.telemetry_gpu import GpuProbe

_CPU_SIGNALS = (
    "others_cores", "steal_cores", "wait_share", "load_1min",
    "cpu_frequency_mhz", "cpu_temperature_c", "throttle_events",
)  # fmt: skip
_GPU_SIGNALS = (
    "sm_clock_mhz", "memory_clock_mhz", "gpu_temperature_c", "power_w", "gpu_percent",
    "throttle", "gpu_others",
)  # fmt: skip


def telemetry_sight(
    device: str, gpu_uuid: str | None = None, root: Path = Path("/")
) -> dict[str, str | None]:
    """Each signal of the telemetry, with the reason where it cannot be seen.

    Args:
        device: ``cpu`` or ``cuda:N``.
        gpu_uuid: which GPU, as NVML names it.
        root: where ``proc`` and ``sys`` are.
    """
    cpu = CpuProbe(root)
    cpu.watch(os.getpid())
    cpu.scan()
    cpu.read()
    seen = _by_signal(_CPU_SIGNALS, cpu.absent)
    if device.startswith("cuda"):
        gpu = GpuProbe(gpu_uuid, root=root)
        gpu.read()
        gpu.scan(cpu.tree)
        seen |= _by_signal(_GPU_SIGNALS, gpu.absent)
    return seen


def energy_sight(device: str, gpu_uuid: str | None = None) -> tuple[bool, str]:
    """Whether energy can be measured, and by which meter or why not."""
    meter = meter_for(device, gpu_uuid)
    return (False, meter.reason) if isinstance(meter, Absent) else (True, meter.name)


def _by_signal(signals: tuple[str, ...], absent: Mapping[str, str]) -> dict[str, str | None]:
    return {signal: absent.get(signal) for signal in signals}
