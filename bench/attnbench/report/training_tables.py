"""Views of training runs that are tables of text, which page and summary share.

Each view has a table for every workload, with a row for every implementation. A run that is
not ok has no figures: its row says how it ended, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.report import metrics, units
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Panel, Scope
from attnbench.report.training_text import (
    NONE,
    against_text,
    allowed_text,
    attention_text,
    deviation_text,
    joules_text,
    metric_names,
    metric_target,
    mfu_cell,
    parity_text,
    part,
    rate_text,
    reached,
)
from attnbench.train.figures import BatchLimit, Training


@dataclass(frozen=True)
class Row:
    """One implementation: cells as the table's columns, or none and a reason."""

    look: Look
    point: Point
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One workload's figures in one view.

    Attributes:
        number: of the panel in its scope.
        columns: of the cells; the implementation comes before them.
        note: what holds for the whole table, such as what a share is of.
    """

    number: int
    panel: Panel
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class _Sheet:
    """How a view makes its tables: columns, a point's cells, a note."""

    columns: Callable[[Scope, Panel], tuple[str, ...]]
    cells: Callable[[Scope, Panel, Point, Training], tuple[str, ...]]
    note: Callable[[Panel], str] = lambda panel: ""


def tables(view: str, scope: Scope, looks: Mapping[str, Look]) -> list[Table]:
    """The tables of a view, in the order of the panels."""
    sheet = _SHEETS[view]
    return [
        Table(
            number,
            panel,
            sheet.columns(scope, panel),
            tuple(_rows(sheet, scope, panel, looks)),
            sheet.note(panel),
        )
        for number, panel in enumerate(scope.panels)
    ]


def _rows(sheet: _Sheet, scope: Scope, panel: Panel, looks: Mapping[str, Look]) -> list[Row]:
    place = {name: index for index, name in enumerate(looks)}
    found = []
    for point in sorted(panel.points, key=lambda p: (place[p.implementation], p.record.id)):
        training = part(point)
        cells = sheet.cells(scope, panel, point, training) if training is not None else ()
        found.append(Row(looks[point.implementation], point, cells))
    return found


# ---- throughput --------------------------------------------------------------------------


def _throughput_columns(scope: Scope, panel: Panel) -> tuple[str, ...]:
    against = f"against {scope.baseline}" if scope.baseline else "against the baseline"
    own = ("own MFU",) if _has_own(panel) else ()
    energy = ("energy a token",) if _has_energy(panel) else ()
    return (
        "tokens/s [95 %]", against, "MFU full", "MFU causal", *own, *energy, "step [95 %]", "batch",
    )  # fmt: skip


_LIMITS: Mapping[BatchLimit, str] = {
    "memory": "largest that fits",
    "time": "largest that could be tried",
    "most": "largest that is tried",
}


def _has_own(panel: Panel) -> bool:
    """Whether a method counts FLOPs of its own, because it is approximate."""
    return any(point.is_approximate for point in panel.points)


def _has_energy(panel: Panel) -> bool:
    return any(point.joules_per_token is not None for point in panel.points)


