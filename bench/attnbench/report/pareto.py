"""What approximate methods give up, and what they gain: distance against time and memory.

The distance is that from the answer which was asked for, in float64. An exact
implementation's is its rounding error, so that both kinds share one axis. Only points of one
problem can dominate each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnbench.report import units
from attnbench.report.points import Point
from attnbench.report.sweep import Panel, Scope


def distance(point: Point) -> tuple[str, float] | None:
    """The tensor that is farthest from the answer, and its relative L2 distance."""
    record = point.record
    seen = record.distance if point.is_approximate else record.accuracy
    found = [(d.rel_l2, name) for name, d in seen.items() if d.rel_l2 is not None]
    if not found:
        return None
    value, name = max(found)
    return name, value


def distance_text(point: Point) -> str | None:
    """``out 0.42, cosine 0.91, weights 0.31 apart``, for an approximate method."""
    worst = distance(point)
    if worst is None or not point.is_approximate:
        return None
    name, value = worst
    told = [f"{name} {units.number(value, 2)}"]
    cosine = point.record.distance[name].cosine
    told += [f"cosine {units.number(cosine, 3)}"] if cosine is not None else []
    apart = point.record.weights_tv
    told += [f"weights {units.number(apart, 2)} apart"] if apart is not None else []
    return ", ".join(told)


def largest(scope: Scope, panel: Panel) -> list[Point]:
    """The points of the last value of the axis that has both a time and a distance."""
    for x in reversed(scope.axis.values):
        here = [p for p in panel.points if scope.x(p) == x and p.time_s and distance(p)]
        if here:
            return here
    return []


def front(points: Sequence[Point]) -> set[str]:
    """Ids of the points that no other beats: as fast, as near and as small, and one of it more."""
    coordinates = {p.record.id: c for p in points if (c := _coordinates(p)) is not None}
    return {own for own, c in coordinates.items() if not _is_beaten(c, coordinates.values())}


def _coordinates(point: Point) -> tuple[float, float, float] | None:
    worst, memory = distance(point), point.record.memory
    if point.time_s is None or worst is None:
        return None
    peak = memory.peak_bytes if memory and memory.peak_bytes is not None else 0
    return point.time_s.median, worst[1], float(peak)


def _is_beaten(
    own: tuple[float, float, float], others: Iterable[tuple[float, float, float]]
) -> bool:
    return any(
        other != own and all(b <= a for a, b in zip(own, other, strict=True)) for other in others
    )
