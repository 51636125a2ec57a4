"""Views that are tables of text: cards, heat map, crossovers, support matrix, failures.

Each function turns a scope into plain rows of text, which the HTML template, the Markdown
summary and the figures share, so that they cannot disagree.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.record import STATUSES, Memory, Samples, Status
from attnbench.report import units
from attnbench.report.fields import natural
from attnbench.report.generation_tables import texts as generation_texts
from attnbench.report.pareto import distance_text
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Panel, Scope
from attnbench.report.training_text import texts as training_texts
from attnbench.report.verdicts import Verdict, headline, verdicts
from attnbench.roofline import Place
from attnbench.stats import Interval
from attnbench.subject import PointKind

SHORT: Mapping[Status, str] = {
    "ok": "ok", "incorrect": "wrong", "unsupported": "unsup.", "unavailable": "absent",
    "oom": "OOM", "timeout": "timeout", "crash": "crash", "error": "error",
}  # fmt: skip
GLYPHS: Mapping[Status, str] = {
    "ok": "✓", "incorrect": "✗", "unsupported": "–", "unavailable": "∅",
    "oom": "M", "timeout": "T", "crash": "C", "error": "E",
}  # fmt: skip
MEANINGS: Mapping[Status, str] = {
    "ok": "verified against float64, then timed",
    "incorrect": "error past the tolerance; not timed",
    "unsupported": "the implementation says it cannot do this",
    "unavailable": "could not be loaded on this machine",
    "oom": "out of memory",
    "timeout": "no answer in time",
    "crash": "the process died",
    "error": "raised an error",
}
_CALLS: Mapping[PointKind, str] = {
    "attention": "", "training": " a step", "generation": " a generation",
}  # fmt: skip
_FULL_TINT = 3.0  # a speed-up of 2³ or 2⁻³ has the strongest colour


@dataclass(frozen=True)
class Cell:
    """One cell of the heat map. Without a number it says why in ``text``."""

    x: Any
    text: str
    status: str  # a Status, "no-baseline", "none" (no such point)
    tint: float = 0.0  # −1 (much slower) … 1 (much faster)
    number: float | None = None


@dataclass(frozen=True)
class Failure:
    """Points of one implementation that ended the same way for the same reason."""

    look: Look
    status: Status
    reason: str
    points: tuple[Point, ...]


def figures(point: Point) -> dict[str, str]:
    """The figures of a point as text; only those it has."""
    memory, worst = point.record.memory, point.worst_error
    texts = {
        "time": point.time_s and units.interval(point.time_s, units.SECONDS) + _CALLS[point.kind],
        "host_time": point.host_s and units.interval(point.host_s, units.SECONDS),
        "how": point.record.samples and how_text(point.record.samples),
        "rate": point.rate and rate_text(point, point.rate),
        "distance": distance_text(point),
        "speedup": point.speedup and speedup_text(point),
        "roofline": point.place and share_text(point.place),
        "energy": energy_text(point),
        "memory": memory
        and memory.peak_bytes is not None
        and units.quantity(memory.peak_bytes, units.BYTES),
        "memory_parts": memory and memory_parts(memory),
        "memory_note": memory and memory.note,
        "error": worst and f"{worst[0]} at {units.number(worst[1], 2)} of its tolerance",
    }
    found = {name: text for name, text in texts.items() if text}
    own = {"training": training_texts, "generation": generation_texts}.get(point.kind)
    return found | own(point) if own is not None else found


def rate_text(point: Point, rate: Interval) -> str:
    """``45.0 GFLOPS [41.6, 48.7]``; an approximate method's is effective, and its own beside it."""
    text, own = units.interval(rate, units.FLOPS), point.own_rate
    if not point.is_approximate:
        return text
    beside = f" (own {units.quantity(own.median, units.FLOPS)})" if own is not None else ""
    return f"{text} effective{beside}"


def memory_parts(memory: Memory) -> str:
    """``forward 17.0 MiB, saved 8.00 MiB, backward 17.0 MiB``: the parts that were measured."""
    parts = {
        "forward": memory.forward_peak_bytes,
        "saved": memory.saved_bytes,
        "backward": memory.backward_peak_bytes,
        "workspace": memory.workspace_bytes,
    }
    return ", ".join(
        f"{name} {units.quantity(size, units.BYTES)}"
        for name, size in parts.items()
        if size is not None
    )


def how_text(samples: Samples) -> str:
    """``device clock, cuda graph of events, cold caches``, and why no better way was taken."""
    caches = f"{samples.cache} caches" if samples.cache else ""
    told = ", ".join(filter(None, [f"{samples.clock} clock", samples.method, caches]))
    return f"{told} ({samples.fallback})" if samples.fallback else told


