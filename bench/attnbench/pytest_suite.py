"""A suite file as a pytest module: points as test items, records as their outcomes."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench import environment as environments
from attnbench.export.pytest_fields import extra_info, parameters
from attnbench.plan import Plan, Point
from attnbench.problem import Problem
from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.session import Session
from attnbench.store import Store

FUNCTION = "test_attention"
_SKIPPED = ("unsupported", "unavailable")


class SuiteRun:
    """The points of one suite, measured problem by problem as they are asked for.

    Args:
        session: where to measure.
        plan: the points.
        file: takes the records; None keeps none.
        command: beginning of the command that reproduces a point.
    """

    def __init__(self, session: Session, plan: Plan, file: Path | None, command: str) -> None:
        self.plan = plan
        self.file = file
        self.records: dict[str, Record] = {}
        self.selected: set[str] = set()
        self._session = session
        self._groups = {point.id: group for group in plan.groups for point in group}
        self._store: Store | None = None
        self._command = command

    @functools.cached_property
    def _runner(self) -> Runner:
        """Made when the first point is asked for: only then is the device measured too."""
        session, folder = self._session, self.file.parent if self.file is not None else None
        limits = session.limits(self.plan.suite, folder)
        limits.settle()
        address = environments.address(session.environment)
        return Runner(
            self.plan, session.pool, address, self._keep, command=self._command, limits=limits
        )

    def record(self, point_id: str) -> Record:
        """The record of a point. The first of its problem has all that were selected measured."""
        if point_id not in self.records:
            wanted = (self.selected | {point_id}) - self.records.keys()
            todo = [point for point in self._groups[point_id] if point.id in wanted]
            try:
                self._runner.run_group(todo)
            except BaseException:  # interrupted half-way: the worker's next words are stale
                self._session.pool.drop()
                raise
        return self.records[point_id]

    def close(self) -> None:
        """Close the file of records."""
        if self._store is not None:
            self._store.close()

    def _keep(self, record: Record) -> None:
        if self.file is not None:
            if self._store is None:  # a run that measures nothing leaves no file behind
                environments.save(self._session.environment, self.file.parent)
                self._store = Store(self.file)
            self._store.append(record)
        self.records[record.id] = record


class SuiteFile(pytest.Module):
    """One suite file: a module with one test function, parametrized with the points."""

    load: Callable[[Path], SuiteRun]
    run: SuiteRun

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Read the suite, find out who is there, and make an item of every point."""
        self.run = self.load(self.path)
        self._module = types.ModuleType(self.path.stem)
        test = _make_test(self.run, self.path)
        test.__module__ = self._module.__name__
        setattr(self._module, FUNCTION, test)
        return super().collect()

    def select(self, item: pytest.Item) -> None:
        """Note that an item will be run, unless something befalls it before."""
        self.run.selected.add(_point_of(item))

    def istestfunction(self, obj: object, name: str) -> bool:
        """Whatever ``python_functions`` says about the user's own tests."""
        return name == FUNCTION

    def _getobj(self) -> types.ModuleType:
        return self._module


def _make_test(run: SuiteRun, path: Path) -> Any:
    playback = Playback()

    def test_attention(benchmark: Any, attention_point: str) -> None:
        benchmark.skipped = True  # interrupted from here on, it is not a fixture left unused
        record = run.record(attention_point)
        if record.status in _SKIPPED:
            pytest.skip(f"{record.status}: {record.reason}")
        hand_over(record, benchmark, playback)

    # Reports name the place of a test: the suite, not this file.
    test_attention.__code__ = test_attention.__code__.replace(
        co_filename=str(path), co_firstlineno=1
    )
    cases = [pytest.param(p.id, id=item_id(p)) for p in run.plan.points]
    mark = pytest.mark.parametrize("attention_point", cases)
    return pytest.mark.benchmark(timer=playback.measured_seconds)(mark(test_attention))


def _point_of(item: pytest.Item) -> str:
    return str(item.callspec.params["attention_point"])  # type: ignore[attr-defined]


def item_id(point: Point) -> str:
    """Implementation and problem: the same text in every suite that has the point."""
    words = [point.contender.spec, *point.problem.label.replace("×", "x").split()]
    return "-".join(words)


class Playback:
    """A clock that plays measured seconds back: what is timed with it took exactly those.

    It starts each sample at zero, so that the difference of two readings is the sample to
    the last bit.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._samples: Iterator[float] = iter(())

    def insert(self, samples_s: Iterable[float]) -> None:
        """Take the next samples, in the order they were taken."""
        self._samples = iter(samples_s)

    def rewind(self) -> None:
        """Back to zero, before a sample."""
        self._now_s = 0.0

    def play(self) -> None:
        """Let one sample pass."""
        self._now_s = next(self._samples)

    def measured_seconds(self) -> float:
        """What time it is, as a timer for pytest-benchmark."""
        return self._now_s


def hand_over(record: Record, benchmark: Any, playback: Playback) -> None:
    """Give a record to pytest-benchmark, or fail with its reason."""
    __tracebackhide__ = True
    benchmark.group = _group_of(record)
    benchmark.params = parameters(record)
    benchmark.extra_info = extra_info(record)
    if record.samples is None:
        benchmark.has_error = True
        benchmark.pedantic(pytest.fail, args=(failure_text(record),), kwargs={"pytrace": False})
        return
    samples_s = [t for process in record.samples.times_s for r in process for t in r]
    playback.insert(samples_s)
    benchmark.pedantic(playback.play, setup=playback.rewind, rounds=len(samples_s))


def _group_of(record: Record) -> str:
    """Rows of one table: the problem's, and never a simulator's times among timings."""
    label = Problem.from_json(record.problem).label
    simulated = record.implementation.simulated
    return label if simulated is None else f"{label}, {simulated}: no timings"


def failure_text(record: Record) -> str:
    """Status and reason, the worker's last words, and how to see it again."""
    lines = [f"{record.status}: {record.reason}"]
    if record.log_tail:
        lines += ["", "the worker's log ends with:", *record.log_tail.splitlines()]
    return "\n".join([*lines, "", f"reproduce: {record.command}"])
