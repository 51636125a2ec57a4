"""Points: records with what follows from them, computed on load and never stored.

FLOPS come from the problem's exact count, speed-ups from the baseline's record of the same
problem on the same machine. A figure that was not measured is None, never 0.

A point is of its record's kind. Single attentions and training runs share the statuses, the
machine and the looks; a training run and a generation have no FLOPS of a problem, no roofline
and no error, but what :mod:`attnbench.report.trained` and ``train.generation.derived`` say.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.errors import UserError
from attnbench.limits import place_record
from attnbench.masks import parse_mask
from attnbench.measure.power import joules_per_token
from attnbench.problem import Problem
from attnbench.record import Record, Samples, TensorAccuracy
from attnbench.report.environments import Environment, load_environments
from attnbench.report.trained import Trained, trained
from attnbench.roofline import Place
from attnbench.spec import format_spec, parse_spec
from attnbench.stats import Interval
from attnbench.subject import PointKind
from attnbench.train.generation.derived import Served, served
from attnbench.train.generation.spec import Generation
from attnbench.train.workload import Workload

KINDS: tuple[PointKind, ...] = ("attention", "training", "generation")
"""Of records that a report shows; each has scopes and views of its own."""


@dataclass(frozen=True)
class Point:
    """One record and its derived figures.

    Attributes:
        fields: the problem's fields, flat: ``mask`` is its text, ``window``, ``block``, …
            are the mask's own, ``d_model`` is added.
        machine: equal for points whose figures may be compared.
        label: the problem in a line.
        time_s: seconds a call (a step of training, a whole generation); None for what ran in a
            simulator.
        rate: FLOP/s by the problem's count, so that an approximate method's is effective.
        speedup: baseline's time over this time; of training runs, the ratio of tokens/s.
        host_s: wall time of the eager call; None where ``time_s`` is host time itself.
        flops, ideal_bytes: of the problem; None where this attnbench cannot read it.
        joules_per_token: gross, a query token; None where energy was not measured.
        place: of the median under the roofline; None without ceilings.
        trained: of a training run, and of nothing else.
        served: of a generation, and of nothing else.
    """

    record: Record
    fields: Mapping[str, Any]
    machine: str
    label: str
    flops: int | None = None
    ideal_bytes: int | None = None
    time_s: Interval | None = None
    host_s: Interval | None = None
    rate: Interval | None = None
    speedup: Interval | None = None
    place: Place | None = None
    joules_per_token: float | None = None
    trained: Trained | None = None
    served: Served | None = None

    @property
    def kind(self) -> PointKind:
        """Of the record: what a second of it means."""
        return self.record.kind

    @property
    def ranked_s(self) -> Interval | None:
        """The time by which points of one problem are ranked: of a call, or of a token."""
        return self.time_s if self.trained is None else self.trained.seconds_per_token

    @property
    def implementation(self) -> str:
        """Name with the options that were asked for: one line in a chart."""
        return self.record.implementation.spec

    @property
    def scope(self) -> tuple[str, str, str, str]:
        """What may be shown together: suite, machine, device, kind."""
        return self.record.suite, self.machine, self.record.device, self.kind

    @property
    def is_approximate(self) -> bool:
        """Whether the method gives up accuracy; its rate is then an effective one."""
        return self.record.implementation.kind == "approximate"

    @property
    def own_rate(self) -> Interval | None:
        """Of an approximate method, by its own FLOPs."""
        return _rate(self.record.flops, self.time_s)

    @property
    def is_baseline(self) -> bool:
        """Whether this is the implementation that its suite compares with."""
        return self.implementation == format_spec(*parse_spec(self.record.baseline))

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity in FLOPs a byte, from the ideal bytes."""
        if self.flops is None or not self.ideal_bytes:
            return None
        return self.flops / self.ideal_bytes

    @property
    def worst_error(self) -> tuple[str, float] | None:
        """The tensor nearest to (or furthest past) its tolerance, and error ÷ tolerance."""
        ratios = [
            (ratio, name)
            for name, accuracy in self.record.accuracy.items()
            if (ratio := error_ratio(accuracy)) is not None
        ]
        if not ratios:
            return None
        ratio, name = max(ratios)
        return name, ratio


