"""The data inside the page: every point once, by columns, for charts, tables and filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.record import TensorAccuracy
from attnbench.report import pareto, training_charts
from attnbench.report.charts import drawn, error_chart, line_chart, measure, pareto_chart
from attnbench.report.definition import (
    Accuracy,
    Definition,
    DrawnOfTraining,
    Lines,
    OfTraining,
    Pareto,
)
from attnbench.report.fields import order
from attnbench.report.points import MEASURES, Point
from attnbench.report.style import Look
from attnbench.report.sweep import Scope
from attnbench.report.tables import figures, suite_commands
from attnbench.stats import Interval

_FIRST_FILTERS = ("direction", "dtype", "mask")
_TEXTS = (
    "time", "host_time", "how", "rate", "speedup", "roofline", "energy", "memory",
    "memory_parts", "memory_note", "error", "distance",
)  # fmt: skip
_OF_RUNS = ("batch", "mfu", "step", "attention", "loss", "parity", "metrics")


def dataset(
    definition: Definition, scopes: Sequence[Scope], looks: Mapping[str, Look]
) -> dict[str, Any]:
    """Plain JSON: looks, and for each scope its axis, panels, charts and columns of rows."""
    places = {name: index for index, name in enumerate(looks)}
    return {
        "looks": [
            {"name": k.name, "color": k.color, "shape": k.shape, "dash": list(k.dash)}
            for k in looks.values()
        ],
        "scopes": [_scope(definition, scope, places) for scope in scopes],
    }


def filter_values(scopes: Sequence[Scope]) -> dict[str, list[str]]:
    """The fields that tell panels or columns apart, with the values to choose from."""
    values: dict[str, set[str]] = {field: set() for field in _FIRST_FILTERS}
    for scope in scopes:
        for panel in scope.panels:
            for field, value in panel.facets.items():
                values.setdefault(field, set()).add(str(value))
        if scope.axis.kind == "ordinal" and scope.axis.field != "shape":
            values.setdefault(scope.axis.field, set()).update(scope.axis.values)
    return {
        field: sorted(found, key=lambda value: order(field, value))
        for field, found in values.items()
        if len(found) > 1
    }


def _scope(definition: Definition, scope: Scope, places: Mapping[str, int]) -> dict[str, Any]:
    said: dict[str, int] = {}  # verdicts on errors are few and long: told once, then by number
    rows = [
        _row(number, scope, point, places, said)
        for number, panel in enumerate(scope.panels)
        for point in panel.points
    ]
    if scope.kind == "training":
        runs = training_charts.curves(scope)
        rows = [row | runs.get(row["id"], {}) for row in rows]
    elif scope.kind == "attention":
        _add_pareto(rows, scope)
    shared = suite_commands(scope.points)
    command = shared[0] if len(shared) == 1 else ""
    for row in rows:
        row["command"] = row["command"].removeprefix(command)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "kind": scope.kind,
        "baseline": scope.baseline,
        "axis": {
            "field": scope.axis.field,
            "label": scope.axis.label,
            "ordinal": scope.axis.kind == "ordinal",
        },
        "panels": [
            {"title": panel.title, "facets": {k: str(v) for k, v in panel.facets.items()}}
            for panel in scope.panels
        ],
        "command": command,
        "charts": _charts(definition, scope),
        "verdicts": list(said),
        "rows": {key: [row.get(key) for row in rows] for key in keys},
    }


def _charts(definition: Definition, scope: Scope) -> dict[str, Any]:
    """By the number of the view: the specification, and what to put into its rows."""
    charts: dict[str, Any] = {}
    for number, view in enumerate(definition.views):
        if scope.kind not in view.kinds:
            continue
        if isinstance(view, OfTraining | DrawnOfTraining):
            charts |= training_charts.charts(view.view, number, scope)
        elif isinstance(view, Lines):
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
        elif isinstance(view, Pareto):
            charts[str(number)] = {
                "kind": "pareto", "measure": "pareto", "spec": pareto_chart(),
            }  # fmt: skip
    return charts


def _row(
    number: int, scope: Scope, point: Point, places: Mapping[str, int], said: dict[str, int]
) -> dict[str, Any]:
    record = point.record
    row: dict[str, Any] = {
        "panel": number,
        "impl": places[point.implementation],
        "x": scope.x(point),
        "status": record.status,
        "approximate": 1 if point.is_approximate else None,
        "latency": _triple(point.ranked_s),
        "rate": _triple(_rate(point)),
        "memory": None,
        "wide": 1 if record.samples and not record.samples.converged else None,
    }
    if record.memory is not None and record.memory.peak_bytes is not None:
        row["memory"] = [record.memory.peak_bytes] * 3
    if record.accuracy:
        row["errors"] = {name: _errors(a, said) for name, a in record.accuracy.items()}
    texts = figures(point)
    told = (*_TEXTS, *_OF_RUNS) if scope.kind != "attention" else _TEXTS
    row |= {f"{name}_text": texts.get(name) for name in told}
    chosen = record.implementation.choices
    row["choices"] = "; ".join(f"{name}: {value}" for name, value in chosen.items()) or None
    return row | {"reason": record.reason, "command": record.command, "id": record.id}


def _rate(point: Point) -> Interval | None:
    """FLOP/s, or tokens a second."""
    if point.trained is not None:
        return point.trained.tokens_per_s
    return point.rate if point.served is None else point.served.overall


def _add_pareto(rows: Sequence[dict[str, Any]], scope: Scope) -> None:
    """To the rows of each panel's largest problem: distance, method, whether nobody beats it."""
    of_id = {row["id"]: row for row in rows}
    for panel in scope.panels:
        points = pareto.largest(scope, panel)
        leading = pareto.front(points)
        for point in points:
            worst = pareto.distance(point)
            assert worst is not None
            of_id[point.record.id] |= {
                "distance": _short(worst[1], 4),
                "method": point.record.implementation.name,
                "front": 1 if point.record.id in leading else None,
            }


def _errors(accuracy: TensorAccuracy, said: dict[str, int]) -> list[float | None]:
    """Whether it is ok, the number of its verdict, then each measure and its tolerance."""
    names = [name for m in MEASURES for name in (m, f"{m}_allowed")]
    verdict = said.setdefault(accuracy.verdict, len(said))
    return [int(accuracy.ok), verdict, *(_short(getattr(accuracy, name), 3) for name in names)]


def _short(value: float | None, digits: int = 6) -> float | None:
    """What a chart can show, at half the size."""
    return None if value is None else float(f"{value:.{digits}g}")


def _triple(value: Interval | None) -> list[float | None] | None:
    if value is None:
        return None
    shown = drawn(value)
    return [_short(v) for v in (shown.median, shown.low, shown.high)]
