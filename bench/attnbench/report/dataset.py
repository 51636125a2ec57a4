"""The data inside the page: every point once, by columns, for charts, tables and filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.report.charts import error_chart, line_chart, measure
from attnbench.report.definition import Accuracy, Definition, Lines
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Panel, Scope
from attnbench.report.tables import figures
from attnbench.stats import Interval

FILTERS = ("dtype", "mask", "direction")
_TEXTS = ("time", "rate", "speedup", "memory", "error")


def dataset(
    definition: Definition, scopes: Sequence[Scope], looks: Mapping[str, Look]
) -> dict[str, Any]:
    """Plain JSON: looks, and for each scope its axis, panels, charts and columns of rows."""
    order = {name: index for index, name in enumerate(looks)}
    return {
        "looks": [
            {"name": k.name, "color": k.color, "shape": k.shape, "dash": list(k.dash)}
            for k in looks.values()
        ],
        "scopes": [_scope(definition, scope, order) for scope in scopes],
    }


def fixed(panel: Panel) -> dict[str, str]:
    """The filterable fields that have one value in the whole panel."""
    values = {f: {str(p.fields.get(f)) for p in panel.points} for f in FILTERS}
    return {f: next(iter(v)) for f, v in values.items() if len(v) == 1}


def _scope(definition: Definition, scope: Scope, order: Mapping[str, int]) -> dict[str, Any]:
    charts: dict[str, Any] = {}
    for number, view in enumerate(definition.views):
        if isinstance(view, Lines):
            shown = measure(view, scope)
            charts[str(number)] = {
                "kind": "lines", "measure": shown.name, "size": shown.unit.size,
                "spec": line_chart(view, scope),
            }  # fmt: skip
        elif isinstance(view, Accuracy):
            charts[str(number)] = {
                "kind": "error", "measure": view.measure, "spec": error_chart(view),
                "share": view.relative_to == "tolerance",
            }  # fmt: skip
    rows = [
        _row(number, scope, point, order)
        for number, panel in enumerate(scope.panels)
        for point in panel.points
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "baseline": scope.baseline,
        "axis": {
            "field": scope.axis.field,
            "label": scope.axis.label,
            "ordinal": scope.axis.kind == "ordinal",
            "values": list(scope.axis.values),
        },
        "panels": [{"title": panel.title, **fixed(panel)} for panel in scope.panels],
        "charts": charts,
        "rows": {key: [row.get(key) for row in rows] for key in keys},
    }


def _row(number: int, scope: Scope, point: Point, order: Mapping[str, int]) -> dict[str, Any]:
    record = point.record
    row: dict[str, Any] = {
        "panel": number,
        "impl": order[point.implementation],
        "x": scope.x(point),
        "status": record.status,
        "latency": _triple(point.time_s),
    }
    row |= {"rate": _triple(point.rate)}
    if record.memory is not None and record.memory.peak_bytes is not None:
        row["memory"] = [record.memory.peak_bytes] * 3
    if record.accuracy:
        row["errors"] = {
            tensor: [
                short(a.rel_l2), short(a.rel_l2_allowed),
                short(a.max_abs), short(a.max_abs_allowed), int(a.ok),
            ]
            for tensor, a in record.accuracy.items()
        }  # fmt: skip
    texts = figures(point)
    row |= {f"{name}_text": texts.get(name) for name in _TEXTS}
    row |= {"reason": record.reason, "command": record.command, "id": record.id}
    row |= {f: str(point.fields.get(f)) for f in FILTERS if f == scope.axis.field}
    return row


def short(value: float | None) -> float | None:
    """Six significant digits: what a chart can show, at half the size."""
    return None if value is None else float(f"{value:.6g}")


def _triple(value: Interval | None) -> list[float | None] | None:
    return None if value is None else [short(v) for v in (value.median, value.low, value.high)]
