"""What a point is about: a single attention (``Problem``), a training run (``Workload``) or a
model that is served (``Generation``).

All are immutable, hashable and serialisable, and have an ``id`` and a ``label``; a suite,
a plan and a record are of one kind. What tells the kinds apart by name is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.record import PointKind as PointKind
from attnbench.record import Record
from attnbench.train.generation.spec import Generation
from attnbench.train.workload import Workload

Subject = Problem | Workload | Generation

_KEYS: Mapping[PointKind, tuple[str, ...]] = {  # that a suite may give
    "attention": (
        *(f.name for f in dataclasses.fields(Problem)), "heads", "seqlen", "d_model", "preset",
    ),
    "training": tuple(f.name for f in dataclasses.fields(Workload)),
    "generation": tuple(f.name for f in dataclasses.fields(Generation)),
}  # fmt: skip

_TYPES: Mapping[PointKind, type[Problem] | type[Workload] | type[Generation]] = {
    "attention": Problem, "training": Workload, "generation": Generation,
}  # fmt: skip


def keys_of(kind: PointKind) -> tuple[str, ...]:
    """The keys by which a suite of this kind describes its points."""
    return _KEYS[kind]


def make_subject(kind: PointKind, fields: Mapping[str, Any]) -> Subject:
    """The problem, workload or generation that loose fields describe.

    Raises:
        UserError: unknown field, an invalid value, or a model and a task that do not fit.
    """
    if kind == "attention":
        return Problem.of(**fields)
    if kind == "generation":
        return Generation.of(**fields)
    workload = Workload.of(**fields)
    _check_names(workload)
    return workload


def subject_of(record: Record) -> Subject:
    """What a record is about.

    Raises:
        UserError: this attnbench cannot read it.
    """
    return _TYPES[record.kind].from_json(record.problem)


def _check_names(workload: Workload) -> None:
    """Refuse a model or task that there is not, and a model that cannot learn the task."""
    from attnbench.train.data import check_fits, objectives_of
    from attnbench.train.models.presets import objective_of, sized

    sized(workload)
    objective = objective_of(workload, objectives_of(workload.task)[0])
    if objective not in objectives_of(workload.task):
        allowed = " or ".join(objectives_of(workload.task))
        raise UserError(f"task {workload.task!r} is for objective {allowed}, got {objective!r}")
    check_fits(workload)
