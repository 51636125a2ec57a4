"""Telemetry: what the machine did while something was measured.

A process of its own looks at the GPU and the processor ten times a second, so that it
neither takes the worker's interpreter nor is held up by it. It sends its samples to the
parent, which asks for the figures, the verdict and the strip of any stretch of time. All
times are ``time.monotonic()``, which every process of a machine shares.

Cost: 0.4 % of one core and 14 MB, measured over 20 s at 10 Hz on a virtual machine of two
busy cores (AMD EPYC, 143 processes), by the sampler itself: each summary holds its own use as
``sampler_cores``. 194 of 200 samples came, the longest gap was 0.15 s. What costs more than
its share is looked at less often: listing the processes of a busy machine gets slower than
once a second, never dearer.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from attnbench.measure.telemetry_strip import strip
from attnbench.measure.telemetry_summary import Sample, is_hot, summarise

RATE_HZ = 10.0
_HISTORY_S = 3600.0  # kept; older samples are forgotten
_STOP_S = 2.0
_COOLER_C = 8.0  # below the temperature at which it was throttled: enough to go on
_QUIET_S = 10.0  # without throttling, where the temperature is not told
_POLL_S = 0.2
_BEFORE_S = 60.0  # samples from before a window that counters and rare looks need


class Sampler:
    """Watches a device and a worker from a process of its own. Use as a context manager.

    Args:
        device: ``cpu`` or ``cuda:N``.
        worker_pid: whose time is not that of others; see also :meth:`watch`.
        gpu_uuid: which GPU, as NVML names it (``GPU-…``); the environment knows it.
        rate_hz: samples a second.
    """

    def __init__(
        self,
        device: str,
        worker_pid: int | None = None,
        *,
        gpu_uuid: str | None = None,
        rate_hz: float = RATE_HZ,
    ) -> None:
        self.device = device
        self._samples: deque[Sample] = deque(maxlen=int(_HISTORY_S * rate_hz))
        self._absent: dict[str, str] = {}
        self._lock = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        told = {"device": device, "gpu_uuid": gpu_uuid, "rate_hz": rate_hz}
        self._process = subprocess.Popen(
            # -P: a random.py in the current folder is not the standard library's.
            [sys.executable, "-P", "-m", "attnbench.measure.telemetry_process", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()
        if worker_pid is not None:
            self.watch(worker_pid)

    def watch(self, worker_pid: int) -> None:
        """A fresh worker: from now on its time, and that of its children, is not others'."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # its end is told by the next window
            self._process.stdin.write(json.dumps({"watch": worker_pid}).encode() + b"\n")
            self._process.stdin.flush()

    def samples(self, since: float = -math.inf) -> list[Sample]:
        """The samples taken since a time, at most an hour's."""
        found = []
        with self._lock:
            for sample in reversed(self._samples):
                if sample.t < since:
                    break
                found.append(sample)
        return found[::-1]

    def window(self, t0: float, t1: float) -> dict[str, Any]:
        """Figures and verdict between two times; see :func:`telemetry_summary.summarise`."""
        return summarise(self.samples(t0 - _BEFORE_S), t0, t1, self.device, self._reasons())

    def strip(self, t0: float, t1: float, points: int = 60) -> dict[str, Any]:
        """A thinned series to draw; see :func:`telemetry_strip.strip`."""
        return strip(self.samples(t0), t0, t1, points)

    def until_cool(self, limit_s: float = 60.0) -> float:
        """Wait until the GPU has cooled down after throttling, but not for ever.

        Cool means no thermal reason, and 8 °C below where it was when this was called; where
        the temperature is not told, ten seconds without a thermal reason.

        Returns:
            Seconds waited; ``limit_s`` or a little more if it never got cool.
        """
        return wait_until_cool(self.samples, limit_s)

    def close(self) -> None:
        """End the sampling process; idempotent."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # it ends when nobody can speak to it any more
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                return  # it was killed in the middle of a line
            told = json.loads(line)
            with self._lock:
                self._absent = told.pop("absent", self._absent)
                self._samples.append(Sample(**told))

    def _reasons(self) -> dict[str, str]:
        with self._lock:
            absent = dict(self._absent)
        if self._process.poll() is not None and not self._log.closed:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            why = f"the sampler ended (code {self._process.returncode})"
            absent["sampler"] = f"{why}: {lines[-1]}" if lines else why
        return absent


def wait_until_cool(
    samples: Callable[[], list[Sample]],
    limit_s: float,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> float:
    """See :meth:`Sampler.until_cool`."""
    start = quiet_since = now()
    hot_c = _temperature(samples()[-1:])
    while now() - start < limit_s:
        latest = samples()[-1:]
        cool_c = _temperature(latest)
        if any(map(is_hot, latest)):
            quiet_since = now()
        elif hot_c is None or cool_c is None:
            if now() - quiet_since >= _QUIET_S:
                break
        elif cool_c <= hot_c - _COOLER_C:
            break
        sleep(_POLL_S)
    return now() - start


def _temperature(latest: Sequence[Sample]) -> float | None:
    return latest[0].gauges.get("gpu_temperature_c") if latest else None
