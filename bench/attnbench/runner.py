"""The runner: hands problems to workers, turns what comes back into records, survives.

The parent never imports torch or a plugin. It schedules groups (all contenders of one
problem), watches the worker's steps, and when the worker dies or hangs, blames the
contender at work, gives it its status and goes on with the others in a fresh worker.
Every finished point is on disk before the next group begins.
"""

from __future__ import annotations

import datetime
import hashlib
import shlex
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from attnbench import __version__
from attnbench.conditions import Conditions
from attnbench.limits import Limits, highest_clock
from attnbench.plan import Plan, Point
from attnbench.pool import WorkerPool, make_task
from attnbench.problem import Problem
from attnbench.process import Event, WorkerDied
from attnbench.processes import Held
from attnbench.record import (
    Distance,
    Energy,
    Implementation,
    Memory,
    Record,
    Samples,
    TensorAccuracy,
)
from attnbench.train.figures import Training
from attnbench.train.generation.figures import Generated
from attnbench.train.generation.spec import Generation

_LOG_LIMIT = 4000
_DOES = {  # tasks of the worker
    "attention": "measure", "training": "train", "generation": "generate",
}  # fmt: skip
_REFERENCE = {
    "attention": "the float64 reference", "training": "the reference's training",
    "generation": "the model without a cache",
}  # fmt: skip


