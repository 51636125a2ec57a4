"""Counters of the joules that a device has used, or the reason why a machine has none.

NVML's ``TotalEnergyConsumption`` for a GPU (Volta and newer), RAPL's ``energy_uj`` for a
processor (Intel, and AMD since Linux 5.8).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Absent:
    """A figure that this machine cannot tell, and why."""

    reason: str


class MeterFault(Exception):
    """The meter gave no figure; the text says why."""


class Meter(Protocol):
    """A counter of the joules that a device has used.

    Attributes:
        name: what it reads.
        step_j: the smallest growth that it shows.
        period_s: longest time between two updates.
    """

    name: str
    step_j: float
    period_s: float

    def read_j(self) -> float:
        """Joules since some fixed moment; never less than before.

        Raises:
            MeterFault: it cannot be read.
        """


class NvmlMeter:
    """The energy counter of one GPU, the whole board with its memory.

    Args:
        uuid: ``GPU-…``, as NVML writes it.
        nvml: the module ``pynvml``, or one like it; None imports it.

    Raises:
        MeterFault: no NVML, no such GPU, or one without a counter.
    """

    name = "NVML TotalEnergyConsumption"
    step_j = 1e-3
    period_s = 0.1

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        try:
            self._nvml = importlib.import_module("pynvml") if nvml is None else nvml
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # no module, no library, no driver, no such GPU
            raise MeterFault(f"NVML: {error}") from error
        self.read_j()

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1000
        except Exception as error:
            raise MeterFault(f"NVML: TotalEnergyConsumption: {error}") from error


class RaplMeter:
    """The energy counters of all processor packages, and of their memory where counted.

    The counters wrap around (after 262 kJ or less): read more often than that takes, which
    is minutes.

    Args:
        root: where ``sys`` is.

    Raises:
        MeterFault: no RAPL here, or it may not be read.
    """

    name = "RAPL"
    step_j = 61e-6  # Intel's usual unit, 2⁻¹⁴ J; AMD's is finer
    period_s = 0.01  # counted every millisecond or so

    def __init__(self, root: Path = Path("/")) -> None:
        folder = root / "sys/class/powercap"
        # Not intel-rapl-mmio (the same package again) and not psys (the packages and more).
        packages = [p for p in sorted(folder.glob("intel-rapl:*")) if p.name.count(":") == 1]
        self._domains = [p for p in packages if _domain_name(p).startswith("package")]
        for package in list(self._domains):
            inner = sorted(package.glob("intel-rapl:*:*"))
            self._domains += [d for d in inner if _domain_name(d) == "dram"]
        if not self._domains:
            raise MeterFault(f"no RAPL counters in {folder} (a virtual machine, or no driver)")
        self._ranges_j = [self._read(d, "max_energy_range_uj") for d in self._domains]
        self._last_j = [self._read(d, "energy_uj") for d in self._domains]
        self._total_j = 0.0
        self.name = "RAPL " + " + ".join(map(_domain_name, self._domains))

    def read_j(self) -> float:
        """Joules since this meter was made."""
        for i, domain in enumerate(self._domains):
            now_j = self._read(domain, "energy_uj")
            growth_j = now_j - self._last_j[i]
            self._total_j += growth_j if growth_j >= 0 else growth_j + self._ranges_j[i]
            self._last_j[i] = now_j
        return self._total_j

    def _read(self, domain: Path, file: str) -> float:
        path = domain / file
        try:
            return int(path.read_text()) / 1e6
        except PermissionError as error:
            hint = "only root may read it; an administrator can allow it with chmod a+r"
            raise MeterFault(f"RAPL: {path}: {hint}") from error
        except (OSError, ValueError) as error:
            raise MeterFault(f"RAPL: {path}: {error}") from error


def meter_for(device: str, gpu_uuid: str | None = None) -> Meter | Absent:
    """The meter of a device (``cpu``, ``cuda:0``), or why there is none."""
    try:
        if not device.startswith("cuda"):
            return RaplMeter()
        if gpu_uuid is None:
            return Absent("it is not known which of NVML's GPUs this is")
        return NvmlMeter(gpu_uuid)
    except MeterFault as fault:
        return Absent(str(fault))


def _domain_name(domain: Path) -> str:
    try:
        return (domain / "name").read_text().strip()
    except OSError:
        return ""
