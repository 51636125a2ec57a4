"""What NVML tells about one GPU: clocks, temperature, power, throttling, who else is there.

The GPU is named by its UUID, because NVML counts all GPUs of the machine while torch's
``cuda:N`` counts those that ``CUDA_VISIBLE_DEVICES`` leaves. On Ampere and newer
``nvmlDeviceGetPowerUsage`` is the mean of the last second (NVML's reference says), so
``power_w`` lags; energy is taken from the energy counter instead (see ``power``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REASONS = {
    0x001: "idle",
    0x002: "application_clocks",  # clocks that somebody has set
    0x004: "power_cap",
    0x008: "hw_slowdown",  # thermal or power brake, as older drivers say it
    0x010: "sync_boost",
    0x020: "thermal",  # the driver, above the slowdown temperature
    0x040: "hw_thermal",
    0x080: "power_brake",  # from outside: the power supply asks for less
    0x100: "display_clocks",
}
"""Clock event reasons (``nvmlClocksEventReasons…``; "throttle reasons" before driver 535)."""

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
_TEMPERATURE_GPU = 0  # NVML_TEMPERATURE_GPU
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # NVML_CLOCK_SM, NVML_CLOCK_MEM
_ONLY_IN_CONTAINER = "in a container the GPU's other processes cannot be told"


def reason_names(bits: int) -> list[str]:
    """Names of the reasons in a bit mask; a bit without a name is kept as ``unknown_0x…``.

    >>> reason_names(0x44)
    ['power_cap', 'hw_thermal']
    """
    names = [name for bit, name in REASONS.items() if bits & bit]
    rest = bits & ~sum(REASONS)
    return names + ([f"unknown_{rest:#x}"] if rest else [])


class GpuProbe:
    """Reads one GPU's state.

    Args:
        uuid: ``GPU-…``, as NVML writes it; None if it is not known.
        nvml: the module ``pynvml``, or one like it; None imports it.
        root: where ``proc`` is.

    Attributes:
        gauges, throttle, others: what was seen last (see ``telemetry_summary.Sample``).
        absent: reasons of what cannot be seen.
    """

    def __init__(self, uuid: str | None, nvml: Any = None, root: Path = Path("/")) -> None:
        self.gauges: dict[str, float] = {}
        self.throttle: list[str] | None = None
        self.others: list[dict[str, Any]] | None = None
        self.absent: dict[str, str] = {}
        self._proc = root / "proc"
        self._nvml, self._handle = nvml, None
        self._last_seen_us = 0  # NVML's clock, of the newest sample of utilisation
        self._readers: dict[str, Callable[[], float]] = {}
        why = self._open(uuid)
        if why is None:
            self._readers = self._gauge_readers()
        else:
            signals = (*self._gauge_readers(), "throttle", "gpu_others")
            self.absent = dict.fromkeys(signals, why)

    def read(self) -> None:
        """Look at clocks, temperature, power, utilisation and throttle reasons."""
        self.others = None
        self.gauges = {}
        for name, reader in self._readers.items():
            value = self._ask(name, reader)
            if value is not None:
                self.gauges[name] = value
        if self._readers:
            bits = self._ask("throttle", self._throttle_bits)
            self.throttle = None if bits is None else reason_names(bits)

    def scan(self, tree: Iterable[int]) -> None:
        """Look for processes on the GPU that are not in ``tree`` (the worker's)."""
        if not self._readers:
            return
        found = self._ask("gpu_others", self._processes)
        if found is None:
            return
        mine = set(tree)
        if not mine & set(found) and not self._sees_all_processes():
            # The pids are those of another namespace, so that the worker may be among them;
            # or NVML hides whoever is not in this one, and nobody seen is not nobody there.
            self.absent["gpu_others"] = _ONLY_IN_CONTAINER
            return
        percent = self._percent_by_process()
        self.others = [
            {
                "pid": pid,
                "name": self._name(pid),
                "memory_bytes": used,
                "sm_percent": None if percent is None else percent.get(pid, 0),
            }
            for pid, used in sorted(found.items())
            if pid not in mine
        ]

    # ---- NVML ------------------------------------------------------------------------

    def _open(self, uuid: str | None) -> str | None:
        """Find the GPU; say why not."""
        if uuid is None:
            return "it is not known which of NVML's GPUs this is"
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # no module, no library, no driver, no such GPU
            return f"NVML: {error}"
        return None

    def _gauge_readers(self) -> dict[str, Callable[[], float]]:
        nvml, gpu = self._nvml, self._handle
        return {
            "sm_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(gpu, _CLOCK_SM)),
            "memory_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(gpu, _CLOCK_MEMORY)),
            "gpu_temperature_c": lambda: float(
                nvml.nvmlDeviceGetTemperature(gpu, _TEMPERATURE_GPU)
            ),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "gpu_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        }

    def _ask(self, signal: str, question: Callable[[], Any]) -> Any:
        """NVML's answer, or None, and why the signal is absent."""
        try:
            answer = question()
        except Exception as error:
            self.absent[signal] = f"NVML: {error}"
            return None
        self.absent.pop(signal, None)
        return answer

    def _throttle_bits(self) -> int:
        nvml = self._nvml
        # Renamed in driver 535; an older nvidia-ml-py knows only the old name.
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        return int(ask(self._handle))

    def _processes(self) -> dict[int, int | None]:
        """Bytes used by each process that has a context on the GPU; None where not told."""
        nvml = self._nvml
        kinds = (nvml.nvmlDeviceGetComputeRunningProcesses,)
        graphics = nvml.nvmlDeviceGetGraphicsRunningProcesses
        return {p.pid: p.usedGpuMemory for ask in (*kinds, graphics) for p in ask(self._handle)}

    def _percent_by_process(self) -> dict[int, int] | None:
        """Share of the SMs that each process kept busy since the last look; None if not told."""
        nvml = self._nvml
        try:
            found = nvml.nvmlDeviceGetProcessUtilization(self._handle, self._last_seen_us)
        except nvml.NVMLError as error:
            return {} if error.value == nvml.NVML_ERROR_NOT_FOUND else None
        most: dict[int, int] = {}
        for sample in found:
            self._last_seen_us = max(self._last_seen_us, int(sample.timeStamp))
            most[sample.pid] = max(most.get(sample.pid, 0), int(sample.smUtil))
        return most

    # ---- /proc -----------------------------------------------------------------------

    def _sees_all_processes(self) -> bool:
        try:
            return os.readlink(self._proc / "self/ns/pid") == _INITIAL_PID_NAMESPACE
        except OSError:
            return False

    def _name(self, pid: int) -> str:
        try:
            text = (self._proc / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return "a process"
        return "".join(letter if letter.isprintable() else "?" for letter in text)
