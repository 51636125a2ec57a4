"""The runner: hands problems to workers, turns what comes back into records, survives.

The parent never imports torch or a plugin. It schedules groups (all contenders of one
problem), watches the worker's steps, and when the worker dies or hangs, blames the
contender at work, gives it its status and goes on with the others in a fresh worker.
Every finished point is on disk before the next group begins.
"""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from attnbench import __version__
from attnbench.plan import Contender, Plan, Point
from attnbench.process import Event, Worker, WorkerDied
from attnbench.record import Implementation, Memory, Record, Samples, TensorAccuracy
from attnbench.registry import Entry, Source, blame

_IMPORT_TIMEOUT_S = 120.0
_PROBE_TIMEOUT_S = 120.0
_LOG_LIMIT = 4000


class Progress(Protocol):
    """What the runner tells while it works."""

    def group_begins(self, group: Sequence[Point]) -> None:
        """A problem's contenders are about to be measured."""

    def step(self, who: str | None, phase: str) -> None:
        """Somebody (None: the reference) begins a phase."""

    def point_done(self, record: Record) -> None:
        """A point has its record."""


class Quiet:
    """Progress that is not shown."""

    def group_begins(self, group: Sequence[Point]) -> None:
        """Nothing."""

    def step(self, who: str | None, phase: str) -> None:
        """Nothing."""

    def point_done(self, record: Record) -> None:
        """Nothing."""


