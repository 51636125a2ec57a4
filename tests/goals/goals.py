"""What the fused Triton attention has to reach, held against records of one interleaved run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from attnbench.report.points import Point, speedup
from attnbench.stats import Interval

OURS = "triton"

Verdict = Literal["reached", "missed", "not decided", "not measured"]


@dataclass(frozen=True)
class Goal:
    """Time of a rival ÷ time of ours, at least."""

    direction: str
    rival: str
    least: float


GOALS = (
    Goal("forward", "sdpa-flash", 1.2),
    Goal("forward", "sdpa-cudnn", 0.85),
    Goal("backward", "sdpa-flash", 1.0),
)


@dataclass(frozen=True)
class Result:
    """One goal at one problem.

    Attributes:
        ratio: None where one of the two has no timing; ``why`` says whose.
    """

    goal: Goal
    problem: str
    ratio: Interval | None
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        """Reached or missed only where the whole interval says so."""
        if self.ratio is None:
            return "not measured"
        if self.ratio.low >= self.goal.least:
            return "reached"
        return "missed" if self.ratio.high < self.goal.least else "not decided"


def judge(points: Sequence[Point], goals: Sequence[Goal] = GOALS) -> list[Result]:
    """Every goal at every problem of its direction, in the order of the points."""
    return [
        _judge(goal, problem)
        for problem in _by_problem(points)
        for goal in goals
        if problem[0].record.problem["direction"] == goal.direction
    ]


def _by_problem(points: Iterable[Point]) -> Iterator[list[Point]]:
    problems: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        key = (*point.scope, point.record.problem_id, point.record.seed)
        problems.setdefault(key, []).append(point)
    yield from problems.values()


def _judge(goal: Goal, points: Sequence[Point]) -> Result:
    named = {p.record.implementation.spec: p for p in points}
    ours, rival = named.get(OURS), named.get(goal.rival)
    label = points[0].label
    if ours is None or ours.time_s is None:
        return Result(goal, label, None, _why(OURS, ours))
    if rival is None or rival.time_s is None:
        return Result(goal, label, None, _why(goal.rival, rival))
    return Result(goal, label, speedup(rival.time_s, ours.time_s))


def _why(name: str, point: Point | None) -> str:
    return f"no record of {name}" if point is None else f"{name}: {point.record.reason}"
