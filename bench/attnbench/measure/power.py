"""Energy of a call: joules from a counter of energy, over a steady loop.

Power readings are averages over windows that nobody documents well, so energy is never
power × time here: it is the growth of a counter (see ``energy_counters``). Such a counter is
brought up to date only every 20 to 100 ms (GPU), so a stretch of two seconds may be wrong
by a few percent at its ends; several stretches, each begun at a random phase of that
period, make the error one that averages out, and the interval shows it.

*Gross* is all that the device (for RAPL: all processor packages, whoever runs there) used
while the loop ran; *net* is without what it uses when idle.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.measure.energy_counters import Absent, Meter, MeterFault
from attnbench.stats import Interval, median_interval

if TYPE_CHECKING:
    from attnbench.problem import Problem

Call = Callable[[], None]

LEAST_PERIODS = 20  # of the meter in a loop: an update missed at its ends is a few percent
_LEAST_MOVES = 10  # a counter that grew by fewer of its steps tells nothing


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
    seconds = max(seconds, LEAST_PERIODS * meter.period_s)
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


def _interval_json(kind: str, interval: Interval) -> dict[str, float]:
    return {
        f"{kind}_j": interval.median,
        f"{kind}_low_j": interval.low,
        f"{kind}_high_j": interval.high,
    }
