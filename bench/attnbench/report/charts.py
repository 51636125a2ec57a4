"""Interactive charts: Vega-Lite specifications, built with Altair, one a view and scope.

A specification holds no data. The page puts the rows of each panel under the name ``rows``
and draws the same specification once for every panel, so that filters only choose rows.
Rows bring their own colour, shape and dash (see ``style``); the theme comes from the page.

Fields of a row: ``x``, ``y`` with ``lo`` and ``hi``, ``impl``, ``color``, ``shape``,
``dash``, ``failed``; in the error chart ``tensor``, ``y`` (the error), ``allowed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from attnbench.report.definition import Accuracy, Lines
from attnbench.report.points import Point
from attnbench.report.sweep import Axis, Scope
from attnbench.report.units import BYTES, FLOPS, SECONDS, Unit, unit_for
from attnbench.stats import Interval

TENSORS = ("out", "dq", "dk", "dv")
ERROR_TITLES = {"rel_l2": "relative L2 error", "max_abs": "largest absolute error"}

_HEIGHT = 190
_STEP = alt.Step(9, **{"for": "offset"})
_CROSS = "M-.7,-.7L.7,.7M.7,-.7L-.7,.7"
_COLOR = alt.Color("color:N", scale=None, legend=None)
_FOOT = alt.YValue("height")  # type: ignore[no-untyped-call]
_SHAPE = alt.Shape("shape:N", scale=None, legend=None)

# A log axis blanks the labels it has no room for; keep them blank.
_SECONDS = (
    "datum.label === '' ? '' : datum.value >= 0.9999 ? format(datum.value, '~r') + ' s'"
    " : datum.value >= 0.9999e-3 ? format(datum.value * 1e3, '~r') + ' ms'"
    " : datum.value >= 0.9999e-6 ? format(datum.value * 1e6, '~r') + ' µs'"
    " : format(datum.value * 1e9, '~r') + ' ns'"
)
_BYTES = (
    "datum.label === '' ? '' : datum.value >= 1073741824 ? format(datum.value / 1073741824, '~r')"
    " + ' GiB' : datum.value >= 1048576 ? format(datum.value / 1048576, '~r') + ' MiB'"
    " : datum.value >= 1024 ? format(datum.value / 1024, '~r') + ' KiB'"
    " : format(datum.value, '~r') + ' B'"
)
_KILO = "datum.value >= 1024 && datum.value % 1024 === 0 ? datum.value / 1024 + 'k' : datum.label"


@dataclass(frozen=True)
class Measure:
    """What a line chart shows of a point: its value (with interval) in ``unit``."""

    name: str  # of the view
    title: str  # of the vertical axis
    unit: Unit
    log: bool
    label_expr: str | None = None
    log_base: int = 10
    has_interval: bool = True

    def of(self, point: Point) -> Interval | None:
        """The value in plain units, or None where it was not measured."""
        if self.name == "memory":
            memory = point.record.memory
            peak = memory.peak_bytes if memory else None
            return None if peak is None else Interval(peak, peak, peak)
        return point.rate if self.name == "rate" else point.time_s


def measure(view: Lines, scope: Scope) -> Measure:
    """The measure of a view, with the unit that suits the scope."""
    if view.view == "rate":
        best = max((p.rate.median for p in scope.points if p.rate), default=1.0)
        unit = unit_for(best, FLOPS)
        return Measure("rate", unit.name, unit, view.scale == "log")
    if view.view == "latency":
        log = view.scale != "linear"
        return Measure("latency", "time per call", SECONDS[-1], log, _SECONDS)
    values = [p.record.memory.peak_bytes for p in scope.points if p.record.memory]
    is_positive = all(v is None or v > 0 for v in values)  # zero has no place on a log axis
    log = view.scale != "linear" and is_positive
    return Measure("memory", "peak memory beyond the inputs", BYTES[0], log, _BYTES, 2, False)


def line_chart(view: Lines, scope: Scope) -> dict[str, Any]:
    """A line an implementation with its 95 % interval; marks at the foot where one failed."""
    axis, shown = scope.axis, measure(view, scope)
    rows = alt.Chart(alt.NamedData("rows"))
    measured, failed = rows.transform_filter("!datum.failed"), rows.transform_filter("datum.failed")
    y = alt.Y("y:Q", title=shown.title, axis=_y_axis(shown), scale=_y_scale(view, shown, scope))
    low, high = alt.Y("lo:Q", title=shown.title), alt.Y2("hi:Q")
    is_line = axis.kind != "ordinal"
    where = [_x(axis)] if is_line else [_x(axis), alt.XOffset("impl:N")]
    who = [_COLOR, alt.Detail("impl:N"), alt.Tooltip("impl:N")]
    layers = []
    if is_line:
        layers.append(measured.mark_area(opacity=0.16).encode(*where, low, high, *who))
        line = measured.mark_line(strokeWidth=1.6)
        layers.append(line.encode(*where, y, alt.StrokeDash("dash:N", scale=None), *who))
    if shown.has_interval:
        layers.append(measured.mark_rule(strokeWidth=1.4).encode(*where, low, high, *who))
    dots = measured.mark_point(filled=True, size=42, opacity=1)
    layers.append(dots.encode(*where, y, _SHAPE, *who))
    crosses = failed.mark_point(shape=_CROSS, size=50, strokeWidth=1.6, filled=False, opacity=0.9)
    layers.append(crosses.encode(*where, _FOOT, *who))
    return _plain(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def error_chart(view: Accuracy) -> dict[str, Any]:
    """Errors of each tensor on a log axis, with a tick at each tolerance.

    Within a tensor every implementation has a row; a ring marks errors past the tolerance.
    """
    axis = alt.Axis(format=".0e", tickCount=4, labelOverlap=True, grid=True)
    scale = alt.Scale(type="log", nice=False, padding=8)
    title = ERROR_TITLES[view.measure]
    x = alt.X("y:Q", title=title, scale=scale, axis=axis)
    tensor = alt.Y("tensor:N", title=None, sort=list(TENSORS), axis=alt.Axis(ticks=False))
    where = [x, tensor, alt.YOffset("impl:N")]
    rows = alt.Chart(alt.NamedData("rows"))
    limits = rows.mark_tick(thickness=2, style="limit").encode(
        alt.X("allowed:Q", title=title), tensor
    )
    dots = rows.mark_point(filled=True, size=34, opacity=0.85)
    rings = rows.transform_filter("datum.wrong").mark_point(
        size=150, strokeWidth=1.8, filled=False, opacity=1, style="wrong"
    )
    chart = alt.layer(
        limits,
        dots.encode(*where, _COLOR, _SHAPE, alt.Tooltip("impl:N")),
        rings.encode(*where, alt.Tooltip("impl:N")),
    )
    return _plain(chart.properties(width="container", height=_STEP))


def _x(axis: Axis) -> alt.X:
    if axis.kind == "ordinal":
        labels = alt.Axis(labelAngle=-25 if len(max(axis.values, key=len)) > 8 else 0, grid=False)
        return alt.X("x:O", title=axis.label, sort=list(axis.values), axis=labels)
    ticks = alt.Axis(values=list(axis.values), labelExpr=_KILO, labelOverlap=True, format="d")
    if any(isinstance(value, float) for value in axis.values):
        ticks = alt.Axis(values=list(axis.values), labelOverlap=True, format="~g")
    scale = alt.Scale(type="linear", zero=False)
    if axis.kind == "log":
        scale = alt.Scale(type="log", base=2)
    scale.domain, scale.nice, scale.padding = [axis.values[0], axis.values[-1]], False, 12
    return alt.X("x:Q", title=axis.label, axis=ticks, scale=scale)


def _y_axis(shown: Measure) -> alt.Axis:
    if shown.label_expr is None:
        return alt.Axis(tickCount=5, format="~r")
    return alt.Axis(tickCount=4, labelExpr=shown.label_expr, labelOverlap=True)


def _y_scale(view: Lines, shown: Measure, scope: Scope) -> alt.Scale:
    scale: dict[str, Any] = {"type": "linear", "zero": True}
    if shown.log:
        scale = {"type": "log", "base": shown.log_base, "nice": False, "padding": 6}
    if view.share_y:
        values = [v for p in scope.points if (v := shown.of(p)) is not None]
        ends = [0.0] if not shown.log else []
        ends += [end / shown.unit.size for v in values for end in (v.low, v.high)]
        if values:
            scale["domain"] = [min(ends), max(ends)]
    return alt.Scale(**scale)


def _plain(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """The specification without Altair's own theme and without an address to look up."""
    spec: dict[str, Any] = chart.to_dict()
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}