class WorkerPool:
    """One worker at a time, started when needed and replaced after a failure.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        project: folder whose modules a plugin may import; None is the current folder.
    """

    def __init__(self, device: str, project: Path | None = None) -> None:
        self.device = device
        self._project = (project or Path.cwd()).resolve()
        self._worker: Worker | None = None

    def ask(self, task: Event, timeout_s: float) -> Iterable[Event]:
        """See :meth:`Worker.ask`; a worker that died is dropped.

        Raises:
            WorkerDied: it crashed, was killed or hung.
        """
        if self._worker is None:
            self._worker = Worker(self.device, self._project)
        try:
            for event in self._worker.ask(task, timeout_s):
                if event["event"] == "failure":
                    raise WorkerDied("crash", event["reason"], self._worker.log_tail())
                yield event
        except WorkerDied:
            self.drop()
            raise

    def drop(self) -> None:
        """Kill the worker; the next task gets a fresh one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drop()


def discover(
    pool: WorkerPool, project: Path | None, impls_dirs: Sequence[Path] = ()
) -> list[Entry]:
    """Every implementation, the unavailable ones with their reasons.

    Importing happens in a worker: a plugin that crashes or hangs there becomes
    unavailable, and the search starts again without it.
    """
    blamed: list[Entry] = []
    while True:
        task = {
            "do": "discover",
            "project": str(project) if project else None,
            "impls_dirs": [str(d) for d in impls_dirs],
            "skip": [(e.source.path, e.source.entry_point) for e in blamed],
        }
        importing: Source | None = None
        try:
            for event in pool.ask(task, _IMPORT_TIMEOUT_S):
                if event["event"] == "importing":
                    importing = Source(**event["source"])
                elif event["event"] == "entries":
                    found = [Entry.from_json(e) for e in event["entries"]]
        except WorkerDied as death:
            if importing is None:
                raise
            blamed.append(blame(importing, f"fails to import: {death.reason}"))
            continue
        return sorted([*found, *blamed], key=lambda e: e.name)


def environment(pool: WorkerPool) -> dict[str, Any]:
    """The environment as the worker sees it (see ``attnbench.environment.describe``)."""
    task = {"do": "environment", "device": pool.device}
    for event in pool.ask(task, _PROBE_TIMEOUT_S):
        if event["event"] == "environment":
            data: dict[str, Any] = event["environment"]
    return data


def probe(pool: WorkerPool, entries: Sequence[Entry], problem: dict[str, Any]) -> dict[str, str]:
    """Why each available entry cannot do a problem here; those that can are absent."""
    reasons: dict[str, str] = {}
    todo = [Contender(e) for e in entries if e.reason is None]
    while todo:
        task = {**_task("probe", todo, pool.device), "problem": problem}
        at_work = ""
        answered = set()
        try:
            for event in pool.ask(task, _PROBE_TIMEOUT_S):
                if event["event"] == "step":
                    at_work = event["who"]
                elif event["event"] == "probed":
                    answered.add(event["who"])
                    if event["reason"] is not None:
                        reasons[event["who"]] = event["reason"]
        except WorkerDied as death:
            if not at_work or at_work in answered:
                raise
            reasons[at_work] = death.reason
            answered.add(at_work)
        todo = [c for c in todo if c.spec not in answered]
    return reasons


@dataclass
class Runner:
    """Measures a plan. ``run`` may be stopped between groups through ``stop_requested``.

    Attributes:
        plan: what to do.
        pool: who does it.
        environment: address of the environment file that the records name.
        keep: called with each record as soon as the point is finished.
        progress: told what goes on.
        command: beginning of the command line that reproduces a point.
    """

    plan: Plan
    pool: WorkerPool
    environment: str
    keep: Callable[[Record], None]
    progress: Progress = field(default_factory=Quiet)
    command: str = "attnbench run"
    stop_requested: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Counter[str]:
        """Measure every point that is not done; return how many ended in which status."""
        for group in self.plan.groups:
            if self.stop_requested:
                break
            self.run_group(group)
        return self.counts

    def run_group(self, group: Sequence[Point]) -> None:
        """Measure the contenders of one problem, whatever becomes of the worker."""
        self.progress.group_begins(group)
        usable: dict[str, Point] = {}
        for point in group:
            entry = point.contender.entry
            if entry.reason is None:
                usable[point.contender.spec] = point
            else:
                where = f"{entry.file}:{entry.line}" if entry.line else entry.file
                self._finish(point, status="unavailable", reason=f"{where}: {entry.reason}")
        alone: dict[str, Point] = {}
        while usable:
            self._attempt(usable, alone)
        for spec, point in alone.items():
            # Out of memory beside others says nothing: it may try again by itself.
            single = {spec: point}
            while single:
                self.pool.drop()
                self._attempt(single, {})

    # ---- one attempt -----------------------------------------------------------------

    def _attempt(self, todo: dict[str, Point], alone: dict[str, Point]) -> None:
        """Run ``todo`` in one worker; take out of it what is finished.

        What ran out of memory while others held some is moved to ``alone``.
        """
        suite = self.plan.suite
        problem = next(iter(todo.values())).problem
        task = {
            **_task("measure", [p.contender for p in todo.values()], self.pool.device),
            "problem": problem.to_json(),
            "seed": suite.verify.seed,
            "budget": suite.measure.model_dump(exclude={"timeout_s"}),
        }
        at_work: str | None = None
        try:
            for event in self.pool.ask(task, suite.measure.timeout_s):
                if event["event"] == "step":
                    at_work = event["who"]
                    self.progress.step(at_work, event["phase"])
                elif event["event"] == "result":
                    self._take(event, todo, alone)
        except WorkerDied as death:
            self._bury(death, at_work, todo, alone)
        else:
            for point in todo.values():  # cannot happen; never lose a point silently
                self._finish(point, status="error", reason="the worker gave no result")
            todo.clear()

    def _take(self, event: Event, todo: dict[str, Point], alone: dict[str, Point]) -> None:
        point = todo.pop(event["who"])
        if event["status"] == "oom" and not event["alone"]:
            alone[event["who"]] = point
            return
        told = {k: v for k, v in event.items() if k not in ("event", "who", "alone")}
        self._finish(point, **told)

    def _bury(
        self,
        death: WorkerDied,
        at_work: str | None,
        todo: dict[str, Point],
        alone: dict[str, Point],
    ) -> None:
        """Blame the contender at work, or everybody if it was the reference itself."""
        if at_work is None:
            for point in todo.values():
                reason = f"the float64 reference failed: {death.reason}"
                self._finish(point, status="error", reason=reason, log_tail=death.log)
            todo.clear()
        elif at_work in todo:
            point = todo.pop(at_work)
            if death.status == "oom" and (todo or alone):
                alone[at_work] = point
            else:
                self._finish(point, status=death.status, reason=death.reason, log_tail=death.log)

    def _finish(self, point: Point, **told: Any) -> None:
        record = self._record(point, told)
        self.keep(record)
        self.counts[record.status] += 1
        self.progress.point_done(record)

    def _record(self, point: Point, told: dict[str, Any]) -> Record:
        entry, suite = point.contender.entry, self.plan.suite
        samples, memory = told.get("samples"), told.get("memory")
        log = told.get("log_tail")
        return Record(
            id=point.id,
            suite=suite.name,
            title=suite.title,
            baseline=suite.baseline,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            attnbench=__version__,
            implementation=Implementation(
                name=entry.name,
                options={**entry.options, **dict(point.contender.given)},
                given=dict(point.contender.given),
                kind=entry.kind,
                layout=entry.layout,
                origin=entry.source.origin,
                version=entry.version,
                source_sha256=entry.source_sha256,
            ),
            problem=point.problem.to_json(),
            problem_id=point.problem.id,
            device=self.plan.device,
            seed=suite.verify.seed,
            status=told["status"],
            reason=told.get("reason"),
            log_tail=log[-_LOG_LIMIT:] if log else None,
            samples=Samples.model_validate(samples) if samples else None,
            memory=Memory.model_validate(memory) if memory else None,
            accuracy={
                name: TensorAccuracy.model_validate(a)
                for name, a in told.get("accuracy", {}).items()
            },
            wall_s=told.get("wall_s"),
            environment=self.environment,
            command=f"{self.command} --impls {shlex.quote(point.contender.spec)} "
            f"--problem {point.problem.id} --fresh",
        )


def contender_json(contender: Contender) -> Event:
    """A contender as a worker's task names it."""
    return {
        "key": contender.spec,
        "entry": contender.entry.to_json(),
        "options": dict(contender.given),
    }


def _task(do: str, contenders: Sequence[Contender], device: str) -> Event:
    return {
        "do": do,
        "device": device,
        "contenders": [contender_json(c) for c in contenders],
    }
