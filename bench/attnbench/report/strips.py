"""Strips: what the machine did while each problem was timed, drawn small, and its verdict.

Telemetry is free-form in a record, and records are untrusted: what does not have the
expected shape is left out, never guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.report import units
from attnbench.report.sweep import Panel, Scope

SIGNALS: Mapping[str, tuple[str, str]] = {
    "sm_clock_mhz": ("SM clock", "MHz"),
    "power_w": ("power", "W"),
    "gpu_temperature_c": ("GPU temperature", "°C"),
    "cpu_frequency_mhz": ("CPU clock", "MHz"),
    "cpu_temperature_c": ("CPU temperature", "°C"),
    "others_cores": ("used by others", "cores"),
    "steal_cores": ("taken by the hypervisor", "cores"),
}
"""Signals that a strip may hold, with what to call them and their unit."""

WIDTH, HEIGHT = 120, 22  # of a drawing, in CSS pixels
_FROM_ZERO = ("others_cores", "steal_cores")  # others are drawn around their own values


@dataclass(frozen=True)
class Line:
    """One signal: an SVG path of unbroken stretches, and its range as text."""

    name: str
    path: str
    text: str


@dataclass(frozen=True)
class Strip:
    """One timing: the contenders of a problem were timed together and share it."""

    x: Any
    verdict: str
    notes: tuple[str, ...]
    duration_s: float | None
    lines: Mapping[str, Line]  # by signal


def strips(scope: Scope) -> list[tuple[Panel, int, list[Strip]]]:
    """The timings of each panel that have telemetry, in the order of the axis."""
    found = []
    for number, panel in enumerate(scope.panels):
        seen: dict[tuple[Any, str], Strip] = {}
        for point in panel.points:
            telemetry = point.record.telemetry
            if isinstance(telemetry.get("verdict"), str):
                x = scope.x(point)
                seen.setdefault((x, json.dumps(telemetry, sort_keys=True)), _strip(x, telemetry))
        if seen:
            found.append((panel, number, list(seen.values())))
    return found


def signals(found: Sequence[tuple[Panel, int, Sequence[Strip]]]) -> list[str]:
    """The signals that any of these strips has, in the order of :data:`SIGNALS`."""
    told = {name for _, _, rows in found for row in rows for name in row.lines}
    return [name for name in SIGNALS if name in told]


def _strip(x: Any, telemetry: Mapping[str, Any]) -> Strip:
    drawn = telemetry.get("strip")
    drawn = drawn if isinstance(drawn, Mapping) else {}
    times = _numbers(drawn.get("t_s"))
    lines = {}
    for signal in SIGNALS:
        values = _numbers(drawn.get(signal))
        known = [v for v in values if v is not None]
        if known and len(values) == len(times) and None not in times:
            lines[signal] = _line(signal, times, values, known)
    notes = telemetry.get("notes")
    duration = _numbers([telemetry.get("duration_s")])[0]
    return Strip(
        x,
        str(telemetry["verdict"]),
        tuple(str(note) for note in notes) if isinstance(notes, list) else (),
        duration,
        lines,
    )


def _line(
    signal: str,
    times: Sequence[float | None],
    values: Sequence[float | None],
    known: Sequence[float],
) -> Line:
    name, unit = SIGNALS[signal]
    low, high = min(known), max(known)
    text = units.number(low) if low == high else f"{units.number(low)} – {units.number(high)}"
    bottom = 0.0 if signal in _FROM_ZERO else low - 0.1 * (high - low)
    top = max(high, 1.0) if signal in _FROM_ZERO else high + 0.1 * (high - low)
    height = (top - bottom) or 1.0
    last = max((t for t in times if t is not None), default=0.0) or 1.0
    path: list[str] = []
    for t, value in zip(times, values, strict=True):
        if t is not None and value is not None:
            x, y = t / last * WIDTH, HEIGHT * (1 - (value - bottom) / height)
            path.append(f"{'L' if path else 'M'}{x:.1f} {min(max(y, 1), HEIGHT - 1):.1f}")
    if len(path) == 1:  # a single value is a level
        path.append(f"H{WIDTH}")
    return Line(name, "".join(path), f"{text} {unit}")


def _numbers(values: Any) -> list[float | None]:
    """A list's finite numbers, None for anything else in it; empty for what is no list."""
    if not isinstance(values, list):
        return []
    return [
        float(v)
        if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        else None
        for v in values
    ]
