"""The parent's hold on its worker, and the questions it asks before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from attnbench.measure.telemetry import Sampler
from attnbench.plan import Contender
from attnbench.process import IMPORT_TIMEOUT_S, Event, Worker, WorkerDied
from attnbench.registry import Entry, Source, blame, by_name

_PROBE_TIMEOUT_S = 120.0
_WITHOUT_PLUGINS = ("environment", "ceilings")  # tasks in which no plugin is at work


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
        self._is_fresh = True
        self._sampler: Sampler | None = None

    @property
    def sampler(self) -> Sampler | None:
        """Who watches the workers, if anybody does."""
        return self._sampler

    def watched_by(self, sampler: Sampler) -> None:
        """Tell a sampler of each worker, from the one there is on."""
        self._sampler = sampler
        if self._worker is not None:
            sampler.watch(self._worker.pid)

    def ask(self, task: Event, timeout_s: float) -> Iterable[Event]:
        """See :meth:`Worker.ask`; a worker that died is dropped.

        Raises:
            WorkerDied: it crashed, was killed or hung.
        """
        if self._worker is None:
            self._worker, self._is_fresh = Worker(self.device, self._project), True
            if self._sampler is not None:
                self._sampler.watch(self._worker.pid)
        self._is_fresh = self._is_fresh and task["do"] in _WITHOUT_PLUGINS
        try:
            for event in self._worker.ask(task, timeout_s):
                if event["event"] == "failure":
                    raise WorkerDied("crash", event["reason"], self._worker.log_tail())
                yield event
        except WorkerDied:
            self.drop()
            raise

    @property
    def is_fresh(self) -> bool:
        """Whether the next task will find a worker in which no plugin was ever at work."""
        return self._worker is None or self._is_fresh

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
    pool: WorkerPool,
    project: Path | None,
    impls_dirs: Sequence[Path] = (),
    timeout_s: float = IMPORT_TIMEOUT_S,
    sources: Sequence[Source] | None = None,
) -> list[Entry]:
    """Every implementation, the unavailable ones with their reasons; or those of ``sources``.

    Importing happens in a worker: a plugin that crashes there, or takes longer than
    ``timeout_s``, becomes unavailable, and the search starts again without it.
    """
    blamed: list[Entry] = []
    while True:
        task = {
            "do": "discover",
            "project": str(project) if project else None,
            "impls_dirs": [str(d) for d in impls_dirs],
            "sources": None if sources is None else [vars(s) for s in sources],
            "skip": [(e.source.path, e.source.entry_point) for e in blamed],
        }
        importing: Source | None = None
        try:
            for event in pool.ask(task, timeout_s):
                if event["event"] == "importing":
                    importing = Source(**event["source"])
                elif event["event"] == "entries":
                    found = [Entry.from_json(e) for e in event["entries"]]
        except WorkerDied as death:
            if importing is None:
                raise
            blamed.append(blame(importing, f"fails to import: {death.reason}"))
            continue
        return by_name([*found, *blamed])


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
        task = {**make_task("probe", todo, pool.device), "problem": problem}
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
        todo = [c for c in todo if c.key not in answered]
    return reasons


def contender_json(contender: Contender) -> Event:
    """A contender as a worker's task names it."""
    return {
        "key": contender.key,
        "entry": contender.entry.to_json(),
        "options": dict(contender.given),
    }


def make_task(do: str, contenders: Sequence[Contender], device: str) -> Event:
    """What a worker is to do with some contenders."""
    return {
        "do": do,
        "device": device,
        "contenders": [contender_json(c) for c in contenders],
    }
