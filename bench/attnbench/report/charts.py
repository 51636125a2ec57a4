"""Interactive charts: Vega-Lite specifications, built with Altair, one a view and scope.

A specification holds no data. The page puts the rows of each panel under the name ``rows``
and draws the same specification once for every panel, so that filters only choose rows.
Rows bring their own colour, shape and dash (see ``style``); the theme comes from the page.

Fields of a row: ``x``, ``y`` with ``lo`` and ``hi``, ``impl``, ``color``, ``shape``,
``dash``, ``failed``; in the error chart ``tensor``, ``y`` (the error), ``allowed``; for the
Pareto chart see there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from attnbench.layer.answers import TENSORS
from attnbench.report.definition import Accuracy, Lines
from attnbench.report.points import Point
from attnbench.report.sweep import Axis, Scope
from attnbench.report.units import BYTES, FLOPS, SECONDS, Unit, unit_for
from attnbench.stats import Interval

_HEIGHT = 190
_WIDEST = 8.0  # an interval is drawn to so many times its median
_CROSS = "M-.7,-.7L.7,.7M.7,-.7L-.7,.7"
_WHERE_LABELLED: Any = {"condition": {"test": "datum.label === ''", "value": 0}, "value": 1}
# Of these an axis shows what lies within it.
_ONE_TWO_FIVE = [float(f"{m}e{e}") for e in range(-9, 7) for m in (1, 2, 5)]
_POWERS_OF_TWO = [2.0**e for e in range(48)]
POWERS_OF_TEN = [float(f"1e{e}") for e in range(-20, 5)]
_COLOR = alt.Color("color:N", scale=None, legend=None)
_FOOT = alt.YValue("height")  # type: ignore[no-untyped-call]
_START = alt.XValue(0)  # type: ignore[no-untyped-call]
SHAPE = alt.Shape("shape:N", scale=None, legend=None)
WHO: Any = [_COLOR, alt.Detail("impl:N"), alt.Tooltip("impl:N")]
"""Of a mark that belongs to one implementation."""

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
    title: str | None  # of the vertical axis, where its labels do not say it
    unit: Unit
    log: bool
    label_expr: str | None = None
    log_base: int = 10
    has_interval: bool = True

    def of(self, point: Point) -> Interval | None:
        """The value in plain units, as it is drawn, or None where it was not measured."""
        if self.name == "memory":
            memory = point.record.memory
            peak = memory.peak_bytes if memory else None
            return None if peak is None else Interval(peak, peak, peak)
        value = point.rate if self.name == "rate" else point.time_s
        return None if value is None else drawn(value)


def drawn(value: Interval) -> Interval:
    """An interval that leaves room for others in a chart; texts and tables have it whole.

    Two processes that differ much leave the median open by powers of ten.
    """
    low, high = value.median / _WIDEST, value.median * _WIDEST
    return Interval(value.median, max(value.low, low), min(value.high, high))


def measure(view: Lines, scope: Scope) -> Measure:
    """The measure of a view, with the unit that suits the scope."""
    if view.view == "rate":
        best = max((p.rate.median for p in scope.points if p.rate), default=1.0)
        unit = unit_for(best, FLOPS)
        return Measure("rate", unit.name, unit, view.scale == "log")
    if view.view == "latency":
        log = view.scale != "linear"
        return Measure("latency", None, SECONDS[-1], log, _SECONDS)
    values = [p.record.memory.peak_bytes for p in scope.points if p.record.memory]
    is_positive = all(v is None or v > 0 for v in values)  # zero has no place on a log axis
    log = view.scale != "linear" and is_positive
    return Measure("memory", None, BYTES[0], log, _BYTES, 2, False)


def line_chart(view: Lines, scope: Scope) -> dict[str, Any]:
    """The measure along the axis, with 95 % intervals; a cross where a point failed.

    A size is the horizontal axis of lines. A list (dtypes, models) is read downwards, a
    band each, with a row for every implementation; the page sets that chart's height.
    """
    is_line = scope.axis.kind != "ordinal"
    shown = measure(view, scope)
    draw = _lines if is_line else _bands
    layers = draw(view, scope, shown)
    chart = alt.layer(*layers).properties(width="container")
    return plain(chart.properties(height=_HEIGHT) if is_line else chart)


def _lines(view: Lines, scope: Scope, shown: Measure) -> list[alt.Chart]:
    measured, failed = rows_of()
    x = _size_axis(scope.axis)
    y = alt.Y("y:Q", title=shown.title, axis=_value_axis(shown), scale=_scale(view, shown, scope))
    low, high = alt.Y("lo:Q", title=shown.title), alt.Y2("hi:Q")
    dash = alt.StrokeDash("dash:N", scale=None)
    layers = [
        measured.mark_area(opacity=0.16).encode(x, low, high, *WHO),
        measured.mark_line(strokeWidth=1.6).encode(x, y, dash, *WHO),
    ]
    if shown.has_interval:
        layers.append(measured.mark_rule(strokeWidth=1.4).encode(x, low, high, *WHO))
    dots = measured.mark_point(filled=True, size=42, opacity=1)
    return [*layers, dots.encode(x, y, SHAPE, *WHO), crosses(failed).encode(x, _FOOT, *WHO)]


def _bands(view: Lines, scope: Scope, shown: Measure) -> list[alt.Chart]:
    measured, failed = rows_of()
    x = alt.X("y:Q", title=shown.title, axis=_value_axis(shown), scale=_scale(view, shown, scope))
    low, high = alt.X("lo:Q", title=shown.title), alt.X2("hi:Q")
    band = alt.Axis(ticks=False, labelLimit=150)
    where = [
        alt.Y("x:N", title=None, sort=list(scope.axis.values), axis=band), alt.YOffset("impl:N"),
    ]  # fmt: skip
    dots = measured.mark_point(filled=True, size=42, opacity=1).encode(x, *where, SHAPE, *WHO)
    failures = crosses(failed).encode(_START, *where, *WHO)
    if not shown.has_interval:
        return [dots, failures]
    whiskers = measured.mark_rule(strokeWidth=1.4).encode(low, high, *where, *WHO)
    return [whiskers, dots, failures]


def rows_of() -> tuple[alt.Chart, alt.Chart]:
    """The rows that were measured, and those that failed."""
    rows = alt.Chart(alt.NamedData("rows"))
    return rows.transform_filter("!datum.failed"), rows.transform_filter("datum.failed")


def crosses(failed: alt.Chart) -> alt.Chart:
    """A cross for each point that failed."""
    marked: alt.Chart = failed.mark_point(
        shape=_CROSS, size=50, strokeWidth=1.6, filled=False, opacity=0.9
    )
    return marked


def error_chart(view: Accuracy) -> dict[str, Any]:
    """Errors of each tensor on a log axis, with the tolerance; a ring marks those past it.

    Within a tensor every implementation has a row. The page sets the height by their number.
    """
    is_share = view.relative_to == "tolerance"
    axis = alt.Axis(
        format="~r" if is_share else ".0e", values=_ONE_TWO_FIVE if is_share else POWERS_OF_TEN,
        grid=True, labelOverlap="greedy", labelSeparation=6,
    )  # fmt: skip
    title = error_title(view)
    x = alt.X("y:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=8), axis=axis)
    tensor = alt.Y("tensor:N", title=None, sort=list(TENSORS), axis=alt.Axis(ticks=False))
    where = [x, tensor, alt.YOffset("impl:N")]
    rows = alt.Chart(alt.NamedData("rows"))
    if is_share:
        one = alt.Chart(alt.sequence(1, 2, as_="limit"))  # a row of its own: the limit is 1
        limit = one.mark_rule(style="limit").encode(alt.X("limit:Q", title=title))
    else:
        ticks = rows.mark_tick(thickness=2, style="limit")
        limit = ticks.encode(alt.X("allowed:Q", title=title), tensor)
    dots = rows.mark_point(filled=True, size=34, opacity=0.85)
    rings = rows.transform_filter("datum.wrong").mark_point(
        size=150, strokeWidth=1.8, filled=False, opacity=1, style="wrong"
    )
    chart = alt.layer(
        limit,
        dots.encode(*where, _COLOR, SHAPE, alt.Tooltip("impl:N")),
        rings.encode(*where, alt.Tooltip("impl:N")),
    )
    return plain(chart.properties(width="container"))


def error_title(view: Accuracy) -> str:
    """What the error chart's axis shows."""
    title = {
        "rel_l2": "relative L2 error",
        "max_abs": "largest absolute error",
        "row_rel": "relative L2 error of the worst row",
    }[view.measure]
    return f"{title} ÷ tolerance" if view.relative_to == "tolerance" else title


