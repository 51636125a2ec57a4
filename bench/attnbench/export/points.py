"""The points that an export holds, each under a name of its own.

Tools tell a benchmark by its name and draw its history along it, so that the name has to
be the same in every run: suite, implementation and problem. Only where one export holds a
point several times does the machine join it, and where that is not enough the environment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.errors import UserError
from attnbench.record import Record
from attnbench.runs import Run, load_run, problem_label


@dataclass(frozen=True)
class Named:
    """A record, its problem in a line, and what tells it from all others in the export."""

    record: Record
    label: str
    apart: str  # " on NVIDIA H200"; usually empty

    @property
    def why_untimed(self) -> str | None:
        """Its status, or the simulator whose time it has; None for a timing."""
        if self.record.samples is None:
            return self.record.status
        return self.record.implementation.simulated

    @property
    def words(self) -> str:
        """``sdpa B1 H8 N128 D64 float32 full forward``: without the suite."""
        return f"{self.record.implementation.spec} {self.label}{self.apart}"

    @property
    def name(self) -> str:
        """The same with its suite."""
        return f"{self.record.suite}: {self.words}"


@dataclass(frozen=True)
class Points:
    """What to export."""

    points: tuple[Named, ...]
    environments: Mapping[str, Mapping[str, Any]]
    problems: tuple[str, ...]

    def timed(self) -> tuple[list[Named], tuple[str, ...]]:
        """The points that have a timing, and the problems with a line about the others."""
        timed = [p for p in self.points if p.why_untimed is None]
        left = Counter(p.why_untimed for p in self.points if p.why_untimed is not None)
        told = ", ".join(f"{count} {status}" for status, count in sorted(left.items()))
        return timed, (*self.problems, *([f"without a time, left out: {told}"] if told else []))


def load_points(results: Sequence[Path]) -> Points:
    """Read records of every kind; of a point measured again, the last on each machine counts.

    The time of a training run is that of a step; its name says so by its suite and its label.

    Raises:
        UserError: a path does not exist, or there is no record.
    """
    run = load_run(results, None)
    if not run.records:
        raise UserError(f"no record in {', '.join(map(str, results))}")
    newest: dict[tuple[object, ...], Record] = {}
    for record in sorted(run.records, key=lambda r: r.time):
        identity = run.identity(record)
        machine = record.environment if identity is None else tuple(sorted(identity.items()))
        newest[(*_same(record), machine)] = record
    records = [r for r in run.records if r in newest.values()]
    dropped = len(run.records) - len(records)
    told = [f"{dropped} earlier records of points that were measured again: left out"]
    named = _name(records, run)
    return Points(tuple(named), run.environments, (*run.problems, *(told if dropped else ())))


def _same(record: Record) -> tuple[object, ...]:
    return (record.suite, record.problem_id, record.implementation.spec, record.seed)


def _name(records: Sequence[Record], run: Run) -> list[Named]:
    """Add, to points of which there are several, the first thing that tells all apart."""
    ways: list[Callable[[Record], str]] = [
        lambda r: "",
        lambda r: f" on {_machine(run, r)}",
        lambda r: f" in environment {r.environment}",
        lambda r: f" as {r.id}",
    ]
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        key = (record.suite, problem_label(record), record.implementation.spec)
        groups.setdefault(key, []).append(record)
    apart: dict[str, str] = {}
    for group in groups.values():
        for way in ways:
            texts = [way(record) for record in group]
            if len(set(texts)) == len(group):
                break
        apart |= {r.id: text for r, text in zip(group, texts, strict=True)}
    return [Named(r, problem_label(r), apart[r.id]) for r in records]


def _machine(run: Run, record: Record) -> str:
    identity = run.identity(record) or {}
    name = identity.get("hardware.gpu") or identity.get("hardware.cpu") or record.environment
    return f"{name} {record.device}"
