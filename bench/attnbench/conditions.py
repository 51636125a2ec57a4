"""What a run makes of telemetry: each timing's figures, which are taken again, what is told.

A timing during which the device was slowed down for heat says nothing about anybody: it is
repeated when the device has cooled down, at most twice. What a power limit or other
processes did to it is noted beside the figures, and told at the end of the run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attnbench.measure.telemetry import Sampler
from attnbench.measure.telemetry_summary import rank
from attnbench.record import Record

MOST_REPEATS = 2
_STRIP_POINTS = 24  # in each record; a page draws them a finger wide
_SHORTEST_LOOK_S = 0.5  # less says nothing about how busy a machine is
_OF_ALL: Mapping[str, Callable[[Iterable[float]], float]] = {
    "min": min, "median": statistics.median, "max": max, "mean": statistics.fmean,
}  # fmt: skip


class Conditions:
    """Follows the timings of a run.

    Args:
        sampler: None where nobody looks; then there is no telemetry, and nothing is repeated.
    """

    def __init__(self, sampler: Sampler | None) -> None:
        self._sampler = sampler
        self._span: tuple[float, float] | None = None
        self._telemetry: dict[str, Any] = {}
        self._repeats = 0
        self._cooled_s = 0.0
        self._is_spoilt = False

    def group_begins(self) -> None:
        """Another problem: its timing may be repeated again."""
        self._repeats, self._cooled_s = 0, 0.0

    def attempt_begins(self) -> None:
        """Wait until the device has cooled down, where the last timing is to be repeated."""
        if self._is_spoilt and self._sampler is not None:
            self._cooled_s += self._sampler.until_cool()
        self._span, self._telemetry, self._is_spoilt = None, {}, False

    def sampled(self, begin: float, end: float) -> None:
        """A timing took place between these two times (``time.monotonic``)."""
        self._span = begin, end

    @property
    def is_spoilt(self) -> bool:
        """Whether the last timing is to be repeated; its figures are not to be kept."""
        return self._is_spoilt

    def look(self) -> dict[str, Any]:
        """Telemetry of the last timing, as a record keeps it; settles whether it is repeated."""
        if self._sampler is None or self._span is None or self._telemetry:
            return self._telemetry
        seen = self._sampler.window(*self._span)
        if seen["verdict"] == "throttled" and self._repeats < MOST_REPEATS:
            self._repeats += 1
            self._is_spoilt = True
        if self._repeats:
            seen["repeats"], seen["cooled_s"] = self._repeats, round(self._cooled_s, 1)
            seen["notes"].append(_of_repeats(self._repeats, seen["verdict"] == "throttled"))
        begin, end = self._span
        duration = {"duration_s": round(end - begin, 3)}
        strip = self._sampler.strip(begin, end, _STRIP_POINTS)
        self._telemetry = {**seen, **duration, **({"strip": strip} if strip["t_s"] else {})}
        return self._telemetry


def joined(telemetries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Telemetry of a point that was timed in several processes.

    Verdict, notes and strip are those of the timing to which most was done. The figures of
    the signals are of all, as the point's time is: the clock of one process says nothing
    about the time of another.
    """
    gravest = min(telemetries, key=lambda t: (rank(t.get("verdict")), -_harm(t)))
    told = dict(gravest)
    if len(telemetries) == 1:
        return told
    found: dict[str, list[Mapping[str, float]]] = {}
    for telemetry in telemetries:
        for signal, figures in telemetry.get("signals", {}).items():
            found.setdefault(signal, []).append(figures)
    if found:
        told["signals"] = {
            signal: {name: of(f[name] for f in figures) for name, of in _OF_ALL.items()}
            for signal, figures in found.items()
        }
    for name in ("repeats", "cooled_s"):  # of the whole group so far: the last one has all
        if known := [t[name] for t in telemetries if name in t]:
            told[name] = max(known)
    return told


def figure(telemetry: Mapping[str, Any], signal: str, name: str) -> float | None:
    """A signal's ``min``, ``median``, ``max`` or ``mean`` in a record's telemetry.

    None where it is not told, or is no number: a record may come from anywhere.
    """
    value: object = telemetry
    for key in ("signals", signal, name):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def before_start(sampler: Sampler | None) -> list[str]:
    """Who is at work on a machine on which nothing is measured yet: a line for each trouble."""
    if sampler is None:
        return []
    samples = sampler.samples()
    if not samples or samples[-1].t - samples[0].t < _SHORTEST_LOOK_S:
        return []
    seen = sampler.window(samples[0].t, time.monotonic())
    lines = []
    if others := seen.get("gpu_others"):
        names = ", ".join(_gpu_process(other) for other in others)
        lines.append(f"OTHER PROCESSES ARE ON THE GPU: {names}; figures may be theirs, not ours")
    notes = [note for note in seen["notes"] if "others used" in note or "hypervisor" in note]
    if notes:
        lines.append(f"the machine is busy: {'; '.join(notes)}; points will be marked disturbed")
    return lines


def closing_lines(records: Iterable[Record]) -> list[str]:
    """What befell the points that were measured, a line for each verdict worth telling."""
    seen = [r.telemetry for r in records if r.status == "ok" and r.telemetry.get("verdict")]
    said = {
        "throttled": "were slowed down for heat, also when repeated",
        "disturbed": "were disturbed",
        "unknown": "may have been disturbed",
        "power-capped": "were held down by the power limit",
    }
    lines = []
    for verdict, words in said.items():
        hit = [t for t in seen if t["verdict"] == verdict]
        if hit:
            lines.append(f"{len(hit)} of {len(seen)} points {words}{_worst(hit)}")
    return lines


def _worst(hit: Sequence[Mapping[str, Any]]) -> str:
    """The first note of the point to which most was done."""
    worst = max(hit, key=_harm)
    notes = worst.get("notes") or []
    if not notes:
        return ""
    is_worst = len(hit) > 1 and worst["verdict"] != "unknown"
    return f"; at worst {notes[0]}" if is_worst else f": {notes[0]}"


def _harm(telemetry: Mapping[str, Any]) -> float:
    names = ("others_cores", "steal_cores", "wait_share")
    return sum(figure(telemetry, name, "mean") or 0.0 for name in names)


def _of_repeats(repeats: int, is_still_hot: bool) -> str:
    times = "once" if repeats == 1 else f"{repeats} times"
    how = "and was slowed down again" if is_still_hot else "after cooling down"
    return f"timed again {times}, {how}: it had been slowed down for heat"


def _gpu_process(other: Mapping[str, Any]) -> str:
    used = other.get("memory_bytes")
    size = f", {used / 2**30:.1f} GiB" if used is not None else ""
    return f"{other['name']} (pid {other['pid']}{size})"
