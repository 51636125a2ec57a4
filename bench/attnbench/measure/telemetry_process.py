"""The sampling process: looks at the machine at a steady rate, writes what it sees.

Run as ``python -m attnbench.measure.telemetry_process SETTINGS`` by ``telemetry.Sampler``.
One sample a line goes to standard output; a line ``{"watch": PID}`` on standard input
names the worker; its end ends the process, so that it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import Any

from attnbench.measure.telemetry_cpu import CpuProbe
from attnbench.measure.telemetry_gpu import GpuProbe

_SCAN_PERIOD_S = 1.0
_TIME_SHARE, _SCAN_SHARE = 0.002, 0.001  # of one core, that looks may cost


@dataclass
class Pace:
    """When to look again: every ``period_s``, but never for more than ``share`` of the time."""

    period_s: float
    share: float
    due: float = 0.0

    def took(self, began: float, cost_s: float) -> None:
        """A look that began then has cost that much processor time."""
        self.due = began + max(self.period_s, cost_s / self.share)


class Observer:
    """Makes samples of what the probes see.

    Args:
        cpu: always there.
        gpu: None where nothing is measured on a GPU.
    """

    def __init__(self, cpu: CpuProbe, gpu: GpuProbe | None) -> None:
        self._cpu, self._gpu = cpu, gpu
        self._time, self._scan = Pace(0.0, _TIME_SHARE), Pace(_SCAN_PERIOD_S, _SCAN_SHARE)
        self._told_absent: dict[str, str] | None = None

    def watch(self, pid: int) -> None:
        """Whose processor time is not that of others."""
        self._cpu.watch(pid)

    def look(self) -> dict[str, Any]:
        """The fields of a ``Sample``, and ``absent`` where it is not what was told last."""
        cpu, gpu = self._cpu, self._gpu
        sample: dict[str, Any] = {"t": time.monotonic()}
        gauges: dict[str, float] = {}
        counters: dict[str, float] = {"sampler_s": time.process_time()}
        if gpu is not None:
            gpu.read()
            gauges |= gpu.gauges
            sample["throttle"] = gpu.throttle
        if sample["t"] >= self._time.due:
            began = time.process_time()
            cpu.read()
            self._time.took(sample["t"], time.process_time() - began)
            counters |= cpu.counters
            if sample["t"] >= self._scan.due:
                began = time.process_time()
                cpu.scan()
                if gpu is not None:
                    gpu.scan(cpu.tree)
                    sample["gpu_others"] = gpu.others
                self._scan.took(sample["t"], time.process_time() - began)
                counters |= cpu.counters
                sample["busy"] = cpu.busy
            gauges |= cpu.gauges
            sample["cores"] = cpu.cores
        absent = cpu.absent | (gpu.absent if gpu is not None else {})
        if absent != self._told_absent:
            sample["absent"] = self._told_absent = absent
        rounded = {name: round(value, 6) for name, value in counters.items()}
        return sample | {"gauges": gauges, "counters": rounded}


def main() -> None:
    """Sample until standard input ends."""
    told = json.loads(sys.argv[1])
    is_gpu = told["device"].startswith("cuda")
    observer = Observer(CpuProbe(), GpuProbe(told["gpu_uuid"]) if is_gpu else None)
    period_s = 1 / told["rate_hz"]
    due, heard = time.monotonic(), b""
    while True:
        if select.select([0], [], [], max(0.0, due - time.monotonic()))[0]:
            data = os.read(0, 1 << 12)
            if not data:
                return
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                observer.watch(json.loads(line)["watch"])
        if time.monotonic() >= due:
            line = json.dumps(observer.look(), allow_nan=False).encode() + b"\n"
            try:
                os.write(1, line)
            except BrokenPipeError:
                return
            due = max(due + period_s, time.monotonic())  # a late one is not made up for


if __name__ == "__main__":
    main()