def pareto_chart() -> dict[str, Any]:
    """Distance from the answer against time; a dot is as large as its memory.

    A line joins the settings of one method, a ring marks those that nobody beats. Rows:
    ``x`` seconds, ``y`` distance, ``memory`` bytes, ``method``, ``front``.
    """
    rows = alt.Chart(alt.NamedData("rows"))
    times = alt.Axis(
        values=_ONE_TWO_FIVE, labelExpr=_SECONDS, labelOverlap="greedy", labelSeparation=4,
        grid=True, gridOpacity=_WHERE_LABELLED,
    )  # fmt: skip
    errors = alt.Axis(format=".0e", values=POWERS_OF_TEN, grid=True, labelOverlap="greedy")
    log = alt.Scale(type="log", nice=False, padding=14)
    decades = alt.Scale(type="log", nice=True, padding=14)  # times may lie close together
    x = alt.X("x:Q", title="time of a call", scale=decades, axis=times)
    y = alt.Y("y:Q", title="relative L2 distance from the answer", scale=log, axis=errors)
    size = alt.Size("memory:Q", legend=None, scale=alt.Scale(type="sqrt", range=[30, 400]))
    joined = rows.mark_line(strokeWidth=1, style="joined").encode(
        x, y, alt.Detail("method:N"), alt.Order("y:Q")
    )
    dots = rows.mark_point(filled=True, opacity=0.8).encode(x, y, size, SHAPE, *WHO)
    rings = rows.transform_filter("datum.front").mark_point(
        filled=False, strokeWidth=1.6, opacity=1, style="front"
    )
    ringed = rings.encode(x, y, alt.Size("ring:Q", scale=None), alt.Tooltip("impl:N"))
    chart = alt.layer(joined, dots, ringed).properties(width="container", height=_HEIGHT + 60)
    return plain(chart)


