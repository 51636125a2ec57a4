"""Foresight by a worker: counts and refusals, each asked once."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.errors import UserError
from attnbench.plan import Contender
from attnbench.pool import WorkerPool, make_task
from attnbench.process import WorkerDied
from attnbench.train.workload import Workload

_TIMEOUT_S = 120.0
# What no attention problem and no size depends on.
_SHAPELESS = (
    "lr", "weight_decay", "beta1", "beta2", "clip", "optimizer", "schedule", "warmup", "cooldown",
    "steps", "patience", "target", "label_smoothing", "token_noise", "compile",
)  # fmt: skip
_DEFAULTS = {name: getattr(Workload(), name) for name in _SHAPELESS}


class WorkerForesight:
    """Asks a worker; see :class:`attnbench.tune.resolve.Foresight`.

    Args:
        pool: whose worker is asked; what measures comes after it in a process of its own.
        contenders: everybody that the search may draw, asked together.
    """

    def __init__(self, pool: WorkerPool, contenders: Sequence[Contender]) -> None:
        self._pool = pool
        self._contenders = [c for c in contenders if c.entry.reason is None]
        self._counts: dict[Workload, int | str] = {}
        self._refusals: dict[Workload, dict[str, str | None]] = {}

    def parameters(self, workloads: Sequence[Workload]) -> list[int | str]:
        """The count of each one's model, or why there is no such model."""
        shapes = [_shape_of(workload) for workload in workloads]
        missing = list(dict.fromkeys(s for s in shapes if s not in self._counts))
        if missing:
            task = make_task("count", [], self._pool.device)
            task["problems"] = [shape.to_json() for shape in missing]
            try:
                for event in self._pool.ask(task, _TIMEOUT_S):
                    if event["event"] == "counted":
                        self._counts[missing[event["place"]]] = event["total"] or event["reason"]
            except WorkerDied as death:
                raise UserError(f"parameters cannot be counted: {death.reason}") from death
        return [self._counts[shape] for shape in shapes]

    def refusal(self, workload: Workload, contender: Contender) -> str | None:
        """Why the implementation cannot attend in this workload; None if it may.

        A worker that dies over the question refuses nothing: the trial gets its status.
        """
        shape = _shape_of(workload)
        if shape not in self._refusals:
            found: dict[str, str | None] = {}
            task = make_task("foresee", self._contenders, self._pool.device)
            task["problem"] = shape.to_json()
            try:
                for event in self._pool.ask(task, _TIMEOUT_S):
                    if event["event"] == "foreseen":
                        found[event["who"]] = event["reason"]
            except WorkerDied:
                found = {}
            self._refusals[shape] = found
        return self._refusals[shape].get(contender.key)


def _shape_of(workload: Workload) -> Workload:
    return workload.replace(**_DEFAULTS)
