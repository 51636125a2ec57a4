"""Verdicts: the fastest correct implementation, or a tie where the intervals overlap.

An approximate method gives another answer, so it is ranked only among its like, where there
is no exact one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.report.points import Point
from attnbench.report.sweep import Panel, Scope


@dataclass(frozen=True)
class Verdict:
    """Who is fastest on one problem.

    Attributes:
        ranking: points that were measured and are correct, fastest first.
        winners: those whose interval overlaps the fastest one's; more than one is a tie.
    """

    panel: Panel
    x: Any
    ranking: tuple[Point, ...]
    winners: tuple[Point, ...]

    @property
    def next(self) -> Point | None:
        """The fastest of those that do not share the first place."""
        leading = {point.record.id for point in self.winners}
        return next((p for p in self.ranking if p.record.id not in leading), None)

    @property
    def behind(self) -> float | None:
        """How many times longer the next one takes."""
        first, after = self.ranking[0].ranked_s if self.ranking else None, self.next
        if first is None or after is None or after.ranked_s is None:
            return None
        return after.ranked_s.median / first.median


def verdict(panel: Panel, x: Any, points: Iterable[Point]) -> Verdict:
    """Rank the points of one problem. A record that is not ``ok`` has no time, and no rank."""
    timed = [p for p in points if p.ranked_s is not None]
    exact = [p for p in timed if not p.is_approximate]
    times = [(p.ranked_s, p) for p in exact or timed if p.ranked_s is not None]
    times.sort(key=lambda pair: (pair[0].median, pair[1].implementation))
    ranking = tuple(point for _, point in times)
    winners = tuple(point for time_s, point in times if time_s.low <= times[0][0].high)
    return Verdict(panel, x, ranking, winners)


def verdicts(scope: Scope, panel: Panel) -> list[Verdict]:
    """A verdict for every value of the axis that the panel has."""
    at: dict[Any, list[Point]] = {}
    for point in panel.points:
        at.setdefault(scope.x(point), []).append(point)
    return [verdict(panel, x, points) for x, points in at.items()]


def headline(found: Sequence[Verdict]) -> Verdict | None:
    """The verdict that speaks for a panel: the largest problem that somebody solved.

    Axis values are in ascending order; small problems measure overhead, large ones the
    kernel.
    """
    solved = [v for v in found if v.ranking]
    return solved[-1] if solved else None
