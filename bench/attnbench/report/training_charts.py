"""Charts of training runs: Vega-Lite specifications, and what a row holds for them.

As in ``charts``, a specification holds no data: the page puts the marks of each panel under
the name ``rows``. A row of the page's data has, beside its throughput, ``breakdown`` and
``footprint`` (numbers in the order of the parts, with ``…_mark`` for what is drawn over
them), and the curves ``loss``, ``gap`` and ``metric`` as pairs of step and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from attnbench.report import metrics, units
from attnbench.report.charts import POWERS_OF_TEN, SHAPE, WHO, crosses, plain, rows_of
from attnbench.report.points import Point
from attnbench.report.sweep import Panel, Scope
from attnbench.report.training_text import TOKENS, metric_names, part
from attnbench.train.figures import Training

MOST_STEPS = 240
"""Of a curve that are drawn; longer ones are drawn by equal stretches."""

_ROW_PX = 24  # of a bar and its thin one
_CURVE_PX = 200


@dataclass(frozen=True)
class Part:
    """A part of a bar, with its colour (Okabe and Ito's, told apart in both themes)."""

    name: str
    color: str


PARTS: Mapping[str, Sequence[Part]] = {
    "breakdown": (
        Part("forward", "#56B4E9"), Part("backward", "#0072B2"), Part("optimizer", "#E69F00"),
    ),
    "footprint": (
        Part("parameters", "#0072B2"), Part("gradients", "#56B4E9"), Part("optimizer", "#E69F00"),
        Part("activations", "#009E73"),
    ),
}  # fmt: skip
"""Of the stacked bars, from the left."""

OVER: Mapping[str, str] = {"breakdown": "attention's share", "footprint": "peak"}
"""What the thin bar under each stacked bar shows."""


def charts(view: str, number: int, scope: Scope) -> dict[str, dict[str, Any]]:
    """The charts of a view by their key on the page: specification, and how rows become marks."""
    key = str(number)
    if view == "throughput":
        best = max((p.trained.tokens_per_s.median for p in scope.points
                    if p.trained and p.trained.tokens_per_s), default=1.0)  # fmt: skip
        unit = units.unit_for(best, TOKENS)
        spec = _rates(unit.name)
        rates = {"kind": "lines", "measure": "rate", "size": unit.size, "spec": spec}
        return {key: rates | {"row": _ROW_PX}}
    if view in PARTS:
        unit, names = _unit(view, scope), [p.name for p in PARTS[view]]
        bars = {"kind": "stack", "measure": view, "parts": names, "spec": _stack(view, unit.name)}
        return {key: bars | {"row": _ROW_PX, "size": unit.size}}
    if view == "parity":
        return {
            key: {"kind": "curve", "measure": "loss", "spec": _curves("loss, in nats")},
            f"{key}-gap": {"kind": "curve", "measure": "gap", "spec": _gaps()},
        }
    return {key: {"kind": "curve", "measure": "metric", "spec": _curves(None, dots=True)}}


def curves(scope: Scope) -> dict[str, dict[str, Any]]:
    """By the id of a record, what its row holds for these charts."""
    return {
        point.record.id: _row(panel, point, training)
        for panel in scope.panels
        for point in panel.points
        if (training := part(point)) is not None
    }


# ---- rows --------------------------------------------------------------------------------


def _row(panel: Panel, point: Point, training: Training) -> dict[str, Any]:
    parts, memory, names = training.breakdown, training.memory, metric_names(panel)
    seconds = [parts.forward_s, parts.backward_s, parts.optimizer_s]
    share = parts.attention_share
    row: dict[str, Any] = {
        "breakdown": [_short(s) for s in seconds],
        "breakdown_mark": None if share is None else _short(share * sum(seconds)),
        "footprint": [memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes,
                      memory.activations_bytes],
        "footprint_mark": memory.peak_bytes,
        "loss": _thin(training.losses, mean=True),
    }  # fmt: skip
    reference = _reference(panel, training)
    if reference is not None and reference is not training:
        apart = [abs(a - b) for a, b in zip(training.losses, reference.losses, strict=False)]
        row["gap"] = [pair for pair in _thin(apart, mean=False) if pair[1]]
    if names:
        seen = ((e.step, e.metrics.get(names[0])) for e in training.evaluations)
        row["metric"] = [[step, _short(value)] for step, value in seen if value is not None]
    return row


def _reference(panel: Panel, training: Training) -> Training | None:
    """The run of the same panel whose curve a run was held against, if it is there."""
    for point in panel.points:
        own = part(point)
        is_it = point.implementation == training.parity.reference
        if is_it and own is not None and own.parity.batch == training.parity.batch:
            return own
    return None


def _thin(values: Sequence[float], *, mean: bool) -> list[list[float]]:
    """Pairs of step (from 0, as in a record's parity) and value.

    Of each stretch its mean, or else its largest.
    """
    every = max(1, math.ceil(len(values) / MOST_STEPS))
    stretches = [values[i : i + every] for i in range(0, len(values), every)]
    of = (lambda some: sum(some) / len(some)) if mean else max
    return [[i * every, _short(of(some))] for i, some in enumerate(stretches)]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


# ---- specifications ------------------------------------------------------------------------


def _who_rows() -> alt.Y:
    axis = alt.Axis(ticks=False, labelLimit=150, domain=False)
    return alt.Y("impl:N", title=None, axis=axis, sort=alt.EncodingSortField("place", op="min"))


def _rates(unit: str) -> dict[str, Any]:
    measured, failed = rows_of()
    x = alt.X("y:Q", title=unit, scale=alt.Scale(zero=True), axis=_numbers())
    y = _who_rows()
    layers = [
        measured.mark_bar(height=8, opacity=0.25).encode(x, y, *WHO),
        measured.mark_rule(strokeWidth=1.6).encode(alt.X("lo:Q", title=unit), alt.X2("hi:Q"), y,
                                                   *WHO),
        measured.mark_point(filled=True, size=42, opacity=1).encode(x, y, SHAPE, *WHO),
        crosses(failed).encode(alt.XValue(0), y, *WHO),  # type: ignore[no-untyped-call]
    ]  # fmt: skip
    return _in_rows(alt.layer(*layers))


def _unit(view: str, scope: Scope) -> units.Unit:
    """In which the largest bar of a suite is told."""
    runs = [training for point in scope.points if (training := part(point)) is not None]
    if view == "breakdown":
        largest = max((t.breakdown.forward_s + t.breakdown.backward_s for t in runs), default=1.0)
        return units.unit_for(largest, units.SECONDS)
    peak = max((t.memory.peak_bytes for t in runs), default=1)
    return units.unit_for(peak, units.BYTES)


def _stack(view: str, unit: str) -> dict[str, Any]:
    rows = alt.Chart(alt.NamedData("rows"))
    parts = PARTS[view]
    color = alt.Color(
        "part:N", legend=None,
        scale=alt.Scale(domain=[p.name for p in parts], range=[p.color for p in parts]),
    )  # fmt: skip
    x = alt.X("y:Q", title=unit, stack="zero", axis=_numbers())
    bars = rows.mark_bar(height=11, yOffset=-3)
    over = rows.transform_filter("datum.part_place === 0 && isValid(datum.mark)")
    thin = over.mark_bar(height=4, yOffset=6, style="over")
    tell = alt.Tooltip("impl:N")
    return _in_rows(
        alt.layer(
            bars.encode(x, _who_rows(), color, alt.Order("part_place:Q"), tell),
            thin.encode(alt.X("mark:Q", title=unit), _who_rows(), tell),
        )
    )


def _curves(title: str | None, *, dots: bool = False) -> dict[str, Any]:
    rows = alt.Chart(alt.NamedData("rows"))
    y = alt.Y("y:Q", title=title, scale=alt.Scale(zero=False), axis=_numbers())
    lines = rows.mark_line(strokeWidth=1.5).encode(_steps(), y, _dash(), *WHO)
    layers = [lines]
    if dots:
        layers.append(
            rows.mark_point(filled=True, size=30, opacity=1).encode(_steps(), y, SHAPE, *WHO)
        )
    return plain(alt.layer(*layers).properties(width="container", height=_CURVE_PX))


def _gaps() -> dict[str, Any]:
    rows = alt.Chart(alt.NamedData("rows"))
    axis = alt.Axis(format=".0e", values=POWERS_OF_TEN, grid=True, labelOverlap="greedy")
    scale = alt.Scale(type="log", nice=False, padding=8)
    y = alt.Y("y:Q", title="apart from the reference, in nats", scale=scale, axis=axis)
    lines = rows.mark_line(strokeWidth=1.5).encode(_steps(), y, _dash(), *WHO)
    dots = rows.mark_point(filled=True, size=14, opacity=1).encode(_steps(), y, SHAPE, *WHO)
    chart = alt.layer(lines, dots).properties(width="container", height=_CURVE_PX)
    return plain(chart)


def _steps() -> alt.X:
    axis = alt.Axis(format="~s", tickCount=6, grid=False, labelOverlap="greedy")
    return alt.X("x:Q", title="step", axis=axis, scale=alt.Scale(nice=False, zero=False))


def _dash() -> alt.StrokeDash:
    return alt.StrokeDash("dash:N", scale=None)


def _numbers() -> alt.Axis:
    return alt.Axis(tickCount=5, format="~r", grid=True, labelOverlap="greedy")


def _in_rows(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """The page makes it as high as it has implementations."""
    return plain(chart.properties(width="container"))


def metric_title(panel: Panel) -> str:
    """What the curve of a panel's quality shows: ``token accuracy``."""
    names = metric_names(panel)
    return metrics.metric(names[0]).label if names else ""
