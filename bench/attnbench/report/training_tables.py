"""Views of training runs that are tables of text, which page and summary share.

Each view has a table for every workload, with a row for every implementation. A run that is
not ok has no figures: its row says how it ended, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.report import metrics, units
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Panel, Scope
from attnbench.stats import Interval
from attnbench.train.derived import Mfu
from attnbench.train.figures import Parity, Training

TOKENS = (
    units.Unit("tokens/s", 1.0), units.Unit("k tokens/s", 1e3), units.Unit("M tokens/s", 1e6),
)  # fmt: skip
_NONE = "–"


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


def part(point: Point) -> Training | None:
    """The figures of a run that is ok."""
    return point.record.training if point.record.status == "ok" else None


# ---- throughput --------------------------------------------------------------------------


def rate_text(point: Point) -> str:
    """``34.8 k tokens/s [34.2, 44.2]``; nothing where it was not timed."""
    rate = point.trained.tokens_per_s if point.trained else None
    return units.interval(rate, TOKENS) if rate is not None else ""


def against_text(point: Point) -> str:
    """``1.23× [1.20, 1.26] faster``: tokens/s over the baseline's, and what that says."""
    if point.speedup is None:
        return ""
    if point.is_baseline:
        return "baseline"
    return f"{units.ratio_interval(point.speedup)} {verdict(point.speedup)}"


def verdict(ratio: Interval) -> str:
    """``faster``, ``slower``, or ``tie`` where the interval holds 1."""
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "tie"


def mfu_text(mfu: Mfu | None, convention: str) -> str:
    """``41.2 %``; of an approximate method ``41.2 % effective, own 30.1 %``."""
    if mfu is None:
        return ""
    share = _percent(mfu.full if convention == "full" else mfu.causal)
    if not mfu.is_effective:
        return share
    return f"{share} effective" + ("" if mfu.own is None else f", own {_percent(mfu.own)}")


def _percent(share: float) -> str:
    return f"{units.number(100 * share)} %"


def _mfu_cell(point: Point, convention: str) -> str:
    """The share of the measured ceiling, and that of the datasheet's peak beside it."""
    if point.trained is None:
        return _NONE
    measured, datasheet = point.trained.measured, point.trained.datasheet
    text = mfu_text(measured, convention) or _NONE
    return f"{text} ({mfu_text(datasheet, convention)} of datasheet)" if datasheet else text


def _throughput_columns(scope: Scope, panel: Panel) -> tuple[str, ...]:
    against = f"against {scope.baseline}" if scope.baseline else "against the baseline"
    return (
        "tokens/s [95 %]", against, "MFU full", "MFU causal", "energy a token", "step [95 %]",
        "batch",
    )  # fmt: skip


def _throughput(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    is_found = point.fields.get("batch") == "largest"
    batch = f"{training.batch}, largest that fits" if is_found else str(training.batch)
    return (
        rate_text(point) or _NONE,
        against_text(point) or _NONE,
        _mfu_cell(point, "full"),
        _mfu_cell(point, "causal"),
        joules_text(point) or _NONE,
        units.interval(point.time_s, units.SECONDS) if point.time_s else _NONE,
        batch,
    )


def joules_text(point: Point) -> str:
    """``1.95 mJ``, or why there is none; nothing where nobody asked."""
    if point.joules_per_token is not None:
        return units.quantity(point.joules_per_token, units.JOULES)
    absent = point.record.energy_absent
    return f"none: {absent}" if absent else ""


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
        units.quantity(sum(seconds), units.SECONDS),
        units.quantity(point.time_s.median, units.SECONDS) if point.time_s else _NONE,
        attention_text(training),
    )


def attention_text(training: Training) -> str:
    """``31.0 % of a step``, or why that is not told."""
    share, absent = training.breakdown.attention_share, training.breakdown.attention_absent
    if share is not None:
        return f"{_percent(share)} of a step"
    return f"not told: {absent}" if absent else "not told"