Alone = dict[str, Point] | None
"""Contenders that are to try again by themselves; None once one does."""


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
        limits: the device's ceilings; None where no time is held against them.
    """

    plan: Plan
    pool: WorkerPool
    environment: str
    keep: Callable[[Record], None]
    progress: Progress = field(default_factory=Quiet)
    command: str = "attnbench run"
    limits: Limits | None = None
    stop_requested: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _process: int = 0  # of those that the group at work is measured in
    _held: dict[str, Held] = field(default_factory=dict)  # by key, until the last process
    _attempt_id: str = ""
    _attempts: dict[str, list[str]] = field(default_factory=dict)  # of each contender at work

    def __post_init__(self) -> None:
        # Finding implementations has imported all of them; those that nobody asked for
        # have no business in the process where the others are measured.
        if not self.pool.is_fresh:
            self.pool.drop()
        self._conditions = Conditions(self.pool.sampler)
        self._suspects: list[tuple[Point, dict[str, Any]]] = []

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
        self._conditions.group_begins()
        usable: dict[str, Point] = {}
        for point in group:
            entry = point.contender.entry
            if entry.reason is None:
                usable[point.contender.key] = point
            else:
                where = f"{entry.file}:{entry.line}" if entry.line else entry.file
                self._finish(point, status="unavailable", reason=f"{where}: {entry.reason}")
        processes = self.plan.suite.measure.processes
        for self._process in range(processes):
            if processes > 1 and usable:
                self.pool.drop()
            self._work_off(usable)
            usable = {spec: held.point for spec, held in self._held.items()}

    def _work_off(self, usable: dict[str, Point]) -> None:
        """Bring every point of ``usable`` through a process; empties it."""
        alone: dict[str, Point] = {}
        while usable:
            self._attempt(usable, alone)
        for spec, point in alone.items():
            # What went wrong beside others may be their doing: it may try again by itself.
            single = {spec: point}
            while single:
                self.pool.drop()
                self._attempt(single, None)

    # ---- one attempt -----------------------------------------------------------------

    def _attempt(self, todo: dict[str, Point], alone: Alone) -> None:
        """Run ``todo`` in one worker; take out of it what is finished.

        What others may be to blame for is moved to ``alone``, which is None for one that
        runs by itself already.
        """
        suite = self.plan.suite
        self._attempt_id = uuid.uuid4().hex
        problem = next(iter(todo.values())).problem
        task = {
            **make_task(_DOES[suite.kind], [p.contender for p in todo.values()], self.pool.device),
            "problem": problem.to_json(),
            "seed": suite.verify.seed,
            "budget": suite.measure.budget(),
            "energy_s": suite.measure.energy_s,
            "process": self._process,
            "timeout_s": suite.measure.timeout_s,
        }
        if self._conditions.is_spoilt:
            self.progress.step(None, "cooling down")
        self._conditions.attempt_begins()
        at_work: str | None = None
        is_clean = self.pool.is_fresh  # no plugin was at work in that process yet
        try:
            for event in self.pool.ask(task, suite.measure.timeout_s):
                if event["event"] == "step":
                    at_work = event["who"]
                    is_clean = is_clean and at_work is None
                    self.progress.step(at_work, event["phase"])
                elif event["event"] == "sampled":
                    self._conditions.sampled(event["begin"], event["end"])
                elif event["event"] == "result":
                    self._take(event, todo, alone)
        except WorkerDied as death:
            if at_work is None:
                self._bury_reference(death, is_clean, todo, alone)
            elif at_work in todo:
                self._bury(death, at_work, todo, alone)
        else:
            if not self._conditions.is_spoilt:
                for point in todo.values():  # cannot happen; never lose a point silently
                    self._finish(point, status="error", reason="the worker gave no result")
                todo.clear()
        self._judge_suspects()

    def _take(self, event: Event, todo: dict[str, Point], alone: Alone) -> None:
        if event["status"] == "ok":
            event["telemetry"] = self._conditions.look()
            if self._conditions.is_spoilt:
                return  # it stays in todo, and is timed again
        point = todo.pop(event["who"])
        self._attempts.setdefault(event["who"], []).append(self._attempt_id)
        if event["status"] == "oom" and not event["alone"] and alone is not None:
            alone[event["who"]] = point
            return
        told = {k: v for k, v in event.items() if k not in ("event", "who", "alone")}
        if event["status"] == "ok":
            self._held.setdefault(event["who"], Held(point)).told.append(told)
            if self._process + 1 < self.plan.suite.measure.processes:
                return
            told = self._held[event["who"]].joined(self.plan.suite.measure.precision)
        if self._fault(point, told):
            self._suspects.append((point, told))
        else:
            self._finish(point, **told)

    def _fault(self, point: Point, told: dict[str, Any]) -> str | None:
        """What is wrong with a time that nothing on this device could take."""
        if self.limits is None or told["status"] != "ok":
            return None
        if isinstance(point.problem, Generation):
            flops = int(told["generation"]["flops"])
            return self.limits.model_fault(flops, Samples.model_validate(told["samples"]))
        if not isinstance(point.problem, Problem):
            training = Training.model_validate(told["training"])
            return self.limits.training_fault(training, Samples.model_validate(told["samples"]))
        return self.limits.fault(
            point.problem,
            Samples.model_validate(told["samples"]),
            is_exact=point.contender.entry.kind == "exact",
            flops=told.get("flops"),
            ideal_bytes=told.get("ideal_bytes"),
            clock_mhz=highest_clock(told["telemetry"]),
        )

    def _judge_suspects(self) -> None:
        """Times that beat the ceilings: measure those again, and believe them or not."""
        suspects, self._suspects = self._suspects, []
        if suspects and self.limits is not None:
            self.limits.measure_again()
            self.environment = self.limits.save()
        for point, told in suspects:
            fault = self._fault(point, told)
            if fault is None:
                self._finish(point, **told)
            else:
                self._finish(point, status="error", reason=fault, telemetry=told["telemetry"])

    def _bury(self, death: WorkerDied, at_work: str, todo: dict[str, Point], alone: Alone) -> None:
        """Blame the contender at work."""
        point = todo.pop(at_work)
        if death.status == "oom" and alone is not None and (todo or alone):
            alone[at_work] = point
        else:
            self._finish(point, status=death.status, reason=death.reason, log_tail=death.log)

    def _bury_reference(
        self, death: WorkerDied, is_clean: bool, todo: dict[str, Point], alone: Alone
    ) -> None:
        """The worker died over the reference: by itself, or by what plugins left behind.

        In a clean process it was the reference, and nobody can be verified. Otherwise each
        contender gets a process of its own; one beside which it fails again is to blame.
        """
        if not is_clean and alone is not None:
            alone.update(todo)
        reference = _REFERENCE[self.plan.suite.kind]
        for spec, point in todo.items():
            if is_clean:
                reason = f"{reference} failed: {death.reason}"
                self._finish(point, status="error", reason=reason, log_tail=death.log)
            elif alone is None:
                reason = f"{death.reason} (after {spec} had run, over {reference})"
                self._finish(point, status=death.status, reason=reason, log_tail=death.log)
        todo.clear()

    def _finish(self, point: Point, **told: Any) -> None:
        self._held.pop(point.contender.key, None)
        record = self._record(point, told)
        self.keep(record)
        self.counts[record.status] += 1
        self.progress.point_done(record)

    def _record(self, point: Point, told: dict[str, Any]) -> Record:
        entry, suite = point.contender.entry, self.plan.suite
        samples, memory = told.get("samples"), told.get("memory")
        host_samples = told.get("host_samples")
        log = told.get("log_tail")
        attempts = self._attempts.pop(point.contender.key, [])
        return Record(
            kind=suite.kind,
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
                simulated=point.contender.simulated,
                choices=told.get("choices", {}),
                revision=entry.source.revision or None,
            ),
            problem=point.problem.to_json(),
            problem_id=point.problem.id,
            device=self.plan.device,
            seed=suite.verify.seed,
            status=told["status"],
            reason=told.get("reason"),
            log_tail=log[-_LOG_LIMIT:] if log else None,
            samples=Samples.model_validate(samples) if samples else None,
            host_samples=Samples.model_validate(host_samples) if host_samples else None,
            memory=Memory.model_validate(memory) if memory else None,
            accuracy={
                name: TensorAccuracy.model_validate(a)
                for name, a in told.get("accuracy", {}).items()
            },
            flops=told.get("flops"),
            ideal_bytes=told.get("ideal_bytes"),
            distance={
                name: Distance.model_validate(d) for name, d in told.get("distance", {}).items()
            },
            weights_tv=told.get("weights_tv"),
            training=Training.model_validate(told["training"]) if told.get("training") else None,
            generation=(
                Generated.model_validate(told["generation"]) if told.get("generation") else None
            ),
            energy=Energy.model_validate(told["energy"]) if told.get("energy") else None,
            energy_absent=told.get("energy_absent"),
            telemetry=told.get("telemetry", {}),
            kernels=told.get("kernels", []),
            wall_s=told.get("wall_s"),
            environment=self.environment,
            pair=_pair(point, attempts) if samples else None,
            command=f"{self.command} --impls {shlex.quote(point.contender.spec)} "
            f"--problem {point.problem.id} --fresh",
        )


def _pair(point: Point, attempts: Sequence[str]) -> str | None:
    """One id for the versions of an implementation that the same attempts have interleaved."""
    if not point.is_paired:
        return None
    text = " ".join([point.problem.id, point.contender.spec, *attempts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