@dataclass(frozen=True)
class Results:
    """All that a report is made from, in an order that does not depend on the files'."""

    points: tuple[Point, ...]
    environments: Mapping[str, Environment]
    problems: tuple[str, ...]  # what was left out or is missing, a line each


def load_points(results: Sequence[Path]) -> Results:
    """Read record files and folders, and derive every figure.

    Raises:
        UserError: a path does not exist.
    """
    loaded = store.load(results, None)
    records = [record for record in loaded.records if record.kind in KINDS]
    environments, missing = load_environments(results, records)
    points: list[Point] = []
    told: list[str] = []
    for record in records:
        environment = environments[record.environment]
        point = _bare(record, environment.machine)
        try:
            points.append(_derive(point, environment))
        except UserError as error:
            told.append(f"point {record.id}: no {_LOST[record.kind]}: {error}")
            points.append(point)
    points.sort(key=_order)
    others = len(loaded.records) - len(records)
    passed = [f"{others} records of a kind that has no view here: left out"] if others else []
    problems = [*loaded.problems, *passed, *missing, *sorted(told)]
    return Results(tuple(_with_speedups(points)), environments, tuple(problems))


def current(points: Iterable[Point]) -> tuple[list[Point], list[str]]:
    """Leave out what was measured with an earlier source of the same implementation.

    Editing an implementation makes new points; showing them in one line with the old ones
    would mix two implementations. The source measured last counts. Gives the points that
    count, and a line for each implementation that lost some.
    """
    points = list(points)
    newest: dict[tuple[Any, ...], tuple[str, str]] = {}
    for point in points:
        source = point.record.implementation.source_sha256 or ""
        key = (*point.scope, point.implementation)
        newest[key] = max(newest.get(key, ("", "")), (point.record.time, source))
    kept: list[Point] = []
    lost: dict[tuple[Any, ...], int] = {}
    for point in points:
        key = (*point.scope, point.implementation)
        if (point.record.implementation.source_sha256 or "") == newest[key][1]:
            kept.append(point)
        else:
            lost[key] = lost.get(key, 0) + 1
    return kept, [
        f"{suite}: {name}: {number} older record(s) left out, measured with an earlier source"
        for (suite, *_, name), number in sorted(lost.items())
    ]


MEASURES = ("rel_l2", "max_abs", "row_rel")
"""Measures of error in a record; each has its tolerance in ``…_allowed``."""


def error_ratio(accuracy: TensorAccuracy) -> float | None:
    """Error ÷ tolerance, the largest of all measures; 1 is the limit."""
    pairs = [(getattr(accuracy, m), getattr(accuracy, f"{m}_allowed")) for m in MEASURES]
    ratios = [error / allowed for error, allowed in pairs if error is not None and allowed]
    return max(ratios) if ratios else None


def speedup(baseline: Interval, own: Interval) -> Interval:
    """Baseline's time over own time, with its interval.

    The two intervals are combined on the log scale by the method of variance estimates
    recovery (Zou & Donner 2008, Statistics in Medicine 27:1693), which needs no
    assumption that they are symmetric.
    """
    middle = math.log(baseline.median / own.median)
    down = math.hypot(math.log(baseline.median / baseline.low), math.log(own.high / own.median))
    up = math.hypot(math.log(baseline.high / baseline.median), math.log(own.median / own.low))
    return Interval(math.exp(middle), math.exp(middle - down), math.exp(middle + up))


def _bare(record: Record, machine: str) -> Point:
    """A point without what only a readable problem can tell."""
    return Point(
        record,
        _flat_fields(record),
        machine,
        record.problem_id,
        time_s=None if record.implementation.simulated else _interval(record.samples),
        host_s=_interval(record.host_samples),
    )