def energy_text(point: Point) -> str:
    """``2.00 J [1.98, 2.02], 1.95 mJ a token; net 1.70 J [1.67, 1.73]``, or why there is none.

    Nothing where nobody asked for it.
    """
    energy = point.record.energy
    if energy is None:
        absent = point.record.energy_absent
        return f"none: {absent}" if absent else ""
    gross = Interval(energy.gross_j, energy.gross_low_j, energy.gross_high_j)
    text = units.interval(gross, units.JOULES)
    if point.joules_per_token is not None:
        text += f", {units.quantity(point.joules_per_token, units.JOULES)} a token"
    if energy.net_j is not None and energy.net_low_j is not None and energy.net_high_j is not None:
        net = Interval(energy.net_j, energy.net_low_j, energy.net_high_j)
        return f"{text}; net {units.interval(net, units.JOULES)}"
    return f"{text}; net: none: {energy.net_absent}" if energy.net_absent else text


def share_text(place: Place) -> str:
    """``62 % of copy bandwidth``, or nothing where no ceiling applies."""
    if place.share is None or place.roof is None:
        return ""
    roof = f"{place.roof} bandwidth" if place.bound == "memory" else f"{place.roof} matmul rate"
    return f"{units.number(100 * place.share, 2)} % of {roof}"


def speedup_text(point: Point) -> str:
    """``2.31× [2.28, 2.35]``, or nothing."""
    if point.speedup is None:
        return ""
    if point.is_baseline:
        return units.ratio(1.0)
    return units.ratio_interval(point.speedup)


def status_counts(points: Iterable[Point]) -> list[tuple[Status, int]]:
    """How many points ended how, in the order of the statuses."""
    counts = Counter(p.record.status for p in points)
    return [(status, counts[status]) for status in STATUSES if counts[status]]


def wide_intervals(points: Iterable[Point]) -> int:
    """How many intervals are wider than the suite asked for: their budget ran out."""
    return sum(1 for p in points if p.record.samples and not p.record.samples.converged)


def cards(scope: Scope) -> list[tuple[int, Verdict]]:
    """The verdicts that speak for each panel, with the panel's number.

    Along a size the largest problem speaks; where the axis is a list (dtypes, models) each
    has a verdict of its own. A panel where nobody was measured still has its card: nobody
    is a verdict too.
    """
    found = []
    for number, panel in enumerate(scope.panels):
        all_ = verdicts(scope, panel)
        speakers = all_ if scope.axis.kind == "ordinal" else [headline(all_) or all_[-1]]
        found += [(number, verdict) for verdict in speakers]
    return found


def heat_rows(
    scope: Scope, panel: Panel, looks: Mapping[str, Look]
) -> list[tuple[Look, list[Cell]]]:
    """Speed-up against the baseline: a row an implementation, a cell a value of the axis."""
    columns = panel_values(scope, panel)
    at = {(p.implementation, scope.x(p)): p for p in panel.points}
    names = {p.implementation for p in panel.points}
    return [
        (look, [_cell(x, at.get((name, x)), look) for x in columns])
        for name, look in looks.items()
        if name in names
    ]


def panel_values(scope: Scope, panel: Panel) -> list[Any]:
    """The axis values that a panel has, in order."""
    return list(dict.fromkeys(scope.x(p) for p in panel.points))


def failures(points: Iterable[Point], looks: Mapping[str, Look]) -> list[Failure]:
    """Everything that is not ok, grouped; reasons that differ in numbers only are one."""
    groups: dict[tuple[str, Status, str], list[Point]] = {}
    for point in points:
        record = point.record
        if record.status != "ok":
            shape_of_reason = re.sub(r"\d[\d.]*(e[-+]?\d+)?", "#", record.reason or "")
            key = (point.implementation, record.status, shape_of_reason)
            groups.setdefault(key, []).append(point)
    found = [
        Failure(looks[name], status, group[0].record.reason or "", tuple(group))
        for (name, status, _), group in groups.items()
    ]
    return sorted(found, key=lambda f: (_gravity(f.status), natural(f.look.name), f.reason))


def suite_commands(points: Iterable[Point]) -> list[str]:
    """What measures these points again: their commands without the choice of one point."""
    return sorted({p.record.command.partition(" --impls ")[0] for p in points} - {""})


def _gravity(status: Status) -> int:
    """Wrong results first, refusals last."""
    order: Sequence[Status] = (
        "incorrect", "crash", "error", "timeout", "oom", "unavailable", "unsupported", "ok",
    )  # fmt: skip
    return order.index(status)


def _cell(x: Any, point: Point | None, look: Look) -> Cell:
    if point is None:
        return Cell(x, "", "none")
    if point.record.status != "ok":
        return Cell(x, SHORT[point.record.status], point.record.status)
    if point.speedup is None:
        return Cell(x, "no base", "no-baseline")
    ratio = point.speedup.median
    tint = max(-1.0, min(1.0, math.log2(ratio) / _FULL_TINT))
    return Cell(x, units.ratio(ratio), "ok", 0.0 if look.is_baseline else tint, ratio)
