"""Points that ran in a simulator: verified like all others, and kept apart from timings.

A simulator's seconds say nothing about the implementation. So these points are in no chart,
no ranking and no speed-up; they have a table of their own, which says whether they are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.report import units
from attnbench.report.points import Point
from attnbench.report.tables import figures
from attnbench.stats import Interval

COLUMNS = ("implementation", "problem", "ran", "outcome", "worst error", "the simulator took")


@dataclass(frozen=True)
class SimulatedView:
    """What the page and the summary show of them."""

    summary: str
    rows: Sequence[tuple[str, ...]]  # cells, as COLUMNS has them
    is_passed: bool


def apart(points: Iterable[Point]) -> tuple[list[Point], SimulatedView | None]:
    """The points that are timings, and a view of those that are not; None if all are."""
    points = list(points)
    simulated = [p for p in points if p.record.implementation.simulated is not None]
    if not simulated:
        return points, None
    right = sum(p.record.status == "ok" for p in simulated)
    where = ", ".join(sorted({str(p.record.implementation.simulated) for p in simulated}))
    view = SimulatedView(
        f"{units.count(len(simulated), 'point')} ran {where}, to be verified and not to be timed: "
        f"{right} right",
        [_row(point) for point in simulated],
        all(p.record.status in ("ok", "unsupported") for p in simulated),
    )
    return [p for p in points if p.record.implementation.simulated is None], view


def _row(point: Point) -> tuple[str, ...]:
    record, samples = point.record, point.record.samples
    took = ""
    if samples is not None:
        interval = Interval(samples.median_s, samples.low_s, samples.high_s)
        took = units.interval(interval, units.SECONDS)
    return (
        point.implementation,
        point.label,
        record.implementation.simulated or "",
        "right" if record.status == "ok" else f"{record.status}: {record.reason}",
        figures(point).get("error", ""),
        took,
    )
