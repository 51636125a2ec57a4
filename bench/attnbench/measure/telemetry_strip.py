"""A run of telemetry samples as a strip: a thinned series to draw beside the timings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from attnbench.measure.telemetry_summary import RATES, Sample, rate_of, rounded

STRIP_SIGNALS = (
    "sm_clock_mhz", "power_w", "gpu_temperature_c",
    "cpu_frequency_mhz", "cpu_temperature_c", "others_cores", "steal_cores",
)  # fmt: skip


def strip(samples: Sequence[Sample], t0: float, t1: float, points: int = 60) -> dict[str, Any]:
    """A thinned series for drawing beside the timings.

    Returns:
        ``t_s``, seconds after ``t0``, at most ``points`` of them; each signal of
        :data:`STRIP_SIGNALS` that was told, with None where nothing was; and ``throttle``,
        the reasons active at each point, if there were any.
    """
    inside = [s for s in samples if t0 <= s.t <= t1]
    bins = _bins(inside, t0, t1, points)
    counters = {name: counter for counter, name in RATES.items()}
    series: dict[str, Any] = {"t_s": [round(bin_[-1].t - t0, 3) for bin_ in bins]}
    for signal in STRIP_SIGNALS:
        if signal in counters:
            values = _rates_by_bin(bins, counters[signal])
        else:
            values = [_median_of(bin_, signal) for bin_ in bins]
        if any(value is not None for value in values):
            series[signal] = values
    reasons = [sorted({r for s in bin_ for r in s.throttle or ()}) for bin_ in bins]
    if any(reasons):
        series["throttle"] = reasons
    return series


def _bins(samples: Sequence[Sample], t0: float, t1: float, points: int) -> list[list[Sample]]:
    """Samples in at most ``points`` equal stretches of time, without the empty ones."""
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    bins: dict[int, list[Sample]] = {}
    for sample in samples:
        place = int((sample.t - t0) / max(t1 - t0, 1e-9) * points)
        bins.setdefault(min(place, points - 1), []).append(sample)
    return [bins[place] for place in sorted(bins)]


def _median_of(samples: Sequence[Sample], signal: str) -> float | None:
    values = [s.gauges[signal] for s in samples if signal in s.gauges]
    return rounded(statistics.median(values)) if values else None


def _rates_by_bin(bins: Sequence[Sequence[Sample]], counter: str) -> list[float | None]:
    """Growth a second up to the last of each stretch that counts, since the one before."""
    rates: list[float | None] = []
    last: Sample | None = None
    for bin_ in bins:
        told = [s for s in bin_ if counter in s.counters]
        rate = rate_of([last or told[0], told[-1]], counter) if told else None
        rates.append(None if rate is None else rounded(rate))
        last = told[-1] if told else last
    return rates
