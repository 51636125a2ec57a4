"""Energy of a call: joules from a counter of energy, over a steady loop.

Power readings are averages over windows that nobody documents well, so energy is never
power × time here: it is the growth of a counter, NVML's ``TotalEnergyConsumption`` (Volta
and newer) or RAPL's ``energy_uj`` (Intel, and AMD since Linux 5.8). Such a counter is
brought up to date only every 20 to 100 ms (GPU), so a stretch of two seconds may be wrong
by a few percent at its ends; several stretches, each begun at a random phase of that
period, make the error one that averages out, and the interval shows it.

*Gross* is all that the device (for RAPL: all processor packages, whoever runs there) used
while the loop ran; *net* is without what it uses when idle.
"""

from __future__ import annotations

import importlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attnbench.stats import Interval, median_interval

if TYPE_CHECKING:
    from attnbench.problem import Problem

Call = Callable[[], None]

_LEAST_MOVES = 10  # a counter that grew by fewer of its steps tells nothing


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


@dataclass(frozen=True)
class Energy:
    """Joules a call.

    Attributes:
        gross_j: with all that the device used meanwhile; median and 95 % interval over the
            stretches.
        net_j: without its idle power; the interval holds that of the idle power too.
            Absent where the loop cannot be told from idling.
        idle_w: power when idle.
        power_w: mean power during the loop (median over the stretches).
        joules: gross joules of a call in each stretch.
        calls: a stretch.
        method: the meter.
    """

    gross_j: Interval
    net_j: Interval | Absent
    idle_w: Interval
    power_w: float
    joules: tuple[float, ...]
    calls: int
    method: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as :class:`attnbench.record.Energy` reads it."""
        net = self.net_j
        told = {"net_absent": net.reason} if isinstance(net, Absent) else _interval_json("net", net)
        return {
            **_interval_json("gross", self.gross_j),
            **told,
            "idle_w": self.idle_w.median,
            "power_w": self.power_w,
            "joules": list(self.joules),
            "calls": self.calls,
            "method": self.method,
        }


@dataclass(frozen=True)
class Time:
    """Where time comes from; tests have their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


REAL_TIME = Time()


def idle_power(
    meter: Meter | Absent, seconds: float = 0.5, repeats: int = 5, timer: Time = REAL_TIME
) -> Interval | Absent:
    """Watts that the device uses while this process sleeps.

    Measure it once for a device, right before or after the loops, so that the device is as
    warm as it is in them. A GPU keeps its clocks up for some seconds after work; what is
    measured is therefore its idling between two calls rather than that of the night.

    Args:
        meter: of the device, which must have finished its work.
        seconds: of each stretch, at least ten periods of the meter.
    """
    if isinstance(meter, Absent):
        return meter
    seconds = max(seconds, 10 * meter.period_s)
    watts = []
    try:
        for _ in range(repeats):
            start, before_j = timer.now(), meter.read_j()
            timer.sleep(seconds)
            watts.append((meter.read_j() - before_j) / (timer.now() - start))
    except MeterFault as fault:
        return Absent(str(fault))
    return median_interval([[w] for w in watts])


def energy_per_call(
    call: Call,
    synchronize: Call,
    meter: Meter | Absent,
    idle_w: Interval | Absent,
    *,
    seconds: float = 2.0,
    repeats: int = 5,
    max_s: float = 60.0,
    seed: int = 0,
    timer: Time = REAL_TIME,
) -> Energy | Absent:
    """Joules of one call, by the growth of an energy counter over steady loops.

    Args:
        call: what is measured; it must have been warmed up.
        synchronize: waits until the device has finished everything.
        meter, idle_w: from :func:`meter_for` and :func:`idle_power`.
        seconds: of each loop, at least 20 periods of the meter.
        repeats: loops, at least five.
        max_s: where that many loops would take longer, nothing is measured.
        seed: of the phase at which each loop begins.

    Raises:
        ValueError: fewer than five repeats.
    """
    if repeats < 5:
        raise ValueError(f"repeats must be at least 5, got {repeats}")
    if isinstance(meter, Absent):
        return meter
    if isinstance(idle_w, Absent):
        return idle_w
    seconds = max(seconds, 20 * meter.period_s)
    one_s = _seconds_a_call(call, synchronize, timer)
    calls = max(1, math.ceil(seconds / one_s))
    if repeats * calls * one_s > max_s:
        return Absent(f"{repeats} loops of {calls} calls would take longer than {max_s:g} s")
    phase = random.Random(seed)
    joules, durations = [], []
    try:
        for _ in range(repeats):
            _at_work(call, synchronize, timer, meter.period_s * (1 + phase.random()))
            start, before_j = timer.now(), meter.read_j()
            for _ in range(calls):
                call()
            synchronize()
            joules.append(meter.read_j() - before_j)
            durations.append(timer.now() - start)
    except MeterFault as fault:
        return Absent(str(fault))
    if min(joules) < _LEAST_MOVES * meter.step_j:
        return Absent(f"{meter.name} did not move during {min(durations):.2g} s of work")
    return _energy(joules, durations, calls, idle_w, meter.name)


def joules_per_token(joules: float, problem: Problem) -> float:
    """Joules a query token: a call does ``batch × seqlen_q`` of them."""
    return joules / (problem.batch * problem.seqlen_q)


def _seconds_a_call(call: Call, synchronize: Call, timer: Time, least_s: float = 0.2) -> float:
    """Seconds of a call in a loop, not one by one: a queue hides the cost of launching."""
    calls = 1
    while True:
        synchronize()
        start = timer.now()
        for _ in range(calls):
            call()
        synchronize()
        spent_s = timer.now() - start
        if spent_s >= least_s:
            return spent_s / calls
        calls *= 2


def _at_work(call: Call, synchronize: Call, timer: Time, seconds: float) -> None:
    """Keep the device at work for a while, so that a loop begins in its steady state."""
    start = timer.now()
    while timer.now() - start < seconds:
        call()
        synchronize()


def _energy(
    joules: list[float], durations: list[float], calls: int, idle_w: Interval, method: str
) -> Energy:
    def net_of(watts: float) -> Interval:
        pairs = zip(joules, durations, strict=True)
        return median_interval([[(j - watts * s) / calls] for j, s in pairs])

    net = Interval(net_of(idle_w.median).median, net_of(idle_w.high).low, net_of(idle_w.low).high)
    told = net if net.low > 0 else Absent("the loop's power cannot be told from idling")
    return Energy(
        gross_j=median_interval([[j / calls] for j in joules]),
        net_j=told,
        idle_w=idle_w,
        power_w=median_interval([[j / s] for j, s in zip(joules, durations, strict=True)]).median,
        joules=tuple(j / calls for j in joules),
        calls=calls,
        method=method,
    )


def _domain_name(domain: Path) -> str:
    try:
        return (domain / "name").read_text().strip()
    except OSError:
        return ""


def _interval_json(kind: str, interval: Interval) -> dict[str, float]:
    return {
        f"{kind}_j": interval.median,
        f"{kind}_low_j": interval.low,
        f"{kind}_high_j": interval.high,
    }