def _size_axis(axis: Axis) -> alt.X:
    ticks = alt.Axis(
        values=list(axis.values), labelExpr=_KILO, labelOverlap=True, format="d", grid=False
    )
    if any(isinstance(value, float) for value in axis.values):
        ticks = alt.Axis(values=list(axis.values), labelOverlap=True, format="~g", grid=False)
    scale = alt.Scale(type="linear", zero=False)
    if axis.kind == "log":
        scale = alt.Scale(type="log", base=2)
    scale.domain, scale.nice, scale.padding = [axis.values[0], axis.values[-1]], False, 12
    return alt.X("x:Q", title=axis.label, axis=ticks, scale=scale)


def _value_axis(shown: Measure) -> alt.Axis:
    if shown.label_expr is None:
        return alt.Axis(tickCount=5, format="~r", grid=True, labelOverlap="greedy")
    steps = _ONE_TWO_FIVE if shown.log_base == 10 else _POWERS_OF_TWO
    return alt.Axis(
        values=steps if shown.log else alt.Undefined,
        labelExpr=shown.label_expr, labelOverlap="greedy", labelSeparation=4, grid=True,
        gridOpacity=_WHERE_LABELLED,
    )  # fmt: skip


def _scale(view: Lines, shown: Measure, scope: Scope) -> alt.Scale:
    scale = alt.Scale(type="linear", zero=True)
    if shown.log:
        scale = alt.Scale(type="log", base=shown.log_base, nice=False, padding=6)
    values = [v for p in scope.points if (v := shown.of(p)) is not None]
    if view.share_y and values:
        least = min(v.low for v in values) if shown.log else 0.0
        scale.domain = [least / shown.unit.size, max(v.high for v in values) / shown.unit.size]
    return scale


def plain(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """The specification without Altair's own theme and without an address to look up."""
    spec: dict[str, Any] = chart.to_dict()
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}