def _throughput(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    batch = str(training.batch)
    if training.batch_limit is not None:
        batch += f", {_LIMITS[training.batch_limit]}"
    own = (mfu_cell(point, "own"),) if _has_own(panel) else ()
    joules = (joules_text(point) or NONE,) if _has_energy(panel) else ()
    return (
        rate_text(point) or NONE,
        against_text(point) or NONE,
        mfu_cell(point, "full"),
        mfu_cell(point, "causal"),
        *own,
        *joules,
        units.interval(point.time_s, units.SECONDS) if point.time_s else NONE,
        batch,
    )


def _throughput_note(panel: Panel) -> str:
    absent = dict.fromkeys(filter(None, (p.record.energy_absent for p in panel.points)))
    energy = f" No energy: {'; '.join(absent)}." if absent else ""
    return _denominators(panel) + _followed(panel) + energy


def _followed(panel: Panel) -> str:
    """That a teacher is in the time and in no MFU, where there is one."""
    runs = (p.record.training for p in panel.points)
    if not any(run is not None and run.flops.teacher is not None for run in runs):
        return ""
    return " A teacher's forward is in the time of a step, and in no MFU."


def _denominators(panel: Panel) -> str:
    """What MFU is a share of: the ceilings of the points, each told once."""
    found: dict[str, None] = {}
    for point in panel.points:
        for mfu in (point.trained.measured, point.trained.datasheet) if point.trained else ():
            if mfu is not None:
                found[f"{mfu.what}, {units.quantity(mfu.peak, units.FLOPS)}"] = None
    if not found:
        return "No MFU: no ceiling was measured for this precision, and no datasheet is known."
    datasheet = "" if any(d.startswith("datasheet") for d in found) else "; no datasheet is known"
    return f"MFU is a share of {'; '.join(found)}{datasheet}."


# ---- where a step goes, in seconds and in bytes ------------------------------------------------


def _breakdown(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    parts = training.breakdown
    seconds = (parts.forward_s, parts.backward_s, parts.optimizer_s)
    return (
        *(units.quantity(s, units.SECONDS) for s in seconds),
        units.quantity(math.fsum(seconds), units.SECONDS),
        units.quantity(point.time_s.median, units.SECONDS) if point.time_s else NONE,
        attention_text(training),
    )


def _footprint(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    memory, parameters = training.memory, training.parameters
    parts = (
        memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes,
        memory.activations_bytes, memory.peak_bytes,
    )  # fmt: skip
    learned = f"{parameters.trainable:,} of {parameters.total:,}"
    return (*(units.quantity(b, units.BYTES) for b in parts), learned)


# ---- what was learned ---------------------------------------------------------------------


def _parity(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    parity = training.parity
    return (
        units.number(training.losses[-1], 5) if training.losses else NONE,
        parity_text(parity),
        deviation_text(parity),
        allowed_text(parity),
        f"{parity.steps} with batch {parity.batch}",
        f"{parity.reruns} of {parity.reference}",
        f"{training.learned_steps}{', stopped early' if training.stopped else ''}",
    )


def _parity_note(panel: Panel) -> str:
    runs = [(p.implementation, t) for p in panel.points if (t := part(p)) is not None]
    rules = "; ".join(dict.fromkeys(training.parity.rule for _, training in runs))
    stopped = "; ".join(f"{name}: {t.stopped}" for name, t in runs if t.stopped)
    lines = [f"Allowed: {rules}." if rules else "", f"Stopped early: {stopped}." if stopped else ""]
    return " ".join(filter(None, lines))


def _quality_columns(scope: Scope, panel: Panel) -> tuple[str, ...]:
    names = [metrics.metric(name).label for name in metric_names(panel)]
    target = panel.points[0].fields.get("target")
    goal = (f"steps to {metric_target(panel)}",) if target else ()
    return (*names, "tokens/s [95 %]", *_throughput_columns(scope, panel)[1:2], "steps", *goal)


def _quality(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    last = training.evaluations[-1].metrics if training.evaluations else {}
    scores = [metrics.text(n, last[n]) if n in last else NONE for n in metric_names(panel)]
    steps = reached(point, training)
    goal = (str(steps) if steps is not None else "not reached",)
    return (
        *scores,
        rate_text(point) or NONE,
        against_text(point) or NONE,
        str(training.learned_steps),
        *(goal if point.fields.get("target") else ()),
    )


def _direction(panel: Panel) -> str:
    names = metric_names(panel)
    if not names:
        return ""
    leading = metrics.metric(names[0])
    return f"{leading.label}: {'higher' if leading.maximize else 'lower'} is better."


def is_local_only(scope: Scope) -> bool:
    """Whether a suite has nothing but character models, which tell little of attention."""
    leads = {names[0] for panel in scope.panels if (names := metric_names(panel))}
    return leads == {metrics.LOCAL}


def _fixed(*columns: str) -> Callable[[Scope, Panel], tuple[str, ...]]:
    return lambda scope, panel: columns


_SHEETS: Mapping[str, _Sheet] = {
    "throughput": _Sheet(_throughput_columns, _throughput, _throughput_note),
    "breakdown": _Sheet(
        _fixed("forward", "backward", "optimizer", "together", "step, timed whole", "attention"),
        _breakdown,
    ),
    "footprint": _Sheet(
        _fixed("parameters", "gradients", "optimizer", "activations", "peak", "learn"), _footprint
    ),
    "parity": _Sheet(
        _fixed("last loss", "parity", "largest deviation", "nearest to the bound", "compared",
               "reruns", "steps learned"),
        _parity,
        _parity_note,
    ),
    "quality": _Sheet(_quality_columns, _quality, _direction),
}  # fmt: skip
VIEWS: Sequence[str] = tuple(_SHEETS)
"""Views that are of training runs."""