def _interval(samples: Samples | None) -> Interval | None:
    return Interval(samples.median_s, samples.low_s, samples.high_s) if samples else None


def _rate(flops: int | None, time_s: Interval | None) -> Interval | None:
    """FLOP/s; the shortest time is the highest rate."""
    if flops is None or time_s is None:
        return None
    return Interval(flops / time_s.median, flops / time_s.high, flops / time_s.low)


_LOST: Mapping[PointKind, str] = {
    "attention": "FLOPS", "training": "throughput", "generation": "throughput",
}  # fmt: skip


def _derive(point: Point, environment: Environment) -> Point:
    """With what follows from the problem, or from the training run.

    Raises:
        UserError: this attnbench cannot read what the record is about.
    """
    if point.kind == "training":
        return _derive_training(point, environment)
    if point.kind == "generation":
        return _derive_generation(point)
    derived = _derive_attention(point, Problem.from_json(point.record.problem))
    return replace(derived, place=place_record(point.record, {"ceilings": environment.ceilings}))


def _derive_training(point: Point, environment: Environment) -> Point:
    workload, found = Workload.from_json(point.record.problem), trained(point.record, environment)
    return replace(
        point,
        label=workload.label,
        joules_per_token=found.joules_per_token,
        trained=found,
    )


def _derive_generation(point: Point) -> Point:
    generation = Generation.from_json(point.record.problem)
    is_timed = point.record.implementation.simulated is None
    found = served(point.record) if is_timed else None
    joules = found.joules if found else None
    return replace(point, label=generation.label, joules_per_token=joules, served=found)


def _derive_attention(point: Point, problem: Problem) -> Point:
    flops, energy = problem.flops(), point.record.energy
    return replace(
        point,
        label=problem.label,
        fields={**point.fields, "d_model": problem.d_model, "mask": str(problem.mask)},
        flops=flops,
        ideal_bytes=problem.ideal_bytes(),
        rate=_rate(flops, point.time_s),
        joules_per_token=joules_per_token(energy.gross_j, problem) if energy else None,
    )


def _flat_fields(record: Record) -> dict[str, Any]:
    fields = {**record.problem, "seed": record.seed}
    mask = fields.get("mask")
    if isinstance(mask, Mapping):
        own = {k: v for k, v in mask.items() if k not in fields and k != "kind"}
        fields = {**own, **fields, "mask": str(mask.get("kind", "")), "mask_kind": mask.get("kind")}
        with contextlib.suppress(UserError):  # a newer attnbench's mask is called by its kind
            fields["mask"] = str(parse_mask(mask))
    return {k: v for k, v in fields.items() if isinstance(v, (bool, int, float, str))}


def _with_speedups(points: Iterable[Point]) -> list[Point]:
    points = list(points)
    baselines = {
        (p.scope, p.record.problem_id, p.record.seed): p.ranked_s
        for p in points
        if p.is_baseline and p.ranked_s is not None
    }
    derived = []
    for point in points:
        base = baselines.get((point.scope, point.record.problem_id, point.record.seed))
        if point.is_baseline and point.ranked_s is not None:
            point = replace(point, speedup=Interval(1.0, 1.0, 1.0))  # of itself it is sure
        elif base is not None and point.ranked_s is not None:
            point = replace(point, speedup=speedup(base, point.ranked_s))
        derived.append(point)
    return derived


def _order(point: Point) -> tuple[Any, ...]:
    """Suites and machines apart, then problems of a kind by size; the records decide all."""
    record, fields = point.record, point.fields
    kind = (str(fields.get(name)) for name in ("direction", "dtype", "mask"))
    size = (fields.get(name) for name in ("seqlen_q", "seqlen_k", "heads_q", "head_dim", "batch"))
    numbers = (value if isinstance(value, int) else 0 for value in size)
    return (record.suite, point.machine, record.device, *kind, *numbers, record.problem_id,
            point.implementation, record.time, record.id)  # fmt: skip