def _footprint(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    memory, parameters = training.memory, training.parameters
    parts = (
        memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes,
        memory.activations_bytes, memory.peak_bytes,
    )  # fmt: skip
    learned = f"{parameters.trainable:,} of {parameters.total:,}"
    return (*(units.quantity(b, units.BYTES) for b in parts), learned)


# ---- what was learned ---------------------------------------------------------------------


def parity_text(parity: Parity) -> str:
    """``ok``, ``NO``, or that an approximate method is not judged."""
    if parity.ok is None:
        return "not judged: approximate"
    return "ok" if parity.ok else "NO"


def _parity(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    parity = training.parity
    steps = f"{training.learned_steps}" + (f": {training.stopped}" if training.stopped else "")
    return (
        units.number(training.losses[-1], 5) if training.losses else _NONE,
        parity_text(parity),
        deviation_text(parity),
        allowed_text(parity),
        f"{parity.steps} with batch {parity.batch}",
        f"{parity.reruns} of {parity.reference}",
        steps,
    )


def deviation_text(parity: Parity) -> str:
    """The largest deviation of a step's loss, in nats."""
    if parity.max_deviation is None:
        return "not finite"
    return units.scientific(parity.max_deviation)


def allowed_text(parity: Parity) -> str:
    """``1.2e-06 of 4.1e-05 in step 17 (0.029)``: where most of what was allowed was used."""
    if parity.allowed is None or parity.deviation is None or parity.ratio is None:
        return _NONE
    used = f"{units.scientific(parity.deviation)} of {units.scientific(parity.allowed)}"
    return f"{used} in step {parity.step} ({units.number(parity.ratio, 2)})"


def _bounds(panel: Panel) -> str:
    rules = {t.parity.rule: None for p in panel.points if (t := part(p)) is not None}
    return f"Allowed: {'; '.join(rules)}." if rules else ""


def metric_names(panel: Panel) -> list[str]:
    """The metrics that any run of a panel has, the leading one first."""
    runs = [training for point in panel.points if (training := part(point)) is not None]
    return metrics.ordered(name for r in runs for e in r.evaluations[-1:] for name in e.metrics)


def reached(point: Point, training: Training) -> int | None:
    """The steps after which an evaluation first reached the workload's target."""
    target = point.fields.get("target")
    if not isinstance(target, (int, float)) or not target:
        return None
    for evaluation in training.evaluations:
        name = metrics.leading(evaluation.metrics)
        value = evaluation.metrics[name] if name is not None else None
        if name is None or value is None:
            continue
        if value >= target if metrics.metric(name).maximize else value <= target:
            return evaluation.step
    return None


def _quality_columns(scope: Scope, panel: Panel) -> tuple[str, ...]:
    names = [metrics.metric(name).label for name in metric_names(panel)]
    target = panel.points[0].fields.get("target")
    goal = (f"steps to {metric_target(panel)}",) if target else ()
    return (*names, "tokens/s [95 %]", *_throughput_columns(scope, panel)[1:2], "steps", *goal)


def metric_target(panel: Panel) -> str:
    """``99.0 % token accuracy``: what a workload stops at."""
    names, target = metric_names(panel), panel.points[0].fields.get("target")
    if not names or not isinstance(target, (int, float)):
        return "the target"
    return f"{metrics.text(names[0], float(target))} {metrics.metric(names[0]).label}"


def _quality(scope: Scope, panel: Panel, point: Point, training: Training) -> tuple[str, ...]:
    last = training.evaluations[-1].metrics if training.evaluations else {}
    scores = [metrics.text(n, last[n]) if n in last else _NONE for n in metric_names(panel)]
    steps = reached(point, training)
    goal = (str(steps) if steps is not None else "not reached",)
    return (
        *scores,
        rate_text(point) or _NONE,
        against_text(point) or _NONE,
        str(training.learned_steps),
        *(goal if point.fields.get("target") else ()),
    )


def _direction(panel: Panel) -> str:
    names = metric_names(panel)
    if not names:
        return ""
    leading = metrics.metric(names[0])
    return f"{leading.label}: {'higher' if leading.maximize else 'lower'} is better."


def texts(point: Point) -> dict[str, str | None]:
    """What a tooltip and the table of all points tell of a run, beside time and memory."""
    training = part(point)
    found: dict[str, str | None] = {"rate": rate_text(point)}
    if training is None:
        return found
    parts = training.breakdown
    seconds = {
        "forward": parts.forward_s, "backward": parts.backward_s, "optimizer": parts.optimizer_s,
    }  # fmt: skip
    last = training.evaluations[-1].metrics if training.evaluations else {}
    return found | {
        "mfu": ", ".join(f"{c} {_mfu_cell(point, c)}" for c in ("full", "causal")),
        "batch": f"{training.batch} ({units.count(training.tokens, 'token')} a step)",
        "step": ", ".join(f"{n} {units.quantity(s, units.SECONDS)}" for n, s in seconds.items()),
        "attention": attention_text(training),
        "loss": units.number(training.losses[-1], 5) if training.losses else None,
        "parity": f"{parity_text(training.parity)}, {deviation_text(training.parity)} apart",
        "metrics": ", ".join(
            f"{metrics.metric(n).label} {metrics.text(n, last[n])}" for n in metrics.ordered(last)
        ),
    }


def is_local_only(scope: Scope) -> bool:
    """Whether a suite has nothing but character models, which tell little of attention."""
    leads = {names[0] for panel in scope.panels if (names := metric_names(panel))}
    return leads == {metrics.LOCAL}


def _fixed(*columns: str) -> Callable[[Scope, Panel], tuple[str, ...]]:
    return lambda scope, panel: columns


_SHEETS: Mapping[str, _Sheet] = {
    "throughput": _Sheet(_throughput_columns, _throughput, _denominators),
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
        _bounds,
    ),
    "quality": _Sheet(_quality_columns, _quality, _direction),
}  # fmt: skip
VIEWS: Sequence[str] = tuple(_SHEETS)
"""Views that are of training runs."""
